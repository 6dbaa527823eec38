"""The benchmarks run, at a small size; what they measure is in the documents."""

import json
import math
import re
import shutil
from itertools import product
from timeit import timeit

import pytest
import torch
from PIL import Image
from torch import nn

import train_quantized_transformer
from benchmarks import (
    ablation,
    codebook,
    common,
    full_width,
    generation,
    intervals,
    processes,
    quality,
    rates,
    reading,
    sampling,
    scale,
    scaling,
    stages,
    transformer,
)
from benchmarks.ablation import Row
from evaluation.features import EfficientNetFeatures
from evaluation.results import SETS, Distance, Reconstruction, Results
from models.requests import load_generation_config
from models.transformer import TransformerConfig
from scripts.recipe import check
from tests.helpers.runs import latest
from tests.helpers.scripts import TINY, expect_error
from utils.core.config import load_config
from utils.data.dataset import ImageDataset
from utils.runs.chain import Recipe, steps_of
from utils.runs.folders import RunFolder


def numbers_of(output):
    """The cells of the tables that were printed, without their headings."""
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_codebook_benchmark(tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(codebook, "SIZES", ((8, 4, 10, None), (2, 16, 20, 30)))
    monkeypatch.setattr(codebook, "OTHERS", ((4, 8),))
    monkeypatch.setattr(codebook, "RADII", (0, 1))
    monkeypatch.setattr(codebook, "MINISOM_PASSES", 1)
    codebook.main(["--dataset-path", str(tiny_run / "feature_maps/dataset.json")])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    names = [row[0].strip() for row in rows if row[0].strip()]
    expected = []
    for steps in (10, 20):
        expected += [
            "k-means, converged",
            "k-means, arranged",
            "MiniBatchKMeans",
            f"this map, {steps} steps",
            r"this map, \d+ steps",
        ]
        expected += ["minisom, 1 passes"]
    expected += ["0", "1", "k-means, converged", "this map"]
    assert len(names) == len(expected)
    assert all(re.fullmatch(pattern, name) for pattern, name in zip(expected, names, strict=True))
    for row in rows:
        if row[0].strip():
            seconds, error, torn = (float(cell) for cell in row[1:4])
            assert seconds >= 0 and error > 0 and 0 <= torn <= 1
            assert error == 1 or row[0].strip() not in ("k-means, converged", "0")


def test_the_benchmark_of_limits(monkeypatch, capfd):
    monkeypatch.setattr(codebook, "LIMITS", ((4, 2, 8, 20, 4),))
    codebook.main(["--limits"])
    numbers = capfd.readouterr().out.splitlines()[-1].split("|")[1:-1]
    assert [int(number) for number in numbers[:4]] == [16, 8, 4, 0]
    assert int(numbers[4]) >= 0


def test_the_benchmark_of_transformers(tiny_run, monkeypatch, capfd):
    for name, value in {"STEPS": 1, "TIMES": 1, "SEQUENCES": 64, "LENGTHS": ((32, 64),)}.items():
        monkeypatch.setattr(transformer, name, value)
    monkeypatch.setattr(transformer, "seconds", lambda call, _: timeit(call, number=1))
    monkeypatch.setattr(stages, "CONFIGS", TINY)
    transformer.main([str(tiny_run)])
    rows = numbers_of(capfd.readouterr().out)
    served, shares, steps, memory = rows[1:3], rows[4:10], rows[11:15], rows[16:]
    assert [row[0] for row in served] == ["8", "64"]
    assert all(float(row[1].replace(",", "")) > 0 for row in served)
    assert [row[:2] for row in shares] == [[str(n), precision] for n in range(3) for precision in ("bf16", "fp32")]
    assert all(float(row[4]) > 0 for row in shares)
    assert [row[0] for row in steps] == ["AdamW", "Muon in bfloat16", "Muon in float32", "torch.optim.Muon"]
    assert all(float(row[1]) > 0 for row in steps)
    assert [row[0] for row in memory] == ["2,048"]
    assert all(int(cell) >= 0 for row in memory for cell in row[1:])


def test_bare_products_are_timed_once_each_in_the_precision_that_they_run_in():
    layer, x = nn.Linear(256, 256), torch.randn(512, 256)
    with transformer.BareProducts() as bare:
        once = layer(x)
        torch.ones(3).exp()
    assert bare.seconds > 0 and list(bare.timed.values()) == [bare.seconds]
    with bare:
        layer(once)
    assert list(bare.timed.values()) == [bare.seconds / 2]
    with bare, torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()  # of the weights alone: a product forward and one backward
    assert len(bare.timed) == 3
    assert [key[-1][-1] for key in bare.timed] == [torch.float32, torch.bfloat16, torch.bfloat16]


def test_the_benchmark_of_generation(monkeypatch, capsys):
    sizes = {
        "COARSE": (2, 2),
        "FINE": (8, 16),
        "UNITS": 9,
        "PREFIXES": (1, 64, 128),
        "IMAGES": 2,
        "WARM": 40,
        "SIDE": 64,
    }
    for name, value in {**sizes, "STEPS": 8, "LENGTHS": ((8, 16), (16, 16))}.items():
        monkeypatch.setattr(generation, name, value)
    many = generation.SamplingConfig(num_beam=4, beam_width=2)
    monkeypatch.setattr(generation, "ROWS", {1: (1, generation.SamplingConfig()), 8: (2, many)})
    generation.main(["--config-path", str(TINY / "transformer_2.json")])
    tables = numbers_of(capsys.readouterr().out)
    slow = [row for row in tables if len(row) == 5 and row[0] in ("fp32", "bf16")]
    assert [row[0] for row in slow] == ["fp32", "bf16"]
    assert all(float(row[4]) > 1 for row in slow)
    floor = [row for row in tables if row[0] in ("1", "8")]
    assert [(row[0], row[1]) for row in floor] == [(rows, name) for rows in ("1", "8") for name in ("fp32", "bf16")]
    for row in floor:
        shares = [float(cell.removesuffix("%")) for cell in row[6:]]
        assert sum(shares) == pytest.approx(100, abs=4)
        assert float(row[4]) > 0
    assert [row[0] for row in tables[-2:]] == ["128", "256"]


def test_the_floor_counts_bytes_and_operations():
    stage = generation.build(load_config(TINY / "transformer_2.json", TransformerConfig), (8, 8))
    decoder = generation.CachedDecoder(stage.transformer, 6, generation.coarse_tokens(3))
    weights = generation.weights_of(stage.transformer)
    # 2 layers of width 32 and 64 in the MLP: 4 matrices of self-attention, 2 of cross-attention, 3 and the head.
    assert weights == 2 * (6 * 32 * 32 + 3 * 32 * 64 + 3 * 32 + 4 * 16) + 512 * 32
    num_bytes, operations = generation.work_of(decoder, 6, torch.bfloat16, weights)
    # A row holds a window of 16 and position 0, an image 256 coarse tokens.
    assert num_bytes == 2 * (weights + 2 * (6 * 17 + 3 * 256) * 32 * 2)
    assert operations == 6 * (2 * weights + 4 * (17 + 256) * 32 * 2)


def test_features_tell_images_apart_and_do_not_depend_on_the_batch():
    features = EfficientNetFeatures()
    images = torch.rand(66, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = features(images)
    assert found.shape == (66, 1280)
    assert torch.allclose(found[65:], features(images[65:]), atol=1e-3)
    assert torch.cdist(found, found).add(torch.eye(66) * 99).min() > 0.1


@pytest.mark.parametrize("guided", [False, True])
def test_the_benchmark_of_sampling(guided, faces, tiny_run, monkeypatch, capsys):
    tried = {"settings of the config": {}, "temperatures": ({"temperature": 1.0}, {"temperature": 0.5}, {})}
    monkeypatch.setattr(sampling, "GUIDED" if guided else "SETTINGS", tried)
    sampling.main([str(tiny_run), "--dataset-path", str(faces), *(["--guided"] if guided else [])])
    rows = numbers_of(capsys.readouterr().out)[1:]
    names = ["validation images", "training images", "their reconstructions"]
    names += [f"from the tokens of stage {number}" for number in (2, 1, 0)] + ["from the condition"]
    names += [f"written from stage {number} on, after the true tokens of stage {number - 1}" for number in (2, 1)]
    names += tried
    assert [row[0] for row in rows] == names
    assert rows[0][1:3] == ["", ""] and all(row[3:5] == ["", ""] for row in rows[1:9]), "of what a set is made from"
    assert float(rows[1][1]) < min(float(row[1]) for row in rows[2:])
    assert all(all(row) for row in rows[9:])


def test_the_search_keeps_the_temperatures_with_the_smallest_distance(tiny_run, capsys):
    """Of a distance that is least at 0.85 of the first, 0.7 of the second and the third as it is."""
    run = RunFolder(tiny_run)
    given = [config.temperature for config in load_generation_config(run.generation)]
    best, tried = [given[0] * 0.85, given[1] * 0.7, given[2]], []

    def measure(name, setting):
        tried.append(name)
        return sum(abs(one["temperature"] - other) for one, other in zip(setting, best, strict=True))

    sampling.search(run, measure)
    assert len(tried) == len(set(tried)) == 1 + 3 * len(sampling.FACTORS)
    assert capsys.readouterr().out.strip().endswith(f": {', '.join(f'{value:.2g}' for value in best)}")


def test_the_benchmark_of_intervals(faces, tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(intervals, "DEALS", 2)
    intervals.main([str(tiny_run), "--dataset-path", str(faces)])
    rows = numbers_of(capsys.readouterr().out)[1:]
    names = ["floor", "quantized"]
    assert [row[:2] for row in rows] == [[kind, name] for kind in ("kernel", "Fréchet") for name in names]
    assert all(float(cell) > 0 for row in rows for cell in row[3:5])


def test_no_two_dealt_sets_share_an_image():
    dealt = [*intervals.deal(50, 6, 0)]
    assert len(dealt) == 4
    indices = torch.cat([part for pair in dealt for part in pair]).tolist()
    assert len(set(indices)) == len(indices) == 48


def test_the_benchmarks_train_as_the_recipe_of_the_demo():
    assert all(settings | stages.RECIPE == settings for settings in stages.STAGES)
    configs = [json.loads((stages.CONFIGS / f"{name}.json").read_text()) for name in ("transformer_2", "autoencoder")]
    assert [*rates.DEPTHS.values()] == [configs[0]["num_dec_layers"], configs[1]["num_dec_res_blocks"]]


@pytest.fixture
def in_this_process(monkeypatch):
    """The runs of the ablation and of the rates, one after another, on the tiny configs."""

    class Pool:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def imap_unordered(self, function, jobs):
            return map(function, jobs)

    monkeypatch.setattr(common, "get_context", lambda _: type("Context", (), {"Pool": lambda *_, **__: Pool()}))
    monkeypatch.setattr(stages, "CONFIGS", TINY)


def test_drawn_tokens_are_the_same_whatever_the_variant(tiny_run, in_this_process, monkeypatch):
    drawn, original = [], ablation.draw_coarse
    monkeypatch.setattr(ablation, "draw_coarse", lambda *given: drawn.append(original(*given)) or drawn[-1])
    for name in ("full", "ungated MLP"):
        ablation.run_stage(Row(name), 0, folder=tiny_run, number=1, seconds=0.01)
    assert drawn[0].equal(drawn[1])


def test_the_ablation_measures_validation_images_or_test_images(tiny_run, in_this_process, monkeypatch):
    measured, demo = [], stages.DemoStage.read(tiny_run, 1)
    monkeypatch.setattr(ablation, "loss_of", lambda _, data, indices: measured.append(data[indices][1]) or 1.0)
    for test in (False, True):
        ablation.run_stage(Row("full"), 0, folder=tiny_run, number=1, seconds=0.01, test=test)
    expected = [demo.validation] * 2 + [demo.test] * 2  # from true coarse tokens, and from drawn ones
    assert [len(fine) for fine in measured] == [len(images) for images in expected]
    assert all(fine.equal(demo.tokens[images][1]) for fine, images in zip(measured, expected, strict=True))
    assert not set(demo.validation) & set(demo.test)


@pytest.mark.parametrize(("number", "names"), [(0, ["full", "fp32", "plain block"]), (1, list(ablation.STAGES))])
def test_the_ablation(number, names, tiny_run, in_this_process, monkeypatch, capsys):
    options = ["--stage", str(number), "--seconds", "0.1", "--seeds", "2", "--only", *names]
    ablation.main([str(tiny_run), *options])
    rows = numbers_of(capsys.readouterr().out)[1:]
    assert [row[0] for row in rows] == names
    for name, steps, _, loss, spread, drawn, _, share in rows:
        assert int(steps) >= 1, name
        assert 0 < float(loss) < 10
        assert float(spread) >= 0
        assert float(share) > 0.1
        assert number == 1 or drawn == loss


def test_what_the_ablation_takes_out_is_out(tiny_run, in_this_process):
    demo = stages.DemoStage.read(tiny_run, 1)

    def build(name):
        return ablation.build(Row(name), demo).model

    def classes(name):
        return {type(module).__name__ for module in build(name).modules()}

    assert "GatedMLP" in classes("full") and "GatedMLP" not in classes("ungated MLP")
    assert isinstance(build("no query-key norm").transformer.decoder[0].cross_attention.key_norm, nn.Identity)
    near, far = (build(name).transformer.embed.token.weight for name in ("full", "random vectors of tokens"))
    pairs = demo.fine.nearest(demo.fine.units, 2)[1]
    distances = [(vectors[pairs[:, 0]] - vectors[pairs[:, 1]]).norm(dim=1).mean() for vectors in (near, far)]
    assert distances[0] < 0.7 * distances[1]
    assert sum(p.numel() for p in build("ungated MLP").parameters()) == pytest.approx(
        sum(p.numel() for p in build("full").parameters()), rel=0.05
    )


@pytest.mark.parametrize(
    ("name", "optimizers", "share"),
    [
        ("full", {"AdamW", "Muon"}, 1),
        ("full, rate 0.5", {"AdamW", "Muon"}, 0.5),
        ("AdamW alone, rate 2", {"AdamW"}, 2),
        ("plain block", {"AdamW"}, 1),
        ("plain block, linear projections, rate 0.25", {"AdamW"}, 0.25),
    ],
)
def test_what_moves_the_weights_in_the_ablation(name, optimizers, share, tiny_run, in_this_process):
    row = Row.read(name)
    assert str(row) == name
    learner = ablation.build(row, stages.DemoStage.read(tiny_run, 1))
    assert {type(optimizer).__name__ for optimizer in learner.optimizers.values()} == optimizers
    groups = [group for optimizer in learner.optimizers.values() for group in optimizer.param_groups]
    assert sum(len(group["params"]) for group in groups) == len(list(learner.model.parameters()))
    usual = ablation.build(Row("full"), stages.DemoStage.read(tiny_run, 1))
    assert learner.peak == pytest.approx(share * usual.peak)


def test_the_ablation_trains_each_variant_at_each_rate(tiny_run, in_this_process, monkeypatch, capsys):
    options = ["--seconds", "0.05", "--seeds", "1", "--rates", "0.5", "1", "--only", "full", "4 heads, rate 2"]
    ablation.main([str(tiny_run), *options])
    output = capsys.readouterr().out
    rows = numbers_of(output)[1:]
    assert [row[0] for row in rows] == ["full, rate 0.5", "full", "4 heads", "4 heads, rate 2"]
    assert min(float(row[-1]) for row in rows[:2]) == 1
    assert re.findall(r"^Best rate of (.*): [\d.]+, at an end of", output, flags=re.M) == ["full", "4 heads"]


@pytest.fixture
def run_with_images(tiny_run, faces, tmp_path):
    """The tiny run and its images, as scripts/demo.py puts them."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.copytree(faces.parent, run / "data")
    return run


@pytest.mark.parametrize(
    ("model", "widths", "depths", "sizes"), [("stage", "16 32", "1", "4 8"), ("autoencoder", "16", "1 2", "8")]
)
def test_the_benchmark_of_rates_trains_each_size_at_each_rate(
    model, widths, depths, sizes, run_with_images, in_this_process, monkeypatch, capsys
):
    widths, depths, sizes = widths.split(), depths.split(), sizes.split()
    options = ["--widths", *widths, "--depths", *depths, "--batch-sizes", *sizes, "--rates", "0.01", "1", "100"]
    rates.main([str(run_with_images), model, *options, "--steps", "30", "--seeds", "2"])
    rows = numbers_of(capsys.readouterr().out)[1:]
    assert [tuple(row[:4]) for row in rows] == [*product(widths, depths, sizes, ["30"])]
    for row in rows:
        losses = [float(cell) for cell in row[4:7]]
        assert losses[1] < losses[0]  # at a hundredth of the rate hardly anything is learned
        assert len(row[8].split(", ")) == 2


@pytest.mark.parametrize("name", ["demo-64", "tiny-32"])
def test_a_share_of_a_recipe_has_that_share_of_its_steps(name):
    recipe = Recipe.find(name)
    quarter = quality.share_of(recipe, 0.25)
    assert quarter.settings.keys() == recipe.settings.keys()
    for section, options in recipe.settings.items():
        expected = {key: round(value / 4) for key, value in options.items() if key in quality.STEPS}
        expected |= {key: math.ceil(value / 4) for key, value in options.items() if key == "max_epoch"}
        assert expected or section in ("feature_maps", "prune", "generate")
        assert quarter.settings[section] == options | expected
    assert quality.share_of(recipe, 1e-9).settings["transformer_2"]["max_step"] == 1


def test_the_benchmark_of_quality_shows_each_share(tmp_path, monkeypatch, capsys):
    rows = tuple(Distance(name, 0.1 * number, 0, 1, 1, 1, 1, 0.5, 0.75, 2.0) for number, name in enumerate(SETS))
    results = Results(
        "", 4, 4, 4, 0, {}, (Reconstruction("autoencoder", 30.0, 0.9),), (), rows, None, (), 1.0, "autoencoder"
    )
    trained = []

    def train(dataset, recipe, out):
        out.mkdir(parents=True)
        trained.append(recipe)
        return 60.0 * len(trained), results

    monkeypatch.setattr(quality, "train", train)
    options = ["--out-dir", str(tmp_path / "out"), "--recipe", "tiny-32", "--shares", "1", "0.5"]
    quality.main(["data.json", *options])
    assert [recipe.settings["decoder"]["max_step"] for recipe in trained] == [150, 300]
    assert numbers_of(capsys.readouterr().out)[1:] == [
        ["0.5", "1.0", "30.0", "0.100", "0.200", "0.300", "0.50", "0.75"],
        ["1", "2.0", "30.0", "0.100", "0.200", "0.300", "0.50", "0.75"],
    ]
    assert Image.open(tmp_path / "out/quality.png").size == (700, 400)


def test_the_benchmark_of_autoencoders(run_with_images, in_this_process, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "COMPARED", 8)
    names = ["full", "AdamW alone", "edge weight 0", "moving average"]
    ablation.main([str(run_with_images), "--autoencoder", "--seconds", "0.3", "--seeds", "2", "--only", *names])
    rows = numbers_of(capsys.readouterr().out)[1:]
    assert [row[0] for row in rows] == names
    assert all(float(row[1]) >= 1 and 3 < float(row[5]) < 40 and float(row[9]) > 0 for row in rows)
    assert rows[0][-1] == "1.000"


def test_a_variant_of_the_autoencoder_changes_what_its_name_says(run_with_images, in_this_process):
    dataset = ImageDataset(run_with_images / "data/dataset.json")

    def build(name):
        return stages.autoencoder_learner(run_with_images, dataset, *ablation.AUTOENCODERS[name])

    full = build("full")
    assert set(full.optimizers) == {"optimizer", "muon"} and full.average is None
    assert set(build("AdamW alone").optimizers) == {"optimizer"}
    assert build("moving average").average is not None
    assert build("batch size 16").peak == pytest.approx(2**0.5 * full.peak)
    for name in ("edge weight 0", "squared error", "48 and 96 wide", "latent noise 0.1", "3 blocks a resolution"):
        assert build(name).model.config != full.model.config


def test_the_best_rate_is_where_a_parabola_is_least():
    losses = {rate: math.exp((math.log2(rate) - 0.3) ** 2) for rate in (0.25, 0.5, 1, 2, 4)}
    assert rates.best_rate(losses) == pytest.approx(2**0.3)
    assert math.isnan(rates.best_rate({0.5: 1.0, 1.0: 2.0, 2.0: 3.0}))


def test_the_best_rate_of_each_variant_is_named(capsys):
    losses = {"full": (0.6, 0.5, 0.7), "AdamW alone": (0.9, 0.8, 0.7), "fp32": (0.6, math.nan, math.nan)}
    results = {Row("4 heads"): [(9, 9, 0.1, 0.1)]}
    for name, found in losses.items():
        results |= {Row(name, 2**number): [(9, 9, loss, 0.0)] for number, loss in enumerate(found)}
    ablation.print_best_rates(results)
    assert [line for line in capsys.readouterr().out.splitlines() if line] == [
        "Best rate of full: 2",
        "Best rate of AdamW alone: 4, at an end of the grid: add rates beyond it",
        "Best rate of fp32: 1, at an end of the grid: add rates beyond it",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--test", "--only", "full", "--rates", "1", "2"], "one rate for each variant"),
        (["--test", "--only", "full", "full, rate 2"], "one rate for each variant"),
        (["--only", "half the rate"], "'half the rate' is none of: full; "),
    ],
)
def test_the_ablation_refuses_to_choose_on_test_images_and_unknown_variants(options, message, capsys):
    assert message in expect_error(capsys, ablation.main, ["nowhere", *options])


@pytest.fixture(params=["plain block", "plain block, linear projections"])
def plain_learner(request, tiny_run, in_this_process):
    torch.manual_seed(0)
    return ablation.build(Row(request.param), stages.DemoStage.read(tiny_run, 1))


@torch.no_grad()
def test_the_plain_block_sees_the_tokens_before_and_none_after(plain_learner, tiny_run):
    stage, demo = plain_learner.model.eval(), stages.DemoStage.read(tiny_run, 1)
    coarse, fine = demo.tokens[demo.training[:2]]
    place, changed = 7, fine.clone()
    changed[:, place] = (fine[:, place] + 1) % len(demo.fine)
    one, other = (stage.transformer(stage.inputs_and_targets(coarse, tokens)[0], coarse) for tokens in (fine, changed))
    assert torch.allclose(one[:, : place + 1], other[:, : place + 1], atol=1e-5)
    assert not torch.allclose(one[:, place + 1], other[:, place + 1], atol=1e-3)
    assert not torch.allclose(one[:, place + 2], other[:, place + 2], atol=1e-3)


def test_the_plain_block_learns(plain_learner, tiny_run):
    demo = stages.DemoStage.read(tiny_run, 1)
    batch = demo.tokens[demo.training[:16]]
    losses = [float(plain_learner.update(batch, step)["loss"]) for step in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_plain_block_is_plain(plain_learner, tiny_run):
    model = plain_learner.model.transformer
    names = {type(module).__name__ for module in model.modules()}
    assert "Sinusoids" in names and not names & {"GatedMLP", "GridEmbedding"}
    attention = model.decoder[0].cross_attention
    assert isinstance(attention.query_norm, nn.Identity) and isinstance(attention.key_norm, nn.Identity)
    assert attention.out.weight.any() and model.head.weight.any()
    assert model.embed.token.weight.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("law", [(0.5, 20.0, 8.0, 0.35, 0.4), (0.0, 3.0, 50.0, 0.1, 0.8)])
def test_a_law_of_compute_is_found_again(law):
    sizes = product((1e5, 4e5, 2e6), (100, 300, 1000))
    runs = [rates.Run(steps, size, 0.0, rates.predict(law, size, steps)) for size, steps in sizes]
    found = rates.fit(runs)
    assert found == pytest.approx(law, abs=1e-6)
    assert rates.predict(found, 1e7, 1e5) == pytest.approx(rates.predict(law, 1e7, 1e5))


def test_losses_over_compute(tiny_run, in_this_process, monkeypatch, capsys):
    options = ["stage", "--law", "--seeds", "1", "--widths", "64", "128", "--steps", "2", "4"]
    options += ["--batch-sizes", "4", "--predict", "128", "100"]
    rates.main([str(tiny_run), *options])
    output = capsys.readouterr().out
    rows = numbers_of(output)[1:]
    assert sorted(row[:2] for row in rows) == [["128", "2"], ["128", "4"], ["64", "2"], ["64", "4"]]
    operations = {(row[0], row[1]): float(row[3]) for row in rows}
    assert operations["128", "4"] > operations["64", "4"] > 0
    assert re.search(r"^128 wide, [\d.]+ M parameters, 100 training steps: [\d.]+$", output, flags=re.M)
    most = operations["64", "4"] * 1.1
    rates.main([str(tiny_run), *options, "--most", str(most)])
    kept = {(row[0], row[1]) for row in numbers_of(capsys.readouterr().out)[1:]}
    assert kept == {size for size, number in operations.items() if number <= most}


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--predict", "128"], "give pairs of numbers"), (["--depths", "2", "4"], "give one depth and one batch size")],
)
def test_a_law_is_refused_what_it_cannot_fit(words, message, capsys):
    assert message in expect_error(capsys, rates.main, ["nowhere", "stage", "--law", *words])


def test_a_data_set_is_written_read_and_loaded(monkeypatch, capsys):
    monkeypatch.setattr(scale, "in_new_process", lambda function, *arguments: function(*arguments))
    scale.main(["--records", "6000"])
    rows = numbers_of(capsys.readouterr().out)[1:]
    assert [row[0] for row in rows] == list(scale.WORK)
    assert all(float(seconds) > 0 for _, seconds, *_ in rows)


def test_the_batches_of_an_epoch_or_one_in_its_middle_are_loaded(tmp_path):
    scale.write(tmp_path / "dataset.json", 600)
    assert (scale.load(tmp_path / "dataset.json", False), scale.load(tmp_path / "dataset.json", True)) == (3, 1)


def test_the_trainings_of_a_recipe_are_counted(monkeypatch, capsys):
    found = {row.name: row for row in scaling.trainings(Recipe.find("demo-64"))}
    assert [*found] == ["autoencoder", "decoder", "transformer_0", "transformer_1", "transformer_2"]
    stage, settings = found["transformer_2"], Recipe.find("demo-64").settings["transformer_2"]
    assert (stage.steps, stage.step_size) == (settings["max_step"], settings["batch_size"])
    # Six operations for each weight of a block and each token, besides the head's and those of attention.
    fine, coarse = (256 * layers for layers in (4, 3 / 4))
    blocks = stage.step_size * 6 * 128**2 * (fine * (4 + 4 + 6) + coarse * (4 + 6))
    assert blocks < stage.flops < 2 * blocks
    assert found["decoder"].flops < found["autoencoder"].flops
    assert 100 * 2**20 < stage.memory < 400 * 2**20
    scaling.main(["demo-64", "--share", "0.5"])
    rows = numbers_of(capsys.readouterr().out)
    assert len(rows) == 1 + 5 + 1
    total = sum(row.flops * row.steps for row in found.values())
    assert float(rows[-1][6].removesuffix(" h")) == pytest.approx(total / (0.5 * 165e12) / 3600, abs=0.051)


def test_a_recipe_at_its_full_width_and_its_finest_stage_at_other_rates(tiny_run, tmp_path, monkeypatch, capsys):
    asked = []

    def run_briefly(recipe, dataset, out, batch_size):
        asked.append((recipe.folder, dataset, batch_size))
        return RunFolder(shutil.copytree(tiny_run, out / "run"))

    def call(command, check):
        train_quantized_transformer.main(command[2:])

    monkeypatch.setattr(full_width, "run_briefly", run_briefly)
    monkeypatch.setattr(full_width.subprocess, "run", call)
    words = ["tiny-32", str(tmp_path / "dataset.json"), "--out-dir", str(tmp_path / "out"), "--batch-size", "3"]
    full_width.main([*words])
    assert asked == [(TINY, tmp_path / "dataset.json", 3)]
    rows = numbers_of(capsys.readouterr().out)[1:]
    names = ["autoencoder", "transformer_0", "transformer_1", "transformer_2"]
    assert [row[0] for row in rows] == [*names, "transformer_2, 0.25 times the rate", "transformer_2, 4 times the rate"]
    assert all(0 < float(loss) < 10 for row in rows for loss in row[1:])
    own = json.loads((TINY / "transformer_2.json").read_text())["model_lr"]
    folders = [tmp_path / f"out/run/transformer_2_rate_{rate}" for rate in ("0.25", "4")]
    given = [latest(folder)["config"]["transformer"]["model_lr"] for folder in folders]
    assert given == [own / 4, own * 4]


def test_the_steps_of_a_recipe_at_its_full_width_are_few_and_small(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(full_width, "run_recipe", lambda *words: called.append(words))
    kept = tmp_path / "out/kept.txt"
    kept.parent.mkdir()
    kept.touch()
    run = full_width.run_briefly(Recipe.find("tiny-32"), tmp_path / "d.json", tmp_path / "out", 3)
    ((recipe, options),) = called
    assert (options.dataset, options.out) == (tmp_path / "d.json", run.path)
    few = {"max_step": 30, "log_step": 10, "checkpoint_step": 30, "batch_size": 3, "grad_accum_step": 1}
    for section in ("autoencoder", "decoder", *recipe.stages):
        assert recipe.settings[section].items() >= few.items()
    assert {recipe.settings[stage]["test_num_sample"] for stage in recipe.stages} == {2}
    assert recipe.settings["generate"]["num_images"] == 2
    steps = steps_of(RunFolder(run.path, 3), recipe, options.dataset)
    check(recipe, steps, RunFolder(run.path, 3), recipe.folder / "generate.json")
    assert kept.exists()


def test_the_benchmark_of_reading(run_with_images, monkeypatch, capsys):
    reading.main([str(run_with_images), "--images", "20", "--rounds", "1"])
    rows = numbers_of(capsys.readouterr().out)[1:]
    ways = ["feature maps, a file each", "feature maps, packed"]
    ways = [*(way for way in ways for _ in range(2)), "packed maps, of a data set", "images in shards, in random order"]
    assert [row[0] for row in rows] == ways
    assert all(float(cell) > 0 for row in rows for cell in row[2:4])


def test_what_a_recipe_takes_on_a_cluster_is_counted(monkeypatch, capsys):
    scaling.main(["tiny-32", "--cluster", "--images", "1e9"])
    rows = {row[0]: row[1:] for row in numbers_of(capsys.readouterr().out)[1:]}
    hours = {name: [float(cell) for cell in row[:6]] for name, row in rows.items()}
    assert all(hours["transformer_2"][number] > hours["transformer_2"][number + 1] for number in (0, 1, 3, 4))
    parts = [row[0] for name, row in hours.items() if not name.startswith("all")]
    assert hours["all, hours"][0] == pytest.approx(sum(parts), abs=0.05)
    assert {"autoencoder", "feature maps", "codebooks", "decoder", "tokens", "all, GPU-hours"} <= rows.keys()


def test_two_processes_are_compared_with_one(tiny_run, monkeypatch, capsys):
    words = processes.trainings(RunFolder(tiny_run))["codebook_1"]
    words[words.index("--config-path") + 1] = TINY / "codebook_1.json"
    monkeypatch.setattr(processes, "trainings", lambda _: {"codebook_1": words})
    monkeypatch.setattr(processes, "products", lambda number: float(number))
    processes.main([str(tiny_run), "--rounds", "1"])
    training, bare = numbers_of(capsys.readouterr().out)[1:]
    assert (training[0], bare[1:4]) == ("codebook_1", ["1.0", "2.0", "2.00"])
    assert float(training[3]) > 0
    assert float(training[4].split()[0]) < 0.1
