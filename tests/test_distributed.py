"""Several processes of one job do what one does: gradients, maps, files; and none is left alone with an error."""

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest
import torch

import generate_fmap_dataset
import generate_images
import prune_codebook
import train_autoencoder
from models.codebook import Codebook, CodebookConfig
from models.som.learner import MapLearner
from tests.helpers.deaths import results
from tests.helpers.jobs import run_job
from tests.helpers.runs import FRACTIONS, MAINS, PRUNED, WEIGHTS, latest, rows
from tests.helpers.scripts import TINY, run_main
from utils.runs.chain import ROOT
from utils.runtime import distributed
from utils.runtime.draws import drawing
from utils.training.gradient import GradientLearner

# What draws random numbers in training, of a config.
NOISE = {
    "autoencoder": {"latent_noise": 0.1},
    "transformer_0": {"dropout": 0.3, "condition_dropout": 0.2, "use_labels": True},
    "transformer_1": {"dropout": 0.3, "condition_dropout": 0.2, "condition_noise": 0.4},
}


@pytest.fixture
def job(tmp_path):
    """A function: run a script in several processes, which must end with these statuses; returns what they said.

    `arguments` are those of all processes, or a function of the number of one.
    """

    def call(main, arguments, number=2, statuses=None, **more):
        given = arguments if callable(arguments) else lambda _: arguments
        result = run_job(lambda rank: run_main(main, *given(rank)), tmp_path / "job", number, **more)
        assert [status for status, _ in result] == (statuses or [0] * number), result
        return [text for _, text in result]

    return call


@pytest.mark.parametrize(
    ("name", "number", "plan"),
    [
        ("autoencoder", 3, ("--batch-size", 9)),  # of 28 images the second step has one: two processes have none
        ("autoencoder", 3, ("--batch-size", 4)),  # the third step has four: shares of 1, 1 and 2
        ("transformer_0", 3, ("--batch-size", 5)),  # of 56 maps the fourth step has 11
        ("transformer_1", 2, ("--batch-size", 3, "--grad-accum-step", 2)),  # the fifth has 8: batches of 3 and 1
    ],
)
def test_gradients_and_losses_are_those_of_one_process(
    name, number, plan, job, command, train, write_json, tiny_run, tmp_path
):
    size = number * int(np.prod(plan[1::2]))
    config = write_json(tmp_path / "noisy.json", json.loads((TINY / f"{name}.json").read_text()) | NOISE[name])
    start = ["--max-step", 5, "--config-path", config]
    if name == "transformer_0":
        maps = shutil.copytree(tiny_run / "feature_maps", tmp_path / "maps") / "dataset.json"
        content = json.loads(maps.read_text())
        for place, record in enumerate(content["_default"].values()):
            record["labels"] = [["cat"], ["night", "cat"], []][place % 3]
        start += ["--dataset-path", write_json(maps, content)]
    one = train(name, "one", *start, "--batch-size", size)
    job(MAINS[name], command(name, "several", *start, *plan), number)
    several = latest(tmp_path / "several")
    for key, count in {"train_loss": 5, "gradient_norm": 5, "val_loss": 1}.items():
        result = [[row[key] for row in rows(tmp_path / out, key)] for out in ("one", "several")]
        assert len(result[0]) >= count
        assert result[1] == pytest.approx(result[0], rel=1e-3)
    for kind in ("model", "ema"):
        for key, value in one[kind].items():
            assert torch.allclose(several[kind][key].float(), value.float(), atol=1e-3), (kind, key)
    assert several["settings"] == one["settings"]
    assert several["parts"] == [number, plan[3] if len(plan) > 2 else 1, plan[1]]


def test_a_map_is_that_of_one_process(job, command, train, tmp_path):
    plan = ("--max-epoch", 4, "--checkpoint-step", 9)
    one = train("codebook_1", "one", *plan, "--batch-size", 9)
    job(MAINS["codebook_1"], command("codebook_1", "several", *plan, "--batch-size", 3), 3)
    several = latest(tmp_path / "several")
    assert torch.allclose(several["model"]["units"], one["model"]["units"], atol=1e-4)
    for name in ("coordinates", "counts"):
        assert torch.equal(several["model"][name], one["model"][name])
    for name, value in one["learner"].items():
        assert torch.allclose(several["learner"][name], value, atol=1e-3), name
    for name, value in one["statistics"].items():
        assert several["statistics"][name] == (pytest.approx(value) if isinstance(value, float) else value), name


def learn_a_map(path):
    """Units that win no patch in an epoch are replaced, three times; what is left of them is in a file."""
    maps = torch.randn(18, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    codebook = Codebook(CodebookConfig(0.1, 4, 4, 1, 2, 2, 12, 10))
    codebook.units[:] = maps.flatten()[:48].view(12, 4)
    codebook.units[5:] += 1000
    learner = MapLearner(codebook, 3, 11, continued=True)
    for step in range(11):
        share = distributed.share_of(6)
        with drawing(0, step, share, torch.device("cpu")):
            learner.update(maps[step * 6 % 18 :][share.first :][: share.number], step, share)
        if step % 3 == 1:
            learner.checkpoint()  # amid an epoch: it gives all candidates to one process
    content = learner.checkpoint()
    if distributed.is_main():
        torch.save({**content["learner"], **content["model"]}, path)


def test_units_that_nothing_is_near_to_are_replaced_as_by_one_process(tmp_path):
    learn_a_map(tmp_path / "one.pt")
    assert run_job(lambda _: learn_a_map(tmp_path / "several.pt"), tmp_path / "job", 4) == [(0, "")] * 4
    one, several = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "several"))
    assert one["units"].max() < 100
    for name, value in one.items():
        assert torch.allclose(several[name].float(), value.float(), atol=1e-5), name


@pytest.mark.parametrize("layout", [(), ("--packed", "--dtype", "float16")])
def test_feature_maps_are_those_of_one_process_byte_for_byte(layout, job, faces, tiny_run, tmp_path):
    def arguments(out):
        common = ("--dataset-path", faces, "--model-path", tiny_run / "autoencoder" / WEIGHTS, "--device", "cpu")
        return *common, "--flip", "--batch-size", 3, "--num-files-folder", 9, "--out-dir", tmp_path / out, *layout

    run_main(generate_fmap_dataset.main, *arguments("one"))
    job(generate_fmap_dataset.main, arguments("several"), 3)
    assert results(tmp_path / "several") == results(tmp_path / "one")


def test_pictures_are_those_of_one_process_byte_for_byte(job, tiny_run, tmp_path):
    arguments = ("--config-path", tiny_run / "generate.json", "--decoder-path", tiny_run / "autoencoder" / WEIGHTS)
    arguments += ("--num-images", 7, "--batch-size", 2, "--device", "cpu", "--out-dir")
    run_main(generate_images.main, *arguments, tmp_path / "one")
    job(generate_images.main, (*arguments, tmp_path / "several"))
    assert results(tmp_path / "several") == results(tmp_path / "one")
    assert len(list((tmp_path / "several/images").glob("image_*.png"))) == 7


def test_tokens_and_pruned_codebooks_are_those_of_one_process(job, command, tiny_run, tmp_path):
    shutil.copytree(tiny_run / "feature_maps", tmp_path / "maps", ignore=shutil.ignore_patterns("tokens"))
    maps = ("--dataset-path", tmp_path / "maps/dataset.json")
    job(MAINS["transformer_1"], command("transformer_1", "stage", *maps, "--max-step", 1))
    built = sorted((tmp_path / "maps/tokens").glob("*.pt"))
    assert len(built) == 2
    for path in built:
        before = torch.load(tiny_run / "feature_maps/tokens" / path.name, weights_only=True)
        assert torch.equal(torch.load(path, weights_only=True)["model"]["tokens"], before["model"]["tokens"])
    arguments = (*FRACTIONS, *maps, "--codebook-path", tiny_run / "codebook_1" / WEIGHTS, "--prune-threshold", 40)
    arguments += ("--decoder-path", tiny_run / "autoencoder" / WEIGHTS, "--device", "cpu", "--out-dir")
    run_main(prune_codebook.main, *arguments, tmp_path / "one")
    job(prune_codebook.main, (*arguments, tmp_path / "several"))
    result = [torch.load(tmp_path / out / PRUNED, weights_only=True) for out in ("one", "several")]
    assert 2 <= len(result[0]["model"]["units"]) < 16
    for name, value in result[0]["model"].items():
        assert torch.equal(result[1]["model"][name], value)
    assert result[1]["statistics"]["topographic_error"] == result[0]["statistics"]["topographic_error"]


def in_one(monkeypatch, rank, step, action):
    """Let one process do something before its update of a step."""
    original = GradientLearner.update

    def update(self, batch, at, share):
        if at == step and distributed.rank() == rank:
            action()
        return original(self, batch, at, share)

    monkeypatch.setattr(GradientLearner, "update", update)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_process_stops_all_after_the_same_step(rank, job, command, tmp_path, monkeypatch):
    plan = ("--max-step", 7, "--checkpoint-step", 5)
    in_one(monkeypatch, rank, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    job(train_autoencoder.main, command("autoencoder", "run", *plan, "--batch-size", 6), statuses=[143, 143])
    assert latest(tmp_path / "run")["step"] == 3
    assert (tmp_path / "job/0.out").read_text().count("stopped by SIGTERM") == 1


def test_a_process_that_dies_ends_the_job_which_goes_on_from_its_checkpoint(job, command, train, tmp_path, monkeypatch):
    """With two processes, one, and two again."""
    plan = ("--max-step", 7, "--checkpoint-step", 2, "--resume")
    with monkeypatch.context() as patch:
        in_one(patch, 1, 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        said = job(MAINS["transformer_1"], command("transformer_1", "run", *plan, "--batch-size", 6), statuses=[2, -9])
    assert said[0] == f"error: {distributed.LOST}\n"
    assert latest(tmp_path / "run")["step"] == 2
    train("transformer_1", "run", *plan, "--max-step", 4)
    assert "2 processes × 1 batches × 6 images a step, now 1 × 1 × 12" in (tmp_path / "run/train.log").read_text()
    job(MAINS["transformer_1"], command("transformer_1", "run", *plan, "--batch-size", 6))
    whole, result = train("transformer_1", "whole", *plan), latest(tmp_path / "run")
    assert result["step"] == 7
    for name, value in whole["model"].items():
        assert torch.allclose(result["model"][name], value, atol=1e-3)


def test_torchrun_starts_what_has_died_anew(command, tmp_path):
    """The whole way, by the command that people give; a process ends itself after a step of its first attempt."""
    script = tmp_path / "dying.py"
    script.write_text(
        "import os, sys, train_autoencoder\n"
        "from utils.runtime import cli\n"
        "from utils.training.gradient import GradientLearner\n"
        "original = GradientLearner.update\n"
        "def update(self, batch, step, share):\n"
        "    if step == 3 and os.environ['RANK'] + os.environ['TORCHELASTIC_RESTART_COUNT'] == '10':\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return original(self, batch, step, share)\n"
        "GradientLearner.update = update\n"
        "cli.run(train_autoencoder.main)\n"
    )
    plan = ("--max-step", 6, "--checkpoint-step", 2, "--resume")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["--max-restarts", "1", script, *command("autoencoder", "run", *plan, "--batch-size", 6)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("error")] == [f"error: {distributed.LOST}"]
    assert latest(tmp_path / "run")["step"] == 6


ANEW = "start all of them with one command"


@pytest.mark.parametrize(
    ("rank", "flags", "said"),
    [
        (0, ["--config-path", "none.json"], "none.json: no such file"),
        (1, ["--config-path", "none.json"], "none.json: no such file"),
        (1, ["--seed", 3], f"processes 0 and 1 differ in seed (0, 3): {ANEW}"),
        (1, [], f"processes 0 and 1 differ in code (version 0, version 1): {ANEW}"),
    ],
    ids=["an error of the first", "of the second", "other arguments", "other code"],
)
def test_what_is_wrong_with_one_process_is_one_line_of_the_first(
    rank, flags, said, job, command, tmp_path, monkeypatch
):
    if not flags:
        monkeypatch.setattr(distributed, "_code", lambda: f"version {distributed.rank()}")
    arguments = lambda number: command("autoencoder", "run", "--batch-size", 6, *(flags if number == rank else ()))  # noqa: E731
    assert job(train_autoencoder.main, arguments, statuses=[2, 2]) == [f"error: {said}\n", ""]
    assert not (tmp_path / "run").exists()


def test_a_process_that_never_comes_is_not_waited_for_long(job, command, monkeypatch):
    monkeypatch.setattr(distributed, "HANDSHAKE", timedelta(seconds=1))
    start = distributed.connect
    monkeypatch.setattr(distributed, "connect", lambda: os._exit(7) if os.environ["RANK"] == "1" else start())
    said = job(train_autoencoder.main, command("autoencoder", "run"), statuses=[2, 7])
    assert said[0].startswith(f"error: {distributed.MISSING}")
    assert said[0].count("\n") == 1
