"""What a start, a stop, lost files and a resume leave of a training; what deaths leave is tested by test_kill.py."""

import json
import os
import shutil
import signal

import pytest
import torch

from models.codebook import Codebook
from models.som.learner import MapLearner
from tests.helpers.deaths import differences, results, same
from tests.helpers.runs import MAINS, PLAN, PRUNED, WEIGHTS, latest, rows
from tests.helpers.scripts import TINY, expect_error, expect_exit
from utils.runs.folders import OutputFolder
from utils.runs.manifest import read_attempts
from utils.training.gradient import GradientLearner

TWO = ("autoencoder", "codebook_1")  # a learner each; the loop around them is the same for all
THREE = (*TWO, "transformer_1")  # a script each
LEARNERS = {"codebook_1": MapLearner}  # all others have a GradientLearner
RANDOM = {"dropout": 0.2, "condition_dropout": 0.3, "condition_noise": 0.3}
CELLS = {"cell": 2, "head_features": 8}


def prefix_of(name):
    return "codebook" if name == "codebook_1" else "model"


def steps(folder, key):
    return [row["step"] for row in rows(folder, key)]


def checkpoints(folder):
    return {path.name for path in (folder / "models_checkpoint").iterdir()}


@pytest.mark.parametrize("name", ["autoencoder", "decoder", "transformer_0", "transformer_1"])
def test_four_steps_equal_two_resume_two(name, train, for_decoder, write_json, tmp_path):
    """With averaged weights, batches that are added up, and all that is drawn at random."""
    flags, stage = ("--batch-size", 5, "--grad-accum-step", 2, "--ema-decay", 0.9), name
    if name == "decoder":
        flags, stage = (*flags, *for_decoder), "autoencoder"
    elif name != "autoencoder":  # whose config draws noise already
        config = json.loads((TINY / f"{name}.json").read_text()) | RANDOM
        if name == "transformer_1":
            config |= CELLS
        flags = (*flags, "--config-path", write_json(tmp_path / "config.json", config))
    whole = train(stage, "whole", "--max-step", 4, *flags)
    train(stage, "halves", "--max-step", 2, *flags)
    halves = train(stage, "halves", "--max-step", 4, *flags, "--resume")
    assert set(whole) >= {"model", "ema", "optimizer", "step", "settings", "trained_from", "fingerprint"}
    assert same(halves, whole)
    assert not same(whole["model"], whole["ema"])
    assert same(*(rows(tmp_path / out)[-2:] for out in ("halves", "whole")))


def interrupt(monkeypatch, name, step, number):
    """Send the process a signal in the middle of a step."""
    learner = LEARNERS.get(name, GradientLearner)
    original = learner.update

    def update(self, batch, at, share):
        if at == step:
            os.kill(os.getpid(), number)
        return original(self, batch, at, share)

    monkeypatch.setattr(learner, "update", update)


@pytest.mark.parametrize(("name", "number"), [*zip(THREE, [signal.SIGTERM, *[signal.SIGINT] * 2], strict=True)])
def test_a_stop_leaves_nothing_more_than_an_uninterrupted_run_and_a_resume_the_same(
    name, number, command, train, tmp_path, monkeypatch
):
    plan = ("--max-step", 8, "--checkpoint-step", 3, "--log-step", 7)  # an epoch has 3 or 5 steps
    train(name, "whole", *plan)
    with monkeypatch.context() as patched:
        interrupt(patched, name, 3, number)
        assert expect_exit(MAINS[name], command(name, "run", *plan)) == 128 + number
    assert checkpoints(tmp_path / "run") - {"best.pt"} == {f"{prefix_of(name)}_3.pt", "latest.pt", "measured.json"}
    assert (latest(tmp_path / "run")["step"], rows(tmp_path / "run")[-1]["step"]) == (4, 3)
    train(name, "run", *plan, "--resume")
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_rows_of_lost_steps_and_half_a_line_are_written_anew(begun, train, tmp_path):
    with (begun("autoencoder") / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "epoch": 1, "train_loss": 99}\n{"step": 6, "epo')
    train("autoencoder", "run", "--max-step", 6, "--checkpoint-step", 2, "--resume")
    assert steps(tmp_path / "run", "train_loss") == [1, 2, 3, 4, 5, 6]
    assert steps(tmp_path / "run", "val_loss") == [2, 4, 6]
    assert all(row["train_loss"] < 99 for row in rows(tmp_path / "run", "train_loss"))


@pytest.mark.parametrize("name", THREE)
def test_resuming_what_has_ended_changes_nothing_and_resuming_nothing_is_a_start(name, begun, whole, train, tmp_path):
    before = results(begun(name))
    train(name, "run", *PLAN, "--resume")
    assert results(tmp_path / "run") == before
    train(name, "new", *PLAN, "--resume")
    assert differences(whole(name), tmp_path / "new") == []
    attempts = [read_attempts(OutputFolder(tmp_path / folder)) for folder in ("run", "new")]
    assert [[attempt.goes_on for attempt in part] for part in attempts] == [[False, True], [False]]


CHANGED = [  # flags, keys of the config, and which of them the error names
    ("autoencoder", ["--seed", 1], {}, "--seed (0, now 1)"),
    ("autoencoder", ["--batch-size", 5], {}, "(12, now 5)"),
    ("autoencoder", ["--grad-accum-step", 2], {}, "(12, now 24)"),
    ("autoencoder", ["--lr-schedule", "cosine"], {}, "--lr-schedule (step, now cosine)"),
    ("autoencoder", ["--val-fraction", 0.3], {}, "--val-fraction (0.1, now 0.3)"),
    ("autoencoder", [], {"latent_channel": 3}, "latent_channel (4, now 3)"),
    ("codebook_1", [], {"num_embeddings": 12}, "num_embeddings (16, now 12)"),
    ("codebook_1", [], {"patch_H": 4, "patch_W": 4}, "patch_H (2, now 4)"),
    ("transformer_1", [], {"hidden_dim": 32}, "transformer.hidden_dim (64, now 32)"),
    ("transformer_1", ["--lr-codebook-path", f"codebook_2/{PRUNED}"], {}, "coarse."),
]


@pytest.mark.parametrize(("name", "flags", "keys", "named"), CHANGED)
def test_resuming_with_other_settings_is_refused_by_name(
    name, flags, keys, named, command, begun, tiny_run, tmp_path, write_json, capsys
):
    before = results(begun(name))
    flags = [tiny_run / flag if str(flag).endswith(".pt") else flag for flag in flags]
    config = write_json(tmp_path / "other.json", json.loads((TINY / f"{name}.json").read_text()) | keys)
    flags += ["--config-path", config, "--max-step", 6, "--resume"]
    line = expect_error(capsys, MAINS[name], command(name, "run", *flags))
    assert str(tmp_path / "run" / WEIGHTS) in line and named in line
    assert results(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("name", "left"),
    [(name, "latest.pt") for name in TWO] + [("autoencoder", "model_2.pt"), ("autoencoder", "best.pt")],
)
def test_a_start_where_a_run_or_a_part_of_one_is_is_refused_and_touches_nothing(name, left, command, begun, capsys):
    folder = begun(name)
    for path in (folder / "models_checkpoint").glob("*.pt"):
        if left not in ("latest.pt", path.name):
            path.unlink()
    before = results(folder)
    line = expect_error(capsys, MAINS[name], command(name, "run", *PLAN, "--keep-checkpoint", 1))
    assert f"{folder}: " in line and left in line
    if left == "best.pt":
        assert left in expect_error(capsys, MAINS[name], command(name, "run", *PLAN, "--resume"))
    assert results(folder) == before


@pytest.mark.parametrize("name", TWO)
def test_overwrite_leaves_what_a_run_in_an_empty_folder_leaves_and_a_persons_own_files(
    name, train, whole, tmp_path, monkeypatch
):
    out, prefix = tmp_path / "run", prefix_of(name)
    train(name, "run", "--max-step", 5, "--checkpoint-step", 1, "--seed", 1)
    weights = (torch.load(folder / f"models_checkpoint/{prefix}_4.pt")["model"] for folder in (out, whole(name)))
    assert not same(*weights)  # the seed counts
    own = ("model_before_change.pt", "codebook_1 (copy).pt", f"{prefix}_2.pt.bak", f"{prefix}_.pt")
    own = {*(f"models_checkpoint/{file}" for file in own), "images/holiday_2024.png", "notes.txt"}
    for file in own:
        (out / file).write_text("mine")
    removed, original = [], type(out).unlink
    with monkeypatch.context() as patched:
        patched.setattr(type(out), "unlink", lambda path, **more: removed.append(path.name) or original(path, **more))
        train(name, "run", *PLAN, "--overwrite")
    # The latest first, so that a start that is killed then leaves no run that seems whole.
    assert next(file for file in removed if file.endswith(".pt") and not file.startswith(".")) == "latest.pt"
    assert set(differences(whole(name), out)) == {f"{file} is only in one" for file in own}
    assert {(out / file).read_text() for file in own} == {"mine"}


@pytest.fixture
def moved(faces, tmp_path):
    """A copy of the faces, with the times of their files."""
    return shutil.copytree(faces.parent, tmp_path / "data") / "dataset.json"


def touch(dataset):
    """Give all files of a data set other times."""
    for path in dataset.parent.rglob("*.png"):
        os.utime(path, (1, 1))


def test_overwrite_resumes_what_fits_also_data_of_other_times_and_replaces_what_does_not(begun, train, moved):
    folder = begun("autoencoder")
    before = (folder / "models_checkpoint/model_2.pt").read_bytes()
    flags = ("--resume", "--overwrite", "--dataset-path", moved, "--checkpoint-step", 2, "--max-step")
    touch(moved)
    assert train("autoencoder", "run", *flags, 6)["step"] == 6
    assert (folder / "models_checkpoint/model_2.pt").read_bytes() == before
    after = train("autoencoder", "run", *flags, 2, "--seed", 1)
    assert (after["step"], after["settings"]["--seed"]) == (2, 1)
    assert checkpoints(folder) == {"model_2.pt", "latest.pt", "best.pt", "measured.json"}


@pytest.mark.parametrize("name", ["transformer_1", "codebook_1"])
def test_the_newest_checkpoints_are_kept_by_step_and_a_persons_copies_stay(name, begun, train):
    prefix, run = prefix_of(name), begun(name)
    folder, own = run / "models_checkpoint", f"my_{prefix}_1.pt"
    (folder / own).write_text("mine")
    later = (folder / f"{prefix}_4.pt").stat().st_mtime + 1000
    os.utime(folder / f"{prefix}_2.pt", (later, later))
    train(name, "run", "--max-step", 6, "--checkpoint-step", 1, "--keep-checkpoint", 2, "--resume")
    files = {"latest.pt": 6, f"{prefix}_5.pt": 5, f"{prefix}_6.pt": 6}
    if name == "transformer_1":
        validated = [row for row in rows(run, "val_loss") if "train_loss" not in row]
        assert [row["step"] for row in validated] == [2, 4, 5, 6]
        files["best.pt"] = min(validated, key=lambda row: row["val_loss"])["step"]
    assert checkpoints(run) == {"measured.json", *files, own}
    assert {file: torch.load(folder / file, weights_only=True)["step"] for file in files} == files
    assert (folder / own).read_text() == "mine"


def damage(path):
    """Damage a checkpoint, but not the file that it is linked to."""
    octets = bytearray(path.read_bytes())
    middle = len(octets) // 2
    octets[middle : middle + 99] = bytes(octet ^ 1 for octet in octets[middle : middle + 99])  # more than padding
    path.unlink()
    path.write_bytes(octets)


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("is_gone", [True, False])
@pytest.mark.parametrize("number", [1, 3])
def test_lost_checkpoints_cost_no_more_than_the_steps_since_one_that_is_left(
    number, is_gone, name, begun, train, whole, tmp_path
):
    folder, prefix = begun(name) / "models_checkpoint", prefix_of(name)
    lost = [path for path in map(folder.joinpath, ("latest.pt", f"{prefix}_4.pt", "best.pt")) if path.exists()]
    for path in lost[:number]:
        path.unlink() if is_gone else damage(path)
    train(name, "run", *PLAN, "--resume", *(() if is_gone else ("--overwrite",)))
    assert differences(whole(name), tmp_path / "run") == []
    assert f"going on from {prefix}_{4 if number == 1 else 2}.pt" in (tmp_path / "run/train.log").read_text()


@pytest.mark.parametrize("name", TWO)
def test_a_training_that_was_stopped_can_be_ended_there(name, command, train, tmp_path, monkeypatch):
    """It is measured and drawn as if its last step had been planned, so that later steps find what they need."""
    with monkeypatch.context() as patched:
        interrupt(patched, name, 2, signal.SIGINT)
        assert expect_exit(MAINS[name], command(name, "run", "--max-step", 9)) == 130
    train(name, "run", "--max-step", 1, "--resume", "--num-workers", 1)
    best = set() if name == "codebook_1" else {"best.pt"}
    assert checkpoints(tmp_path / "run") == {"latest.pt", f"{prefix_of(name)}_3.pt", "measured.json"} | best
    assert steps(tmp_path / "run", "val_loss") == [3]
    assert all(path.stem.endswith("_3") for path in (tmp_path / "run/images").iterdir())
    assert name != "codebook_1" or steps(tmp_path / "run", "topographic_error") == [3]


@pytest.mark.parametrize("file", [WEIGHTS, PRUNED])
def test_a_codebook_goes_on_at_radius_0_with_the_units_of_another_and_is_resumed_so(
    file, command, train, tiny_run, tmp_path, monkeypatch
):
    start, plan = ("--codebook-path", tiny_run / "codebook_1" / file), ("--max-step", 6, "--checkpoint-step", 3)
    after, before = train("codebook_1", "whole", *plan, *start), torch.load(start[1], weights_only=True)
    assert {row["radius"] for row in rows(tmp_path / "whole", "radius")} == {0}
    assert after["model"]["units"].shape == before["model"]["units"].shape
    places = [sorted(content["model"]["coordinates"].tolist()) for content in (after, before)]
    assert places[0] == places[1]
    assert after["model"]["counts"].sum() == 56 * 16, "of the training maps alone"
    with monkeypatch.context() as patched:
        interrupt(patched, "codebook_1", 1, signal.SIGTERM)
        assert expect_exit(MAINS["codebook_1"], command("codebook_1", "run", *plan, *start)) == 143
    train("codebook_1", "run", *plan, "--resume")
    assert differences(tmp_path / "whole", tmp_path / "run") == []
    assert len(Codebook.load(start[1])) == len(after["model"]["units"])


def test_other_data_are_refused_and_copies_of_the_same_verified(begun, train, command, moved, capsys):
    folder, autoencoder = begun("autoencoder"), MAINS["autoencoder"]
    plan = ("--dataset-path", moved, "--resume", "--max-step")
    images = sorted((moved.parent / "images").rglob("*.png"))
    content, before = images[1].read_bytes(), results(folder)
    shutil.copy(images[0], images[1])
    line = expect_error(capsys, autoencoder, command("autoencoder", "run", *plan, 5))
    assert str(folder / WEIGHTS) in line and "--verify" in line
    assert str(images[1]) in expect_error(capsys, autoencoder, command("autoencoder", "run", *plan, 5, "--verify"))
    assert results(folder) == before
    images[1].write_bytes(content)
    touch(moved)
    assert "--verify" in expect_error(capsys, autoencoder, command("autoencoder", "run", *plan, 5))
    train("autoencoder", "run", *plan, 5, "--verify")
    assert train("autoencoder", "run", *plan, 6)["step"] == 6  # verified once
    moved.write_text(moved.read_text().replace('"labels": []', '"labels": ["new"]', 1))
    assert "data set" in expect_error(capsys, autoencoder, command("autoencoder", "run", *plan, 7, "--verify"))


def test_lost_and_damaged_rows_cost_neither_weights_nor_statistics(begun, whole, train, tmp_path):
    before, metrics = latest(whole("codebook_1")), begun("codebook_1") / "metrics.jsonl"
    metrics.unlink()
    for _ in range(2):
        after = train("codebook_1", "run", *PLAN, "--resume")
        assert same(after["statistics"], before["statistics"])
        assert same(after["model"], before["model"])
        assert steps(tmp_path / "run", "topographic_error") == [4]
    with metrics.open("ab") as file:
        file.write(b"\xff\xfe\n5\n{}\n")
    assert same(train("codebook_1", "run", *PLAN, "--resume")["model"], before["model"])
