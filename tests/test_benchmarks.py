"""The benchmarks run, at a small size; what they measure is in the documents."""

import dataclasses
import math
import re
import shutil
from itertools import product
from timeit import timeit

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import (
    ablation,
    codebook,
    common,
    generation,
    intervals,
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
from models.requests import change_sampling, load_generation_config
from models.transformer import TransformerConfig
from tests.helpers.runs import SMALL
from tests.helpers.scripts import TINY, expect_error
from utils.chain import Recipe
from utils.config import load_config, read_json
from utils.run_folder import RunFolder


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """What runs in other processes, one after another in this one; and the recipe of the tiny run as the demo's."""

    class Pool:
        __enter__ = __exit__ = lambda self, *_: self

        def imap_unordered(self, function, jobs):
            return map(function, jobs)

    monkeypatch.setattr(common, "get_context", lambda _: type("Context", (), {"Pool": lambda *_, **__: Pool()}))
    for module in (codebook, scale, transformer):
        monkeypatch.setattr(module, "in_new_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(stages, "DEMO", SMALL)


@pytest.fixture
def run_with_images(tiny_run, faces, tmp_path):
    """The tiny run and its images, as scripts/demo.py puts them."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.copytree(faces.parent, run / "data")
    return run


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
    for name, value in {"STEPS": 1, "TIMES": 1, "LENGTHS": ((32, 64),)}.items():
        monkeypatch.setattr(transformer, name, value)
    monkeypatch.setattr(transformer, "seconds", lambda call, _: timeit(call, number=1))
    transformer.main([str(tiny_run)])
    rows = numbers_of(capfd.readouterr().out)
    shares, steps, memory = rows[1:7], rows[8:12], rows[13:]
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
    sizes = {"COARSE": (2, 2), "FINE": (8, 16), "UNITS": 9, "IMAGES": 2, "PREFIXES": (1, 64, 128)}
    monkeypatch.setattr(generation, "seconds", lambda call: timeit(call, number=2) / 2)
    for name, value in {**sizes, "WARM": 40, "SIDE": 64, "STEPS": 8, "LENGTHS": ((4, 4), (4, 8))}.items():
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
    assert [row[0] for row in tables[-2:]] == ["16", "32"]


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


def test_the_benchmark_of_sampling(faces, tiny_run, monkeypatch, capsys):
    tried = {"settings of the config": {}, "temperatures": ({"temperature": 1.0}, {"temperature": 0.5}, {})}
    monkeypatch.setattr(sampling, "SETTINGS", tried | {"another": {}})
    sampling.main([str(tiny_run), "--dataset-path", str(faces), "--only", *tried])
    rows = numbers_of(capsys.readouterr().out)[1:]
    names = ["validation images", "training images", "their reconstructions"]
    names += [f"from the tokens of stage {number}" for number in (2, 1, 0)] + ["from the condition"]
    names += [f"written from stage {number} on, after the true tokens of stage {number - 1}" for number in (2, 1)]
    names += tried
    assert [row[0] for row in rows] == names
    assert rows[0][1:3] == ["", ""] and all(row[3:5] == ["", ""] for row in rows[1:9]), "of what a set is made from"
    assert float(rows[1][1]) < min(float(row[1]) for row in rows[2:])
    assert all(all(row) for row in rows[9:])


def test_every_setting_of_sampling_is_one(tiny_run):
    configs = load_generation_config(RunFolder(tiny_run).generation)
    for setting in (sampling.SETTINGS | sampling.GUIDED).values():
        each = setting if isinstance(setting, tuple) else (setting,) * 3
        assert [len(change_sampling([one], **new)) for one, new in zip(configs, each, strict=True)] == [1, 1, 1]


def test_the_search_keeps_the_temperatures_with_the_smallest_distance(tiny_run, capsys):
    """Of a distance that is least at 0.85 of the first, 0.7 of the second and the third as it is."""
    run, tried = RunFolder(tiny_run), []
    given = [config.temperature for config in load_generation_config(run.generation)]
    best = [given[0] * 0.85, given[1] * 0.7, given[2]]

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


def test_drawn_tokens_are_the_same_whatever_the_variant(tiny_run):
    tasks = [ablation.build(Row(name), tiny_run, "transformer_1")[0] for name in ("full", "ungated MLP")]
    one, other = map(ablation.draw_coarse, tasks)
    assert one.equal(other) and one.shape == tasks[0].tokens[tasks[0].validation][0].shape


def test_the_ablation_measures_true_and_drawn_tokens_of_validation_images_or_test_images(tiny_run, monkeypatch):
    measured, validate = [], ablation.StageTask.validate

    def watch(task):
        measured.append(task.tokens[task.validation])
        return validate(task)

    monkeypatch.setattr(ablation.StageTask, "validate", watch)
    named = {"folder": tiny_run, "name": "transformer_1", "seconds": 0.01}
    results = [ablation.run(Row("full"), 0, **named, test=test) for test in (False, True)]
    assert all(len(result) == 4 and result[0] >= 1 and min(result[2:]) > 0 for result in results)
    task, tokens = stages.demo_task(tiny_run, "transformer_1")
    split = task.dataset.split(task.options.bounds)
    for indices, (true, drawn) in zip((split.validation, split.test), (measured[:2], measured[2:]), strict=True):
        coarse, fine = tokens[indices]
        assert true[0].equal(coarse) and not drawn[0].equal(coarse)
        assert true[1].equal(fine) and drawn[1].equal(fine)
    assert not set(split.validation) & set(split.test)


def test_the_base_stage_has_no_drawn_tokens(tiny_run):
    task, _ = ablation.build(Row("full"), tiny_run, "transformer_0")
    true, drawn = ablation.losses(task)
    assert true == drawn > 0


def test_every_variant_of_a_stage_is_trained(tiny_run):
    for name in ablation.STAGES:
        task, data = ablation.build(Row(name), tiny_run, "transformer_1")
        assert 0 < float(task.update(data[task.training[:2]], 0)["loss"]) < 20, name


def test_what_the_ablation_takes_out_is_out(tiny_run):
    names = ("full", "ungated MLP", "no query-key norm", "random vectors of tokens")
    tasks = {name: ablation.build(Row(name), tiny_run, "transformer_1")[0] for name in names}
    full, ungated, bare, random = (task.learner.model for task in tasks.values())
    classes = [{type(module).__name__ for module in model.modules()} for model in (full, ungated)]
    assert "GatedMLP" in classes[0] and "GatedMLP" not in classes[1]
    assert isinstance(bare.transformer.decoder[0].cross_attention.key_norm, nn.Identity)
    near, far = (model.transformer.embed.token.weight for model in (full, random))
    fine = tasks["full"].fine
    pairs = fine.nearest(fine.units, 2)[1]
    distances = [(vectors[pairs[:, 0]] - vectors[pairs[:, 1]]).norm(dim=1).mean() for vectors in (near, far)]
    assert distances[0] < 0.7 * distances[1]
    assert stages.num_parameters(ungated) == pytest.approx(stages.num_parameters(full), rel=0.05)


@pytest.mark.parametrize(
    ("name", "optimizers", "share"),
    [
        ("full, rate 0.5", {"AdamW", "Muon"}, 0.5),
        ("AdamW alone, rate 2", {"AdamW"}, 2),
        ("plain block", {"AdamW"}, 1),
    ],
)
def test_what_moves_the_weights_in_the_ablation(name, optimizers, share, tiny_run):
    row = Row.read(name)
    assert str(row) == name
    usual, changed = (ablation.build(each, tiny_run, "transformer_1")[0].learner for each in (Row("full"), row))
    assert {type(optimizer).__name__ for optimizer in changed.optimizers.values()} == optimizers
    groups = [group for optimizer in changed.optimizers.values() for group in optimizer.param_groups]
    moved = {parameter for group in groups for parameter in group["params"]}
    assert moved == set(changed.model.parameters())
    assert changed.average.state_dict().keys() == changed.model.state_dict().keys()
    assert changed.peak == pytest.approx(share * usual.peak)


def test_the_ablation_trains_each_variant_at_each_rate(tiny_run, capsys):
    options = ["--seconds", "0.05", "--seeds", "2", "--rates", "0.5", "1", "--only", "full", "AdamW alone, rate 2"]
    ablation.main([str(tiny_run), *options])
    output = capsys.readouterr().out
    rows = numbers_of(output)[1:]
    assert [row[0] for row in rows] == ["full, rate 0.5", "full", "AdamW alone", "AdamW alone, rate 2"]
    assert all(int(row[1]) >= 1 and 0 < float(row[3]) < 20 and float(row[4]) >= 0 for row in rows)
    assert min(float(row[-1]) for row in rows[:2]) == 1
    assert re.findall(r"^Best rate of (.*): [\d.]+, at an end of", output, flags=re.M) == ["full", "AdamW alone"]


@pytest.mark.parametrize(("model", "size"), [("stage", {"in_dim": 16}), ("autoencoder", {"max_channel": 16})])
def test_the_benchmark_of_rates_trains_each_size_at_each_rate(model, size, run_with_images, capsys):
    assert rates.size_of(model, 16, 1).items() >= size.items()
    options = ["--widths", "16", "--depths", "1", "--batch-sizes", "4", "8", "--rates", "0.01", "1"]
    rates.main([str(run_with_images), model, *options, "--steps", "15", "--seeds", "2"])
    rows = numbers_of(capsys.readouterr().out)[1:]
    assert [tuple(row[:4]) for row in rows] == [*product(["16"], ["1"], ["4", "8"], ["15"])]
    for row in rows:
        assert float(row[5]) < float(row[4])  # at a hundredth of the rate hardly anything is learned
        assert len(row[7].split(", ")) == 2


def test_the_depths_of_the_rates_are_those_of_the_demo():
    configs = [read_json(Recipe.find("demo-64").folder / f"{name}.json") for name in ("transformer_2", "autoencoder")]
    assert [*rates.DEPTHS.values()] == [configs[0]["num_dec_layers"], configs[1]["num_dec_res_blocks"]]


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


def test_the_benchmark_of_autoencoders(run_with_images, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "COMPARED", 8)
    names = ["full", "AdamW alone"]
    ablation.main([str(run_with_images), "--autoencoder", "--seconds", "0.3", "--seeds", "1", "--only", *names])
    rows = numbers_of(capsys.readouterr().out)[1:]
    assert [row[0] for row in rows] == names
    assert all(float(row[1]) >= 1 and 3 < float(row[5]) < 40 and float(row[9]) > 0 for row in rows)
    assert rows[0][-1] == "1.000"


def test_a_variant_of_the_autoencoder_changes_what_its_name_says(run_with_images):
    full, *others = (
        ablation.build(Row(name), run_with_images, "autoencoder")[0].learner
        for name in ("full", "AdamW alone", "moving average", "batch size 4", "edge weight 0", "3 blocks a resolution")
    )
    assert set(full.optimizers) == {"optimizer", "muon"}
    assert set(others[0].optimizers) == {"optimizer"}
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
    ablation.print_best_rates(results)
    assert [line for line in capsys.readouterr().out.splitlines() if line] == [
        "Best rate of full: 2",
        "Best rate of AdamW alone: 4, at an end of the grid: add rates beyond it",
        "Best rate of no dropout: 1, at an end of the grid: add rates beyond it",
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


@torch.no_grad()
def test_the_plain_block_sees_the_tokens_before_and_none_after(tiny_run):
    task, tokens = ablation.build(Row("plain block"), tiny_run, "transformer_1")
    stage, (coarse, fine) = task.learner.model.eval(), tokens[task.training[:2]]
    place, changed = 7, fine.clone()
    changed[:, place] = (fine[:, place] + 1) % len(task.fine)
    one, other = (stage.transformer(stage.inputs_and_targets(coarse, each)[0], coarse) for each in (fine, changed))
    assert torch.allclose(one[:, : place + 1], other[:, : place + 1], atol=1e-5)
    assert not torch.allclose(one[:, place + 1], other[:, place + 1], atol=1e-3)
    assert not torch.allclose(one[:, place + 2], other[:, place + 2], atol=1e-3)


def test_the_plain_block_is_plain_and_learns(tiny_run):
    task, tokens = ablation.build(Row("plain block"), tiny_run, "transformer_1")
    model = task.learner.model.transformer
    names = {type(module).__name__ for module in model.modules()}
    assert "Sinusoids" in names and not names & {"GatedMLP", "GridEmbedding"}
    attention = model.decoder[0].cross_attention
    assert isinstance(attention.query_norm, nn.Identity) and isinstance(attention.key_norm, nn.Identity)
    assert attention.out.weight.any() and model.head.weight.any()
    assert model.embed.token.weight.std().item() == pytest.approx(1, abs=0.1)
    losses = [float(task.update(tokens[task.training[:16]], step)["loss"]) for step in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_data_set_is_written_read_and_loaded(capsys):
    scale.main(["--records", "6000"])
    rows = numbers_of(capsys.readouterr().out)[1:]
    assert [row[0] for row in rows] == list(scale.WORK)
    assert all(float(seconds) > 0 for _, seconds, *_ in rows)


def test_the_batches_of_an_epoch_or_one_in_its_middle_are_loaded(tmp_path):
    scale.write(path := tmp_path / "dataset.json", 600)
    loads = [{}, {"is_one": True}, {"processes": 2}]
    assert [scale.load(path, **given) for given in loads] == [3, 1, 2]


def test_the_trainings_of_a_recipe_are_counted(monkeypatch, capsys):
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
    monkeypatch.setattr(scaling, "trainings", lambda _: rows.values())
    scaling.main(["demo-64", "--share", "0.5"])
    cells = numbers_of(capsys.readouterr().out)
    assert [row[0] for row in cells[1:]] == [f"demo-64, {name}" for name in (*rows, "all")]
    total = sum(row.flops for row in rows.values())
    assert float(cells[-1][6].removesuffix(" h")) == pytest.approx(total / (0.5 * 165e12) / 3600, abs=0.051)


def test_the_benchmark_of_reading(run_with_images, capsys):
    reading.main([str(run_with_images), "--images", "20", "--rounds", "1"])
    rows = numbers_of(capsys.readouterr().out)[1:]
    ways = ["feature maps, a file each", "feature maps, packed"]
    ways = [*(way for way in ways for _ in range(2)), "packed maps, of a data set", "images in shards, in random order"]
    assert [row[0] for row in rows] == ways
    assert all(float(cell) > 0 for row in rows for cell in row[2:4])
