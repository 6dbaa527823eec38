"""The evaluation's numbers against slow references, and scripts.evaluate on the tiny trained cascade."""

import dataclasses
import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from evaluation import distances, novelty
from evaluation import features as extractors
from evaluation.distances import kernel_distance, kernel_interval, precision_and_recall
from evaluation.evaluator import Evaluator
from evaluation.novelty import Nearest
from evaluation.reconstruction import mean_psnr
from evaluation.results import SAMPLES, Results
from evaluation.run import TrainedRun
from reporting.run import read_run
from scripts import evaluate
from tests.helpers.deaths import dying
from tests.helpers.features import quick_features
from tests.helpers.files import contents, edited
from tests.helpers.jobs import run_job
from tests.helpers.runs import BOUNDS
from tests.helpers.scripts import expect_error, run_main
from utils.core.config import load_config
from utils.data.dataset import ImageDataset
from utils.data.split import Bounds
from utils.runs.checkpoint import measured
from utils.runs.folders import EvaluationFolder, RunFolder


def normal(number, features, seed, scale=1.0, shift=0.0):
    draws = torch.randn(number, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draws * scale + shift


def test_the_kernel_distance_is_the_unbiased_one_of_the_paper():
    x, y = normal(5, 3, 0).numpy(), normal(5, 3, 1, 1.5, 0.3).numpy()
    kernel = lambda a, b: (sum(a[i] * b[i] for i in range(3)) / 3 + 1) ** 3  # noqa: E731
    within = [sum(kernel(s[i], s[j]) for i in range(5) for j in range(5) if i != j) / 20 for s in (x, y)]
    between = sum(kernel(a, b) for a in x for b in y) / 25
    value = kernel_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert value == pytest.approx(sum(within) - 2 * between, abs=1e-12)


@pytest.mark.parametrize("numbers", [(4, 4), (5, 4)])
def test_the_variance_of_the_kernel_distance_is_unbiased(numbers):
    """As D² less the mean of D₁·D₂ over all D₁, D₂ that share no image, which is an unbiased estimate of E(D)²."""
    x, y = normal(numbers[0], 3, 0), normal(numbers[1], 3, 1, 1.5, 2.0)
    kernel = lambda a, b: float(a @ b / 3 + 1) ** 3  # noqa: E731

    def distance(a, b):
        within = [kernel(p, q) for part in (a, b) for p, q in itertools.permutations(part, 2)]
        pairs = len(a) * (len(a) - 1)
        between = [kernel(p, q) for p in a for q in b]
        return sum(within[:pairs]) / pairs + sum(within[pairs:]) / len(within[pairs:]) - 2 * sum(between) / len(between)

    fours = [itertools.permutations(part, 4) for part in (x, y)]
    both = [distance(a[:2], b[:2]) * distance(a[2:], b[2:]) for a, b in itertools.product(*fours)]
    of_images, of_pairs = distances.kernel_variances(x, y)
    assert of_images > 0 and of_images + of_pairs == pytest.approx(distance(x, y) ** 2 - sum(both) / len(both))


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.7], ids=["one distribution", "near ones", "two"])
def test_the_deviation_is_that_over_many_sets(shift):
    pairs = [(normal(60, 8, 2 * seed), normal(60, 8, 2 * seed + 1, 1.0, shift)) for seed in range(150)]
    true = np.std([kernel_distance(*pair) for pair in pairs], ddof=1)
    claimed = np.mean([sum(distances.kernel_variances(*pair)) ** 0.5 for pair in pairs[:50]])
    assert claimed / true == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("shift", [0.4, 1.4])
def test_intervals_of_small_distances_hold_the_true_one(shift):
    """The first feature varies most, and the sets differ in it, as those of tilted images do."""
    spread, gap = torch.tensor([2.0] + [1.0] * 7), torch.tensor([shift] + [0.0] * 7)
    pairs = [(normal(60, 8, 2 * seed, spread), normal(60, 8, 2 * seed + 1, spread, gap)) for seed in range(300)]
    value, low, high = np.transpose([kernel_interval(*pair) for pair in pairs])
    assert 0.92 < np.mean((low <= value.mean()) & (value.mean() <= high)) < 0.98


def in_a_ball(point, others):
    """Whether a point is as near to one of the others as that one's third nearest neighbour is."""
    for index, centre in enumerate(others):
        distances = sorted(math.dist(centre, other) for number, other in enumerate(others) if number != index)
        if math.dist(point, centre) <= distances[2]:
            return True
    return False


@pytest.mark.parametrize("block", [3, 7, 100])
def test_precision_and_recall_are_those_of_brute_force(block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
    x, y = normal(25, 2, 0, 1.5), normal(20, 2, 1, 1.0, 2.0)
    expected = [sum(in_a_ball(p, b.tolist()) for p in a.tolist()) / len(a) for a, b in ((x, y), (y, x))]
    assert min(expected) > 0 and max(expected) < 1
    assert precision_and_recall(x, y) == pytest.approx(expected)


def test_copies_of_training_images_and_of_their_mirror_images_are_found(faces):
    dataset = ImageDataset(faces)
    extractor = extractors.EfficientNetFeatures()
    training, held_out = dataset[np.arange(20)], dataset[np.arange(20, 40)]
    samples = torch.cat((training[[3]], training[[7]].flip(-1), held_out[5:]))
    known = extractor(training)
    near = Nearest.among(known, extractor(samples), extractor(samples.flip(-1)))
    assert near.index[:2].tolist() == [3, 7] and near.mirrored[:2].tolist() == [False, True]
    others = Nearest.among(known, extractor(held_out), extractor(held_out.flip(-1)))
    paths = [f"{index}.png" for index in range(20)]
    summary = novelty.summarize(near, others, paths, [f"IMG {path}" for path in paths], "pairs.png")
    assert summary.samples.share >= 2 / 17 > 2 * summary.held_out.share
    assert {(row.sample, row.image_path) for row in summary.nearest[:2]} == {(0, "3.png"), (1, "7.png")}
    assert [row.name for row in summary.near_copies[:2]] in (["IMG 3.png", "IMG 7.png"], ["IMG 7.png", "IMG 3.png"])
    assert max(row.distance for row in summary.nearest[:2]) < 1e-3 < summary.nearest[2].distance
    unseen = Nearest.among(known, extractor(samples))
    assert unseen.distance[0] < 1e-3 < unseen.distance[1]


@torch.no_grad()
@pytest.mark.parametrize("number", [0, 2])
def test_features_are_those_of_the_network_as_it_was_published(number, faces):
    extractor, images = extractors.EfficientNetFeatures(number), ImageDataset(faces)[np.arange(3)]
    network = EfficientNet.from_name(f"efficientnet-lite{number}").eval()
    network.load_state_dict(torch.load(extractors.LITE[number].get_model_file_path(), weights_only=True))
    scaled = F.interpolate(images, size=(128, 128), mode="bicubic", antialias=True, align_corners=False)
    assert torch.allclose(extractor(images), network.extract_features(scaled).mean((2, 3)), atol=1e-3)
    assert f"EfficientNet-Lite{number}, " in extractor.description and "128 pixels" in extractor.description


@pytest.mark.parametrize("block", [1, 4, 100])
def test_the_nearest_are_those_of_a_full_search(block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
    training, x = normal(9, 3, 0), normal(10, 3, 1)
    expected = np.linalg.norm(x.numpy()[:, None] - training.numpy()[None], axis=2)
    near = Nearest.among(training, x)
    assert near.distance.numpy() == pytest.approx(expected.min(1)) and near.index.tolist() == [*expected.argmin(1)]
    assert near.nearness(float(np.median(expected.min(1)))).share == 0.5
    twice = Nearest.among(torch.cat((training, training)), x)  # of two that are equally near, the first
    assert torch.equal(twice.index, near.index)


def test_memory_does_not_grow_with_the_sets(monkeypatch):
    shapes, cdist = [], torch.cdist

    def watched(a, b, norm):
        shapes.append((len(a), len(b)))
        return cdist(a, b, norm)

    monkeypatch.setattr(distances, "BLOCK", 16)
    monkeypatch.setattr(torch, "cdist", watched)
    monkeypatch.setattr(torch.Tensor, "double", lambda part: shapes.append(part.shape) or part.to(torch.float64))
    x, y = normal(100, 3, 0).float(), normal(90, 3, 1).float()
    distances.nearest(x, y)
    assert max(max(shape) for shape in shapes) == 16
    shapes.clear()
    precision_and_recall(x, y)
    assert max(max(shape) for shape in shapes) == 16


@pytest.mark.parametrize(
    ("count", "number", "expected"),
    [(4, 445, (0.0035, 0.02288)), (10, 20, (0.2993, 0.7007)), (0, 10, (0, 0.27753)), (10, 10, (0.72247, 1))],
)
def test_the_interval_of_a_share_is_wilsons(count, number, expected):
    """As scipy.stats.binomtest(count, number).proportion_ci(method="wilson") gives it."""
    assert novelty.share_interval(count, number) == pytest.approx(expected, abs=2e-5)


def test_psnr_is_that_of_the_mean_error():
    grey, lighter = torch.full((2, 3, 16, 16), -0.2), torch.full((2, 3, 16, 16), 0.2)
    assert mean_psnr([(grey, grey)]) > 100
    pairs = [(grey, lighter), (grey[:1], lighter[:1])]
    assert mean_psnr(pairs) == pytest.approx(20 * math.log10(2 / 0.4), abs=1e-4)


@pytest.fixture(autouse=True, scope="module")
def few_features():
    with pytest.MonkeyPatch.context() as patch:
        quick_features(patch)
        yield


def run_on(run, dataset, out, *flags):
    folder = dataset.parent  # stands for its dataset.json
    run_main(evaluate.main, run, "--dataset-path", folder, "--device", "cpu", "--out-dir", out, *flags)
    return json.loads((out / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def evaluated(tiny_run, faces, tmp_path_factory, few_features):
    """The folder and the content of an evaluation of the whole tiny run."""
    out = tmp_path_factory.mktemp("evaluation")
    return out, run_on(tiny_run, faces, out, "--batch-size", 4)


def test_an_evaluation_is_of_the_weights_that_it_measured(evaluated, tiny_run, tmp_path):
    out, content = evaluated
    run = RunFolder(shutil.copytree(tiny_run, tmp_path / "run"))
    best = [run.autoencoder.latest, *(step.best for step in run.transformers), *(book.pruned for book in run.codebooks)]
    assert content["models"].keys() == {path.relative_to(run.path).as_posix() for path in best}
    shutil.copytree(out, run.evaluation.path, dirs_exist_ok=True)
    assert read_run(run).evaluation.models == content["models"]
    for path in best:
        kept = path.read_bytes()
        torch.save(torch.load(path, weights_only=True) | {"fingerprint": "of others"}, path)
        assert read_run(run).evaluation is None
        path.write_bytes(kept)
    run.transformers[2].best.unlink()  # to make room, say
    assert read_run(run).evaluation is not None
    run.decoder.checkpoints.mkdir(parents=True)
    shutil.copy(run.autoencoder.latest, run.decoder.latest)  # which has been trained since
    assert read_run(run).evaluation is None
    old = {key: value for key, value in content.items() if key != "models"} | {"distances": [{"kernel_of_old": 1}]}
    run.evaluation.results.write_text(json.dumps(old))
    assert read_run(run).evaluation is None


def test_an_evaluation_that_dies_keeps_the_one_before(evaluated, tiny_run, faces, tmp_path, monkeypatch):
    out = shutil.copytree(evaluated[0], tmp_path / "evaluation")
    before = contents(out)
    monkeypatch.setattr(Evaluator, "draw", dying(Evaluator.draw, 0))
    with pytest.raises(KeyboardInterrupt):
        run_on(tiny_run, faces, out, "--seed", 1)
    assert contents(out) == before


def test_what_the_trainers_measured_is_measured_again(tiny_run, faces, tmp_path, monkeypatch):
    """On validation images, which are called test images here."""
    monkeypatch.setattr(TrainedRun, "bounds", Bounds(0.0, BOUNDS.validation))
    content = run_on(tiny_run, faces, tmp_path)
    validation = {
        name: measured(path, torch.load(path, weights_only=True)["fingerprint"])
        for name in ("autoencoder", "transformer_0", "transformer_1", "transformer_2")
        for path in [tiny_run / name / "models_checkpoint/best.pt"]
    }
    expected = validation["autoencoder"]["val_psnr"]
    assert content["reconstruction"][0]["psnr"] == pytest.approx(expected, abs=1e-3)
    for number, row in enumerate(content["bits"][1:]):
        assert row["bits"] == pytest.approx(validation[f"transformer_{number}"]["stage_bits"], rel=1e-4)
    assert content["bits"][0]["bits"] == pytest.approx(
        validation["transformer_0"]["image_bits"] - validation["transformer_0"]["stage_bits"]
    )


def test_no_set_is_made_from_the_images_that_it_is_compared_with(evaluated, tiny_run, faces, tmp_path, monkeypatch):
    """Reconstructions of a perfect autoencoder come out at the floor of independent images, not at 0."""
    perfect = lambda images, autoencoder, codebook=None: images  # noqa: E731
    monkeypatch.setattr("evaluation.evaluator.reconstruct", perfect)
    original = Evaluator.quantized

    def quantized(self, indices, name, *sides):
        original(self, indices, name, *sides)
        return self.features_after(indices, None, name)

    monkeypatch.setattr(Evaluator, "quantized", quantized)
    floor, *reconstructions, samples = run_on(tiny_run, faces, tmp_path, "--batch-size", 4)["distances"]
    assert floor == evaluated[1]["distances"][0]
    expected = {key: value for key, value in floor.items() if key != "name"}
    for row in reconstructions:
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert samples == evaluated[1]["distances"][-1]


def test_novelty_names_the_nearest_training_image_of_every_sample(evaluated, faces):
    out, content = evaluated
    measured = content["novelty"]
    assert sorted(row["sample"] for row in measured["nearest"]) == list(range(content["num_images"]))
    distances = [row["distance"] for row in measured["nearest"]]
    assert distances == sorted(distances)
    dataset = ImageDataset(faces)
    training = {dataset.image_key(index) for index in dataset.split(BOUNDS).training}
    assert {row["image_path"] for row in measured["nearest"]} <= training
    assert measured["samples"]["share"] == np.mean(np.array(distances) <= measured["threshold"])
    assert measured["held_out"]["share"] <= 1 / content["num_images"]
    assert 0 <= measured["share_low"] <= measured["samples"]["share"] <= measured["share_high"] <= 1
    picture = Image.open(out / measured["pairs"])
    columns = min(content["num_images"], 10)
    assert picture.size == (columns * 34 + 2, content["num_images"] // columns * 2 * 34 + 2)
    for column, row in enumerate(measured["nearest"][:columns]):  # the training image above
        shown = picture.crop((column * 34 + 2, 2, column * 34 + 34, 34))
        pair = Image.open(faces.parent / row["image_path"])
        assert shown.tobytes() in (pair.tobytes(), pair.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes())


def test_a_cascade_that_writes_training_images_by_heart_is_found_out(tiny_run, faces, tmp_path, monkeypatch, capsys):
    def by_heart(self, *_):
        images = self.dataset[self.training[: self.number]]
        tokens = self.cascade.tokens(torch.cat((images[:-1], images[-1:].flip(-1))))
        return tokens, torch.zeros(len(images), len(tokens) - 1)

    monkeypatch.setattr(Evaluator, "draw", by_heart)
    monkeypatch.setattr(ImageDataset, "original", lambda self, index: f"IMG {index}.heic")
    content = run_on(tiny_run, faces, tmp_path)
    number = content["num_images"]
    assert content["novelty"]["samples"]["share"] >= (number - 1) / number
    assert content["novelty"]["held_out"]["share"] <= 1 / number
    assert content["novelty"]["nearest"][number - 2]["distance"] < 1e-3 < content["novelty"]["threshold"]
    match = content["novelty"]["nearest"][0]
    line = f"sample {match['sample']} looks like the training image {match['original_path']} (distance 0.00)"
    assert line in capsys.readouterr().out and match["original_path"].startswith("IMG ")
    assert [row["distance"] for row in content["novelty"]["layout"]["nearest"]] == [0.0] * number


def test_layouts_by_heart_are_found_where_the_finest_tokens_are_others(tiny_run, faces, tmp_path, monkeypatch):
    def by_heart(self, *_):
        true = self.cascade.tokens(self.dataset[self.training[: self.number]])
        tokens = [*true[:-1], (true[-1] + 1) % len(self.cascade.codebooks[-1])]
        return tokens, torch.zeros(len(tokens[0]), len(tokens) - 1)

    monkeypatch.setattr(Evaluator, "draw", by_heart)
    novelty = run_on(tiny_run, faces, tmp_path)["novelty"]
    layout, number = novelty["layout"], len(novelty["nearest"])
    assert layout["samples"] == {"median_distance": 0.0, "share": 1.0} and novelty["samples"]["share"] < 0.5
    assert 1 / number < layout["share_low"] and layout["held_out"]["median_distance"] > 0
    assert (layout["pairs"], layout["layout"]) == ("", None)
    assert "| 0.0% | 100.0% (" in (tmp_path / "table.md").read_text()


def test_the_nearest_by_tokens_share_most_tokens():
    training = torch.tensor([[1, 2, 3, 4], [9, 9, 9, 9]])
    tokens = torch.tensor([[1, 2, 3, 9], [9, 8, 7, 6], [5, 5, 5, 5]])
    near = Nearest.by_tokens(training, tokens)
    assert near.distance.tolist() == [0.25, 0.75, 1.0] and near.index.tolist() == [0, 1, 0]
    equal = Nearest.by_tokens(training, training)  # all at the threshold, which is 0
    assert equal.nearness(equal.threshold).share == 1


def test_the_file_has_its_public_keys_and_the_table_its_numbers(evaluated):
    out, content = evaluated
    assert list(content) == [
        "extractor", "num_images", "num_held_out", "num_training", "seed", "settings", "reconstruction", "bits",
        "distances", "novelty", "missing", "seconds", "decoder", "levels", "no_test", "models", "num_groups",
    ]  # fmt: skip
    kinds = ["kernel", "kernel_low", "kernel_high", "precision", "recall"]
    assert list(content["distances"][0]) == ["name", *kinds]
    assert list(content["levels"][0]) == [
        "name", "kernel", "kernel_low", "kernel_high", "precision", "recall", "floor", "floor_low", "floor_high",
        "floor_precision", "floor_recall", "num_drawn", "bits", "bits_low", "bits_high", "test_bits",
    ]  # fmt: skip
    novelty_keys = ["threshold", "samples", "share_low", "share_high", "held_out", "pairs", "nearest", "layout"]
    assert list(content["novelty"]) == novelty_keys
    assert list(content["novelty"]["samples"]) == ["median_distance", "share"]
    assert list(content["novelty"]["nearest"][0]) == ["sample", "image_path", "distance", "original_path"]
    results = load_config(EvaluationFolder(out).results, Results)
    assert json.loads(json.dumps(dataclasses.asdict(results))) == content
    assert results.distance(SAMPLES).kernel == content["distances"][-1]["kernel"]
    table = (out / "table.md").read_text()
    assert content["extractor"] in table
    rows = [f"{row['name']} | {row['psnr']:.2f} |" for row in content["reconstruction"]]
    rows += [f"{row['name']} | {row['tokens']} | {row['bits']:.1f} |" for row in content["bits"]]
    both = content["distances"] + content["levels"]
    rows += [f"{row['name']} | {row['kernel']:.4f} ({row['kernel_low']:.4f} to " for row in both]
    bits = "{bits:.1f} ({bits_low:.1f} to {bits_high:.1f}) | {test_bits:.1f} |"
    rows += [bits.format(**row) for row in content["levels"]]
    assert [row for row in rows if f"| {row}" not in table] == []
    assert f"nearer than {content['novelty']['threshold']:.2f}" in table


def test_a_run_is_evaluated_as_far_as_it_has_come(tiny_run, faces, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run / "autoencoder", run / "autoencoder")
    content = run_on(run, faces, tmp_path / "out")
    assert [row["name"] for row in content["reconstruction"]] == ["autoencoder"]
    assert (content["bits"], content["novelty"], content["settings"]) == ([], None, {})
    assert [row["name"] for row in content["distances"]] == ["training images", "reconstructions"]
    starts = [line.split(":")[0] for line in content["missing"]]
    assert starts == ["codebook_cond", "codebook_0", "stage 0", "samples"]
    for name in ("feature_maps", "codebook_cond", "codebook_0", "codebook_1", "transformer_0"):
        shutil.copytree(tiny_run / name, run / name)
    (run / "codebook_1/models_checkpoint/pruned_codebook.pt").unlink()
    shutil.copy(tiny_run / "generate.json", run)
    content = run_on(run, faces, tmp_path / "out")
    assert [row["name"] for row in content["bits"]] == ["condition", "stage 0"]
    assert content["reconstruction"][-1]["name"] == "after codebook_1"
    assert content["distances"][-1]["name"] == "quantized reconstructions"
    starts = [line.split(":")[0] for line in content["missing"]]
    assert starts == ["codebook_2", "stage 1", "stage 2", "samples"]
    assert [row["name"] for row in content["levels"]] == ["stage 0"]
    assert "and so are the levels of stage 1 and finer ones" in content["missing"][-1]
    assert all(f"- {line}" in (tmp_path / "out/table.md").read_text() for line in content["missing"])


def test_several_processes_measure_what_one_does(evaluated, tiny_run, faces, tmp_path):
    out, one = evaluated
    work = (tiny_run, "--dataset-path", faces, "--device", "cpu", "--batch-size", 4, "--out-dir", tmp_path / "several")
    assert run_job(lambda _: run_main(evaluate.main, *work), tmp_path / "job", 3) == [(0, "")] * 3
    several = flat(json.loads((tmp_path / "several/evaluation.json").read_text()))
    near = {place: pytest.approx(value, rel=1e-4) for place, value in flat(one).items() if isinstance(value, float)}
    assert several == flat(one) | near | {"/seconds": several["/seconds"]}
    assert (out / "pairs.png").read_bytes() == (tmp_path / "several/pairs.png").read_bytes()


def flat(value, name=""):
    """All that a JSON value holds, by its place."""
    parts = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else None
    if parts is None:
        return {name: value}
    return {place: inner for key, part in parts for place, inner in flat(part, f"{name}/{key}").items()}


def test_bad_inputs_are_named_in_one_line(run_with_images, tmp_path, monkeypatch, capsys, write_json):
    def complaint(*argv):
        return expect_error(capsys, evaluate.main, argv)

    run = run_with_images
    assert "no such folder" in complaint(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "nothing to evaluate" in complaint(tmp_path / "empty")
    assert "absent.json: no such data set" in complaint(run, "--dataset-path", tmp_path / "absent.json")
    assert "holds no dataset.json" in complaint(run, "--dataset-path", tmp_path / "empty")
    Image.new("RGB", (64, 64)).save(tmp_path / "large.png")
    large = write_json(tmp_path / "dataset.json", {"_default": {"1": {"image_fpath": "large.png"}}})
    assert f"{large}: is not the data set that the run was trained on" in complaint(run, "--dataset-path", large)
    with monkeypatch.context() as patch:
        patch.setattr(TrainedRun, "bounds", Bounds(0.0, 0.0))
        line = complaint(run)
        assert "data/dataset.json: there is no test image that all steps of the run have held out" in line
        patch.setattr("utils.runtime.cli.find_spec", lambda name: None if name == "torchmetrics" else object())
        assert "torchmetrics is not installed: pip install -r requirements-extra.txt" in complaint(run)
    (run / "generate.json").write_text("{")
    assert "generate.json: not valid JSON" in complaint(run)
    write_json(run / "generate.json", {"0": {"modelpath": "a"}})
    assert "did you mean 'model_path'" in complaint(run)
    regroup(run / "data/dataset.json", lambda record: record["image_fpath"][-8:])
    line = complaint(run)
    assert "data/dataset.json: is not the data set that the run was trained on, or was made anew since" in line
    shutil.rmtree(run / "data")
    assert "--dataset-path" in complaint(run)
    assert not (run / "evaluation/evaluation.json").exists()


def regroup(path, group_of):
    with edited(path) as content:
        for record in content["_default"].values():
            record["group"] = group_of(record)
