"""The benchmarks run, at a small size; what they measure is in the documents."""

import dataclasses
import itertools
import json
import math
import re
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from timeit import timeit
from types import SimpleNamespace

import pytest
import torch

from benchmarks import ablation, peers, quality
from benchmarks.ablation import Row
from evaluation.results import SETS, Distance, Reconstruction, Results
from models.transformer import TransformerConfig
from tests.helpers.runs import SMALL
from tests.helpers.scripts import TINY, run_main
from utils.core.config import load_config
from utils.core.files import write_file
from utils.runs.chain import Recipe


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """What runs in other processes, one after another in this one; and the recipe of the tiny run as the demo's."""

    pool = nullcontext(SimpleNamespace(imap_unordered=map))
    context = SimpleNamespace(Pool=lambda *_, **__: pool)
    monkeypatch.setattr("benchmarks.common.get_context", lambda _: context)
    monkeypatch.setattr(ablation, "RECIPE", SMALL)


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


def test_the_benchmark_of_codebooks(tiny_run, rows_of):
    small = {"SIZES": ((8, 4, 10, None),), "SEEDS": (0,), "MINISOM_PASSES": 1}
    ((sides, units, *cells, used),) = rows_of("codebook", tiny_run / "feature_maps/dataset.json", **small)
    assert (sides, units, len(cells)) == ("8×8", "4", 4) and 0 < float(used.rstrip("%")) <= 100
    numbers = [[float(number) for number in re.findall(r"[\d.]+", cell)] for cell in cells]
    assert numbers[0][1] == 1
    assert all(seconds >= 0 and error > 0 and 0 <= torn <= 1 for seconds, error, torn in numbers)


def test_the_benchmark_of_generation(tiny_run, rows_of):
    rows = rows_of("generation", tiny_run, PICTURES=(1, 3), seconds=lambda call: timeit(call, number=1))
    assert [row[0] for row in rows] == ["1", "3"] and all(float(seconds) >= 0 for row in rows for seconds in row[1:])


def test_a_task_of_the_demo_has_its_recipe_and_the_changes(tiny_run):
    usual, _ = ablation.demo_task(tiny_run, "transformer_1")
    task, tokens = ablation.demo_task(tiny_run, "transformer_1", {"in_dim": 64}, 0.5, batch_size=4)
    assert not task.options.resume and task.options.max_step == SMALL.settings["transformer_1"]["max_step"]
    config = load_config(TINY / "transformer_1.json", TransformerConfig)
    changed = dataclasses.replace(config, in_dim=64, model_lr=config.model_lr / 2)
    assert (usual.config.transformer, task.config.transformer) == (config, changed)
    assert task.learner.model.transformer.embed.token.weight.shape[1] == 64
    assert task.learner.peak == pytest.approx(usual.learner.peak / 2 * (4 / 16) ** 0.5)
    assert tokens[task.validation][1].equal(task.fine.find_bmu(task.dataset[task.validation]))


def test_the_ablation_measures_true_and_drawn_tokens_of_validation_images(tiny_run, monkeypatch):
    measured, validate = [], ablation.StageTask.validate
    monkeypatch.setattr(
        ablation.StageTask, "validate", lambda it: measured.append(it.tokens[it.validation]) or validate(it)
    )
    task, tokens = ablation.demo_task(tiny_run, "transformer_1")
    steps, parameters, *losses = ablation.run(Row("full"), 0, folder=tiny_run, name="transformer_1", seconds=0.2)
    assert steps >= 1 and parameters == sum(map(torch.numel, task.learner.model.parameters())) and min(losses) > 0
    held_out = tokens[task.dataset.split(task.options.bounds).validation]
    same = [[one.equal(true) for one, true in zip(part, held_out, strict=True)] for part in measured]
    assert same == [[True, True], [False, True]]  # coarse and fine tokens
    true, drawn = ablation.losses(ablation.demo_task(tiny_run, "transformer_0")[0])
    assert true == drawn > 0


def test_every_variant_of_a_stage_is_trained(tiny_run):
    for name, (config, given) in ablation.STAGES.items():
        task, data = ablation.demo_task(tiny_run, "transformer_1", config, **given)
        loss = task.update(data[task.training[:2]], 0)["loss"]
        assert 0 < float(loss) < 20, name


def test_the_ablation_trains_each_variant_at_each_rate(tiny_run, rows_of):
    options = ["--seconds", "0.2", "--seeds", "2", "--rates", "0.5", "1", "--only", "full", "2 + 3 layers"]
    rows = rows_of("ablation", tiny_run, *options)
    assert [row[0] for row in rows] == ["full, rate 0.5", "full", "2 + 3 layers, rate 0.5", "2 + 3 layers"]
    assert all(int(row[1]) >= 1 and 0 < float(row[3]) < 20 and float(row[4]) >= 0 for row in rows)
    assert min(float(row[-1]) for row in rows[:2]) == 1


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
    rows = tuple(Distance(name, 0.1 * number, 0, 1, 0.5, 0.75) for number, name in enumerate(SETS))
    reconstruction, trained, ran = Reconstruction("autoencoder", 30.0), [], []
    results = Results("", 4, 4, 4, 0, {}, (reconstruction,), (), rows, None, (), 1.0, "autoencoder")

    def train(dataset, recipe, out):
        trained.append(recipe)
        return 60.0 * len(trained)

    def run(words):
        ran.append(words)
        write_file(Path(words[2]) / "recipe/clock.json", json.dumps({"seconds": 90.0}))
        write_file(Path(words[2]) / "report.html", "")

    out = tmp_path / "out"
    options = ["--out-dir", out, "--minutes", 1.5, "--runs", 2, "--recipe", "tiny-32", "--shares", 1, 0.5]
    small = {"train_cascade": SimpleNamespace(main=run), "measured_anew": lambda *_: results}
    rows = rows_of("quality", "data.json", *options, train_recipe=train, **small)
    assert [[words[0], *words[2:]] for words in ran] == [
        ["auto", f"{out}/auto-1.5-{seed}", "--hours", "0.025", "--seed", str(seed)] for seed in (0, 1)
    ]
    assert [recipe.settings["decoder"]["max_step"] for recipe in trained] == [150, 300]
    same = ["30.0", "0.100", "0.200", "0.300", "0.50", "0.75"]
    shares = (("tiny-32, 0.5 of the steps", "1.0"), ("tiny-32, 1 of the steps", "2.0"))
    assert rows == [[name, minutes, *same] for name, minutes in (*[("auto, 1.5 minutes", "1.5")] * 2, *shares)]
    rows_of("quality", "data.json", *options)
    assert len(ran) == 2, "auto is not run again"


def test_the_benchmark_of_autoencoders(run_with_images, rows_of):
    options = ["--autoencoder", "--seconds", 0.3, "--seeds", 1, "--only", "full", "squared error"]
    rows = rows_of("ablation", run_with_images, *options, COMPARED=8)
    assert [row[0] for row in rows] == options[-2:]
    assert all(float(row[1]) >= 1 and 3 < float(row[5]) < 40 and float(row[9]) > 0 for row in rows)
    assert rows[0][-1] == "1.000"


def test_rivals_are_measured_at_their_best_rates_and_what_is_finished_is_not_trained_again(
    run_with_images, tmp_path, monkeypatch, rows_of
):
    monkeypatch.setattr(peers, "SHARED", ())  # whose time would be longer
    clock = itertools.count(0, 0.1)
    monkeypatch.setattr(peers, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    argv = [run_with_images / "data/dataset.json", run_with_images, "--out-dir", tmp_path / "peers"]
    argv += ["--minutes", 0.01, "--rates", 0.5, 1, "--search", 0.5, "--seeds", 3, 4, "--rivals", "flow"]
    rows = rows_of("peers", *argv)
    assert [row[0] for row in rows] == ["this project", "flow"]
    tried = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("peers/*/result.json")}
    losses = [tried[f"flow-0.01-minutes-rate-{rate}-seed-3-share-0.5"]["loss"] for rate in ("0.5", "1")]
    assert rows[-1][1] == ("0.5" if losses[0] < losses[1] else "1")
    pair = [tried[f"flow-0.01-minutes-rate-{rows[-1][1]}-seed-{seed}-share-1"]["kernel"] for seed in (3, 4)]
    assert float(rows[-1][4]) == pytest.approx(sum(pair) / 2, abs=1e-3)
    monkeypatch.setattr(peers, "train", lambda *_: pytest.fail("trained again"))
    assert rows_of("peers", *argv) == rows


def test_the_flow_follows_its_velocity_and_learns(tiny_run):
    noise, target = torch.randn(2, 3, 4, 8, 8)
    straight = peers.follow(lambda t, x: (target - x) / (1 - t[:, None, None, None]), noise, 9)
    assert torch.allclose(straight, target, atol=1e-5)
    torch.manual_seed(0)
    run = peers.TrainedRun(peers.RunFolder(tiny_run), peers.CPU)
    flow = peers.Flow(SimpleNamespace(run=run, cascade=run.cascade(4)))
    maps, losses = run.maps[torch.arange(16).numpy()], []
    optimizer = torch.optim.Adam([weight for weight in flow.parameters() if weight.requires_grad], 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = flow(maps)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[0] == pytest.approx(2, abs=0.3), "noise and data have a variance of 1, and it says 0"
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert flow.sample(3).shape == (3, 3, 32, 32)
