"""The benchmarks run, at a small size; what they measure is in the documents."""

import dataclasses
import itertools
import json
import math
import re
from collections import Counter
from contextlib import nullcontext
from importlib import import_module
from timeit import timeit
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import ablation, generation, intervals, peers, quality, rates, sampling, scale, scaling, stages
from benchmarks.ablation import Row
from benchmarks.rivals import Flow, follow
from evaluation.results import SETS, Distance, Reconstruction, Results
from models.autoencoder import Autoencoder
from models.requests import change_sampling, load_generation_config
from models.transformer import TransformerConfig
from tests.helpers.runs import BOUNDS, SMALL
from tests.helpers.scripts import TINY, expect_error, run_main
from utils.core.config import load_config
from utils.core.files import UserError, write_file
from utils.data.dataset import FeatureMapDataset
from utils.runs.chain import Recipe
from utils.runs.folders import RunFolder


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """What runs in other processes, one after another in this one; and the recipe of the tiny run as the demo's."""

    pool = nullcontext(SimpleNamespace(imap_unordered=map))
    context = SimpleNamespace(Pool=lambda *_, **__: pool)
    monkeypatch.setattr("benchmarks.common.get_context", lambda _: context)
    for name in ("codebook", "scale"):
        monkeypatch.setattr(f"benchmarks.{name}.in_new_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(stages, "RECIPE", SMALL)


def numbers_of(output):
    """The cells of the tables that were printed."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line[:2] == "| "]


@pytest.fixture
def rows_of(monkeypatch, capfd):
    """A function: run a benchmark with other constants; return the cells of its tables, without the first heading."""

    def call(name, *argv, **small):
        for key, value in small.items():
            monkeypatch.setattr(f"benchmarks.{name}.{key}", value)
        run_main(import_module(f"benchmarks.{name}").main, *argv)
        return numbers_of(capfd.readouterr().out)[1:]

    return call


@pytest.fixture
def build(tiny_run):
    """A function: the task of a row of the ablation, and what it learns from."""
    return lambda row, name="transformer_1": ablation.build(Row.read(row), tiny_run, name)


def test_the_benchmark_of_codebooks(tiny_run, rows_of):
    small = {"SIZES": ((8, 4, 10, None),), "OTHERS": ((4, 8),), "RADII": (0, 1), "SEEDS": (0,), "MINISOM_PASSES": 1}
    maps = tiny_run / "feature_maps"
    rows = rows_of("codebook", "--dataset-path", maps / "dataset.json", **small)
    sizes, radii, batches = (row for row in rows if row[0] == maps.as_posix())
    assert sizes[1:3] == ["8×8", "4"] and batches[1:3] == ["4×4", "8"] and 0 < float(sizes[-1].rstrip("%")) <= 100
    for cells, number in ((sizes[3:-1], 6), (radii[1:], 2), (batches[3:], 2)):
        numbers = [re.fullmatch(r"(\S+) s, (\S+), (\S+)", cell).groups() for cell in cells]
        assert len(numbers) == number and float(numbers[0][1]) == 1
        assert all(float(seconds) >= 0 and float(error) > 0 for seconds, error, _ in numbers)
        assert all(0 <= float(torn) <= 1 for _, _, torn in numbers)
    (numbers,) = rows_of("codebook", "--limits", LIMITS=((4, 2, 8, 20, 4),))
    assert [int(number) for number in numbers[:4]] == [16, 8, 4, 0] and int(numbers[4]) >= 0


def test_the_benchmark_of_optimizers(tiny_run, rows_of):
    rows = rows_of("optimizers", tiny_run, seconds=lambda call, _: (call(), 1.0)[1])
    assert [row[0] for row in rows] == ["AdamW", "Muon in bfloat16", "Muon in float32", "torch.optim.Muon"]
    assert all(float(row[-1]) > 0 for row in rows)


def test_the_benchmark_of_generation(tiny_run, rows_of):
    small = {"COARSE": (2, 2), "FINE": (16, 16), "UNITS": 9, "IMAGES": 2, "PREFIXES": (1, 128, 256), "WARM": 40}
    small |= {"SIDE": 64, "STEPS": 8, "CONFIG": TINY / "transformer_2.json"}
    small |= {"ROWS": {8: (2, generation.SamplingConfig(num_beam=4, beam_width=2))}}
    small |= {"RECIPES": ("tiny-32",), "PICTURES": (1, 3)}
    rows = rows_of("generation", tiny_run, **small, seconds=lambda call: timeit(call, number=2) / 2)
    assert [row[:2] for row in rows[:4]] == [[name, number] for name in ("tiny-32", tiny_run.name) for number in "13"]
    assert all(float(seconds) >= 0 for row in rows[:4] for seconds in row[2:])
    slow, floor = rows[5:7], rows[8:10]
    assert [row[0] for row in slow] == [row[1] for row in floor] == ["fp32", "bf16"]
    assert all(float(row[4]) > 1 for row in slow)
    for row in floor:
        assert sum(float(cell.removesuffix("%")) for cell in row[6:]) == pytest.approx(100, abs=4)
        assert float(row[4]) > 0
    assert len(rows) == 10


def test_the_floor_counts_bytes_and_operations():
    stage = generation.third_stage(load_config(TINY / "transformer_2.json", TransformerConfig), (8, 8))
    decoder = generation.CachedDecoder(stage.transformer, 6, generation.coarse_tokens(3))
    weights = generation.weights_of(stage.transformer)
    # 2 layers of width 32 and 64 in the MLP: 4 matrices of self-attention, 2 of cross-attention, 3 and the head.
    assert weights == 2 * (6 * 32 * 32 + 3 * 32 * 64 + 3 * 32 + 4 * 16) + 512 * 32
    num_bytes, operations = generation.work_of(decoder, 6, torch.bfloat16, weights)
    # A row holds a window of 16 and position 0, an image 256 coarse tokens; they are kept in float32.
    assert num_bytes == 2 * weights + 4 * 2 * (6 * 17 + 3 * 256) * 32 * 2
    assert operations == 6 * (2 * weights + 4 * (17 + 256) * 32 * 2)


def test_the_benchmark_of_sampling(faces, tiny_run, rows_of):
    tried = {"settings of the config": {}, "temperature 0.8": ({}, {"temperature": 0.8}, {})}
    settings = {"SETTINGS": tried | {"temperature 0.7": {}, "top-p 0.9": ({}, {})}}  # one of two stages
    rows = rows_of("sampling", tiny_run, "--dataset-path", faces, "--only", *tried, "top-p 0.9", **settings)
    assert [row[0] for row in rows] == ["validation images", "training images", *tried]
    assert rows[0][1] == "" and rows[1][2:4] == ["", ""], "of what a set is made from"
    assert float(rows[1][1].split()[0]) < min(float(row[1].split()[0]) for row in rows[2:])
    assert all(all(row) for row in rows[2:])


def test_every_setting_of_sampling_is_one(tiny_run):
    configs = load_generation_config(RunFolder(tiny_run).generation)
    for setting in (sampling.SETTINGS | sampling.GUIDED).values():
        each = setting if isinstance(setting, tuple) else (setting,) * 3
        assert all(change_sampling([one], **new) for one, new in zip(configs, each, strict=True))


def test_the_benchmark_of_intervals_deals_sets_that_share_no_image(faces, tiny_run, rows_of):
    rows = rows_of("intervals", tiny_run, "--dataset-path", faces, DEALS=2)
    assert [row[0] for row in rows] == ["floor", "tilted a little", "tilted much", "quantized"]
    few = [row for row in rows if row[0].startswith("tilted")]  # one pair of a deal, which has no deviation
    assert all(float(cell) > 0 for row in rows if row not in few for cell in row[2:4])
    assert all(math.isfinite(float(row[1])) for row in few)
    dealt = [*intervals.deal(50, 6, 0)]
    scores = intervals.along_first_component(torch.arange(900.0)[:, None] * torch.tensor([0.6, 0.8])).float()
    assert scores.std() == pytest.approx(1) and scores.argsort(descending=bool(scores[0] > 0)).tolist() == [*range(900)]
    tilted = [*intervals.tilted_deal(scores, 100, 0, 1.0)]
    for pairs, number, size in ((dealt, 4, 6), (tilted, 3, 100)):
        indices = torch.cat([part for pair in pairs for part in pair]).tolist()
        assert len(pairs) == number and len(set(indices)) == len(indices) == 2 * number * size
    assert all(scores[drawn].mean() > 0.2 > scores[others].mean() for drawn, others in tilted)


def test_the_benchmark_of_novelty_finds_the_copies_that_it_makes(faces, tiny_run, rows_of):
    rows = rows_of("novelty", tiny_run, "--dataset-path", faces, COPIES=5)
    starts = ["copies of the finest tokens", "sampled from stage 2 on", "sampled from stage 1 on", "moved by 2 pixels"]
    assert [row[0] for row in rows] == starts
    assert rows[0][1:] == ["5", "5", "5"] and rows[1][3] == "5"


def test_a_task_of_the_demo_has_its_recipe_and_the_changes(tiny_run):
    usual, _ = stages.demo_task(tiny_run, "transformer_1")
    task, tokens = stages.demo_task(tiny_run, "transformer_1", {"in_dim": 64}, 0.5, batch_size=4)
    assert not task.options.resume and task.options.max_step == SMALL.settings["transformer_1"]["max_step"]
    config = load_config(TINY / "transformer_1.json", TransformerConfig)
    changed = dataclasses.replace(config, in_dim=64, model_lr=config.model_lr / 2)
    assert (usual.config.transformer, task.config.transformer) == (config, changed)
    assert task.learner.model.transformer.embed.token.weight.shape[1] == 64
    assert task.learner.peak == pytest.approx(usual.learner.peak / 2 * (4 / 16) ** 0.5)
    assert tokens[task.validation][1].equal(task.fine.find_bmu(task.dataset[task.validation]))


def test_the_ablation_measures_true_and_drawn_tokens_of_validation_images_or_test_images(build, tiny_run, monkeypatch):
    measured, validate = [], ablation.StageTask.validate
    monkeypatch.setattr(
        ablation.StageTask, "validate", lambda it: measured.append(it.tokens[it.validation]) or validate(it)
    )
    task, tokens = build("full")
    split = task.dataset.split(task.options.bounds)
    assert not set(split.validation) & set(split.test)
    for test, indices in ((False, split.validation), (True, split.test)):
        named = {"folder": tiny_run, "name": "transformer_1", "seconds": 0.2, "test": test}
        steps, parameters, *losses = ablation.run(Row("full"), 0, **named)
        assert steps >= 1 and parameters == stages.num_parameters(task.learner.model) and min(losses) > 0
        seen = [measured.pop(0), measured.pop(0)]
        same = [[one.equal(true) for one, true in zip(part, tokens[indices], strict=True)] for part in seen]
        assert same == [[True, True], [False, True]]  # coarse and fine tokens
    one, other = (ablation.draw_coarse(build(name)[0]) for name in ("full", "ungated MLP"))
    assert one.equal(other), "whatever the variant"
    true, drawn = ablation.losses(build("full", "transformer_0")[0])
    assert true == drawn > 0


def test_every_variant_of_a_stage_is_trained_and_what_it_takes_out_is_out(build):
    tasks = {}
    for name in ablation.STAGES:
        tasks[name], data = build(name)
        loss = tasks[name].update(data[tasks[name].training[:2]], 0)["loss"]
        assert 0 < float(loss) < 20, name
    names = ("full", "ungated MLP", "no query-key norm", "random vectors of tokens")
    full, ungated, bare, random = (build(name)[0].learner.model for name in names)
    assert ["GatedMLP" in {type(module).__name__ for module in model.modules()} for model in (full, ungated)] == [1, 0]
    assert isinstance(bare.transformer.decoder[0].cross_attention.key_norm, nn.Identity)
    near, far = (model.transformer.embed.token.weight for model in (full, random))
    fine = tasks["full"].fine
    pairs = fine.nearest(fine.units, 2)[1]
    distances = [(vectors[pairs[:, 0]] - vectors[pairs[:, 1]]).norm(dim=1).mean() for vectors in (near, far)]
    assert distances[0] < 0.7 * distances[1]
    assert stages.num_parameters(ungated) == pytest.approx(stages.num_parameters(full), rel=0.05)


@pytest.mark.parametrize(
    ("name", "optimizers", "share"),
    [("full, rate 0.5", ["AdamW", "Muon"], 0.5), ("AdamW alone, rate 2", ["AdamW"], 2), ("plain block", ["AdamW"], 1)],
)
def test_what_moves_the_weights_in_the_ablation(name, optimizers, share, build):
    assert str(Row.read(name)) == name
    usual, changed = (build(row)[0].learner for row in ("full", name))
    assert [type(optimizer).__name__ for optimizer in changed.optimizers.values()] == optimizers
    groups = [group for optimizer in changed.optimizers.values() for group in optimizer.param_groups]
    weights = Counter(weight for group in groups for weight in group["params"])
    assert weights == Counter(changed.model.parameters())
    assert changed.average.state_dict().keys() == changed.model.state_dict().keys()
    assert changed.peak == pytest.approx(share * usual.peak)


def test_the_ablation_trains_each_variant_at_each_rate(tiny_run, rows_of):
    options = ["--seconds", "0.2", "--seeds", "2", "--rates", "0.5", "1", "--only", "full", "AdamW alone, rate 2"]
    rows = rows_of("ablation", tiny_run, *options)
    assert [row[0] for row in rows] == ["full, rate 0.5", "full", "AdamW alone", "AdamW alone, rate 2"]
    assert all(int(row[1]) >= 1 and 0 < float(row[3]) < 20 and float(row[4]) >= 0 for row in rows)
    assert min(float(row[-1]) for row in rows[:2]) == 1


@pytest.mark.parametrize(("model", "size"), [("stage", {"in_dim": 16}), ("autoencoder", {"max_channel": 16})])
def test_the_benchmark_of_rates_trains_each_size_at_each_rate(model, size, run_with_images, rows_of):
    assert rates.size_of(model, 16).items() >= size.items()
    options = ["--widths", 16, "--batch-sizes", 4, 8, "--rates", 0.01, 1, "--steps", 15, "--seeds", 2]
    rows = rows_of("rates", run_with_images, model, *options)
    assert [row[:2] for row in rows] == [["16", size] for size in ("4", "8")]
    for row in rows:
        assert float(row[3]) < float(row[2])  # at a hundredth of the rate hardly anything is learned
        assert len(row[5].split(", ")) == 2


def test_a_share_of_a_recipe_has_that_share_of_its_steps():
    recipe = Recipe.find("tiny-32")
    quarter = quality.share_of(recipe, 0.25)
    assert quarter.settings.keys() == recipe.settings.keys()
    for section, options in recipe.settings.items():
        expected = {key: round(value / 4) for key, value in options.items() if key in quality.STEPS}
        expected |= {key: math.ceil(value / 4) for key, value in options.items() if key == "max_epoch"}
        assert expected or section in ("feature_maps", "prune", "generate")
        assert quarter.settings[section] == options | expected
    assert quality.share_of(recipe, 1e-9).settings["transformer_2"]["max_step"] == 1


def test_the_benchmark_of_quality_shows_auto_and_each_share(tmp_path, rows_of):
    rows = tuple(Distance(name, 0.1 * number, 0, 1, 1, 0.5, 0.75, 2.0) for number, name in enumerate(SETS))
    reconstruction, trained, ran = Reconstruction("autoencoder", 30.0, 0.9), [], []
    results = Results("", 4, 4, 4, 0, {}, (reconstruction,), (), rows, None, (), 1.0, "autoencoder")

    def train(dataset, recipe, out):
        trained.append(recipe)
        return 60.0 * len(trained)

    def run(script, *words):
        ran.append((script, *words))
        write_file(words[2] / "recipe/clock.json", json.dumps({"seconds": 90.0}))
        write_file(words[2] / "report.html", "")

    out = tmp_path / "out"
    options = ["--out-dir", out, "--minutes", 1.5, "--runs", 2, "--recipe", "tiny-32", "--shares", 1, 0.5]
    replaced = {"train_recipe": train, "evaluate": lambda *_: results, "run": run, "commit": lambda: "abc"}
    rows = rows_of("quality", "data.json", *options, **replaced)
    assert [(words[1], *words[3:]) for words in ran] == [
        ("auto", out / f"auto-1.5-{seed}", "--hours", 0.025, "--seed", seed) for seed in (0, 1)
    ]
    assert [recipe.settings["decoder"]["max_step"] for recipe in trained] == [150, 300]
    same = ["30.0", "0.100", "0.200", "0.300", "0.50", "0.75"]
    shares = (("tiny-32, 0.5 of the steps", "1.0"), ("tiny-32, 1 of the steps", "2.0"))
    expected = [[name, "abc", minutes, *same] for name, minutes in (*[("auto, 1.5 minutes", "1.5")] * 2, *shares)]
    assert rows == expected
    later = rows_of("quality", "data.json", *options, **replaced | {"commit": lambda: "def"})
    assert [row[:2] for row in later] == [row[:2] for row in rows], "the commit is that of the training"
    assert len(ran) == 2, "auto is not run again"
    assert Image.open(out / "quality.png").size == (700, 400)


def test_a_training_that_fails_ends_the_benchmark_of_quality_by_its_own_line(tmp_path, capfd):
    with pytest.raises(SystemExit) as stopped:
        run_main(quality.main, tmp_path / "nowhere.json", "--out-dir", tmp_path / "out", "--minutes", 5)
    error = capfd.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and "nowhere.json" in error


def test_the_benchmark_of_autoencoders(run_with_images, rows_of):
    options = ["--autoencoder", "--seconds", 0.3, "--seeds", 1, "--only", "full", "AdamW alone"]
    rows = rows_of("ablation", run_with_images, *options, COMPARED=8)
    assert [row[0] for row in rows] == options[-2:]
    assert all(float(row[1]) >= 1 and 3 < float(row[5]) < 40 and float(row[9]) > 0 for row in rows)
    assert rows[0][-1] == "1.000"


def test_a_variant_of_the_autoencoder_changes_what_its_name_says(run_with_images):
    names = ("full", "AdamW alone", "moving average", "batch size 4", "edge weight 0", "3 blocks a resolution")
    full, *others = (ablation.build(Row(name), run_with_images, "autoencoder")[0].learner for name in names)
    assert [[*learner.optimizers] for learner in (full, others[0])] == [["optimizer", "muon"], ["optimizer"]]
    assert others[1].options.ema_decay == 0.99
    assert others[2].peak == pytest.approx(0.5 * full.peak)
    assert all(other.model.config != full.model.config for other in others[3:])


def test_the_best_rate_is_where_a_parabola_is_least():
    losses = {rate: math.exp((math.log2(rate) - 0.3) ** 2) for rate in (0.25, 0.5, 1, 2, 4)}
    assert rates.best_rate(losses) == pytest.approx(2**0.3)
    assert math.isnan(rates.best_rate({0.5: 1.0, 1.0: 2.0, 2.0: 3.0}))


def test_the_best_rate_of_each_variant_is_named(capsys):
    losses = {"full": (0.6, 0.5, 0.7), "AdamW alone": (0.9, 0.8, 0.7), "no dropout": (0.6, math.nan, math.nan)}
    results = {Row("2 + 3 layers"): [(9, 9, 0.1, 0.1)]}
    for name, rows in losses.items():
        results |= {Row(name, 2**number): [(9, 9, loss, 0.0)] for number, loss in enumerate(rows)}
    ablation.print_results(results, "loss", "drawn")
    output = capsys.readouterr().out
    assert [row[-1] for row in numbers_of(output)[1:5]] == ["0.200", "1.200", "1.000", "1.400"]
    end = ", at an end of the grid: add rates beyond it"
    assert re.findall("Best rate of (.*)", output) == ["full: 2", f"AdamW alone: 4{end}", f"no dropout: 1{end}"]


def test_the_ablation_refuses_to_choose_on_test_images_and_unknown_variants(capsys):
    for options in (["full", "--rates", "1", "2"], ["full", "full, rate 2"]):
        command = ["nowhere", "--test", "--only", *options]
        assert "one rate for each variant" in expect_error(capsys, ablation.main, command)
    line = expect_error(capsys, ablation.main, ["nowhere", "--only", "half the rate"])
    assert "'half the rate' is none of: full; " in line


def test_the_plain_block_is_plain_and_sees_the_tokens_before_and_none_after_and_learns(build):
    task, tokens = build("plain block")
    stage, (coarse, fine) = task.learner.model.eval(), tokens[task.training[:2]]
    names = {type(module).__name__ for module in stage.modules()}
    assert "Sinusoids" in names and not names & {"GatedMLP", "GridEmbedding"}
    attention = stage.transformer.decoder[0].cross_attention
    assert isinstance(attention.query_norm, nn.Identity) and isinstance(attention.key_norm, nn.Identity)
    assert attention.out.weight.any() and stage.transformer.head.weight.any()
    assert stage.transformer.embed.token.weight.std().item() == pytest.approx(1, abs=0.1)
    place, changed = 7, fine.clone()
    changed[:, place] = (fine[:, place] + 1) % len(task.fine)
    one, other = (stage.transformer(stage.inputs(coarse, each), coarse) for each in (fine, changed))
    assert torch.allclose(one[:, : place + 1], other[:, : place + 1], atol=1e-5)
    assert all(not torch.allclose(one[:, later], other[:, later], atol=1e-3) for later in (place + 1, place + 2))
    losses = [float(task.update(tokens[task.training[:16]], step)["loss"]) for step in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_data_set_is_written_read_and_loaded(rows_of, tmp_path):
    rows = rows_of("scale", "--records", 6000)
    assert [row[0] for row in rows] == list(scale.WORK)
    assert all(float(seconds) > 0 for _, seconds, *_ in rows)
    scale.write(path := tmp_path / "dataset.json", 600)
    parts = {}, {"is_one": True}, {"processes": 2}  # an epoch, a batch in its middle, an epoch of one of two
    assert [scale.load(path, **part) for part in parts] == [3, 1, 2]


def test_the_trainings_of_a_recipe_are_counted(rows_of):
    rows = {row.name: row for row in scaling.trainings(Recipe.find("demo-64"))}
    assert [*rows] == ["autoencoder", "decoder", "transformer_0", "transformer_1", "transformer_2"]
    stage, settings = rows["transformer_2"], Recipe.find("demo-64").settings["transformer_2"]
    assert (stage.steps, stage.step_size) == (settings["max_step"], settings["batch_size"])
    # Six operations for each weight of a block and each token, besides the head's and those of attention.
    fine, coarse = (256 * layers for layers in (4, 3 / 4))
    blocks = stage.steps * stage.step_size * 6 * 128**2 * (fine * (4 + 4 + 6) + coarse * (4 + 6))
    assert blocks < stage.flops < 2 * blocks
    assert rows["decoder"].flops / rows["decoder"].steps < rows["autoencoder"].flops / rows["autoencoder"].steps
    assert 100 * 2**20 < stage.memory < 400 * 2**20
    cells = rows_of("scaling", "demo-64", "--share", 0.5, trainings=lambda _: rows.values())
    assert [row[0] for row in cells] == [f"demo-64, {name}" for name in (*rows, "all")]
    hours = sum(row.flops for row in rows.values()) / (0.5 * 165e12) / 3600
    assert float(cells[-1][6].removesuffix(" h")) == pytest.approx(hours, abs=0.051)


def test_the_benchmark_of_reading(run_with_images, rows_of):
    rows = rows_of("reading", run_with_images, "--images", 20, "--rounds", 1)
    ways = [f"feature maps, {kind}" for kind in ("a file each", "packed") for _ in range(2)]
    ways += ["packed maps, of a data set", "images in shards, in random order"]
    assert [row[0] for row in rows] == ways
    assert all(float(cell) > 0 for row in rows for cell in row[2:4])


@pytest.fixture
def compare(run_with_images, tmp_path, monkeypatch, capsys):
    """A function: compare the tiny run with the flow for a few training steps; return the cells of the table."""
    monkeypatch.setattr(peers, "SHARED", ())  # whose time would be longer
    clock = itertools.count(0, 0.1)
    monkeypatch.setattr(peers, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    images = run_with_images / "data/dataset.json"

    def call(*argv):
        usual = "--run", run_with_images, "--rivals", "flow", "--out-dir", tmp_path / "peers", "--minutes", 0.01
        run_main(peers.main, images, *usual, *argv)
        return numbers_of(capsys.readouterr().out)[1:]

    return call


def test_a_rival_is_measured_at_its_best_rate_and_what_is_finished_is_not_trained_again(compare, tmp_path, monkeypatch):
    argv = "--rates", 0.5, 1, "--search", 0.5, "--seeds", 3, 4
    rows, out = compare(*argv), tmp_path / "peers"
    assert [row[0] for row in rows] == ["this project", "flow"]
    results = json.loads((out / "results.json").read_text())
    trained = [(result["rate"], result["seed"], result["share"]) for result in results[1:]]
    best = min(results[1:3], key=lambda result: result["validation_loss"])
    assert trained == [(0.5, 3, 0.5), (1, 3, 0.5), (best["rate"], 3, 1), (best["rate"], 4, 1)]
    assert results[3]["steps"] == pytest.approx(2 * best["steps"], abs=1)
    pair = [result["kernel"] for result in results[3:]]
    assert rows[1][1] == f"{best['rate']:g}" and float(rows[1][4]) == pytest.approx(sum(pair) / 2, abs=1e-3)
    assert all(result["steps"] > 1 for result in results[1:])
    assert all(result["megabytes"] > 0 for result in results[3:])
    height = Image.open(out / "rows.png").height
    assert height == 3 * (32 + 4), "test images, the run and the flow"
    monkeypatch.setattr(peers, "train", None)
    monkeypatch.setattr(peers, "measure_run", None)
    assert compare(*argv) == rows
    with pytest.raises(UserError, match=r"made with another --minutes \(0\.01, now 0\.02\); give another --out-dir"):
        compare(*argv, "--minutes", 0.02)


def test_peers_refuse_what_cannot_be_compared(compare, monkeypatch, faces, capsys):
    def line(*argv):
        return expect_error(capsys, peers.main, [faces, *argv])

    assert " 3 test images are too few, 4 are needed; add images" in line("--rivals", "torchcfm")
    monkeypatch.setattr(peers, "Bounds", lambda: BOUNDS)
    assert line("--rivals", "flow").startswith("error: --rivals flow learns from the feature maps of a run: give --run")
    monkeypatch.setattr("utils.runtime.cli.find_spec", lambda _: None)
    assert line("--rivals", "torchcfm") == "error: torchcfm is not installed: pip install -r requirements-dev.txt"
    with pytest.raises(UserError, match=r"--minutes 1e-06 is too short for a training step of flow, which takes"):
        compare("--minutes", 1e-6)
    monkeypatch.setattr(peers, "SHARED", ("autoencoder",))
    monkeypatch.setattr(peers, "result_of", None)  # before anything is trained
    with pytest.raises(UserError, match=r"is too short for flow: the run's autoencoder, decoder and feature maps"):
        compare("--minutes", 1e-6)


def test_the_flow_follows_its_velocity_and_learns(tiny_run):
    noise, target = torch.randn(2, 3, 4, 8, 8)
    assert torch.allclose(follow(lambda t, x: (target - x) / (1 - t[:, None, None, None]), noise, 9), target, atol=1e-5)
    torch.manual_seed(0)
    config = load_config(TINY / "transformer_2.json", TransformerConfig)
    run = RunFolder(tiny_run)
    maps = FeatureMapDataset(run.feature_maps.dataset)[torch.arange(16).numpy()]
    flow = Flow(config, maps, Autoencoder.load(run.autoencoder.latest))
    optimizer = torch.optim.Adam([weight for weight in flow.parameters() if weight.requires_grad], 3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = flow(maps)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[0] == pytest.approx(2, abs=0.3), "noise and data have a variance of 1, and it says 0"
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert flow.sample(3).shape == (3, 3, 32, 32)
