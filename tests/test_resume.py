"""What a start, a stop, a crash and a resume leave of a training."""

import json
import os
import shutil
import signal
import sys

import pytest
import torch

import train_codebook
import train_quantized_transformer
from models.codebook import Codebook
from models.som.learner import MapLearner
from scripts.soak import differences, same
from tests.helpers.runs import GRADIENT, MAINS, PRUNED, WEIGHTS, latest, rows
from tests.helpers.scripts import TINY, expect_error, expect_exit, run_main
from utils.runs.checkpoint import measured
from utils.runs.folders import PICTURES
from utils.training.gradient import GradientLearner


def measured_of(path):
    return measured(path, torch.load(path, weights_only=True)["fingerprint"])


@pytest.mark.parametrize("name", GRADIENT)
def test_four_steps_equal_two_resume_two(name, train, tmp_path):
    whole = train(name, "whole", "--max-step", 4, "--ema-decay", 0.9)
    train(name, "halves", "--max-step", 2, "--ema-decay", 0.9)
    halves = train(name, "halves", "--max-step", 4, "--ema-decay", 0.9, "--resume")
    assert set(whole) >= {"model", "ema", "optimizer", "step", "settings", "trained_from", "fingerprint"}
    assert same(halves, whole)
    assert not same(whole["model"], whole["ema"])
    for kind in ("train_loss", "val_loss"):
        first, second = (
            [(row["step"], row[kind]) for row in rows(tmp_path / out, kind)] for out in ("whole", "halves")
        )
        assert second[-1] == first[-1]


@pytest.mark.parametrize("number", [0, 1])
def test_so_they_do_with_all_that_is_drawn_at_random_and_added_up(number, train, write_json, tmp_path):
    config = json.loads((TINY / f"transformer_{number}.json").read_text())
    config |= {"dropout": 0.2, "condition_dropout": 0.3, "condition_noise": 0.3}
    plan = ("--config-path", write_json(tmp_path / "config.json", config), "--batch-size", 5, "--grad-accum-step", 2)
    name = f"transformer_{number}"
    whole = train(name, "whole", "--max-step", 4, *plan)
    train(name, "halves", "--max-step", 2, *plan)
    assert same(train(name, "halves", "--max-step", 4, *plan, "--resume"), whole)


def interrupt(monkeypatch, cls, step, number):
    """Send the process a signal in the middle of a step."""
    original = cls.update

    def update(self, batch, at, share):
        if at == step:
            os.kill(os.getpid(), number)
        return original(self, batch, at, share)

    monkeypatch.setattr(cls, "update", update)


@pytest.mark.parametrize(("name", "cls"), [("codebook_1", MapLearner), ("transformer_1", GradientLearner)])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_saves_and_goes_on_as_if_it_had_not_been(
    name, cls, number, status, command, train, tmp_path, monkeypatch
):
    plan = ("--max-epoch", 2, "--max-step", 8)  # 5 batches an epoch: it is crossed after the interruption
    whole = train(name, "whole", *plan)
    with monkeypatch.context() as patched:
        interrupt(patched, cls, 2, number)
        assert expect_exit(MAINS[name], command(name, "parts", *plan)) == status
    assert latest(tmp_path / "parts")["step"] == 3
    assert same(train(name, "parts", *plan, "--resume"), whole)
    for out in ("whole", "parts"):
        assert [row["step"] for row in rows(tmp_path / out, "train_loss")] == list(range(1, 9))
    losses = [[row["train_loss"] for row in rows(tmp_path / out, "train_loss")] for out in ("whole", "parts")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["autoencoder", "codebook_1"])
def test_after_a_crash_no_step_is_told_twice(name, command, train, tmp_path, monkeypatch):
    cls = MapLearner if name == "codebook_1" else GradientLearner
    plan = ("--max-step", 6, "--checkpoint-step", 2)
    original = cls.update

    def update(self, batch, step, share):
        if step == 5:
            raise RuntimeError("the power is out")
        return original(self, batch, step, share)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="power"):
        patched.setattr(cls, "update", update)
        run_main(MAINS[name], *command(name, "crashed", *plan))
    assert [row["step"] for row in rows(tmp_path / "crashed", "train_loss")] == [1, 2, 3, 4, 5]
    resumed = train(name, "crashed", *plan, "--resume")
    assert [row["step"] for row in rows(tmp_path / "crashed", "train_loss")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows(tmp_path / "crashed", "val_loss")] == [2, 4, 6]
    assert same(resumed, train(name, "whole", *plan))


def test_half_a_line_that_a_crash_left_does_not_stop_a_resume(train, tmp_path):
    train("autoencoder", "run", "--max-step", 1)
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "epo')
    train("autoencoder", "run", "--max-step", 2, "--resume")
    assert [row["step"] for row in rows(tmp_path / "run", "train_loss")] == [1, 2]


@pytest.mark.parametrize("name", MAINS)
def test_resuming_what_has_ended_changes_nothing(name, train, tmp_path):
    plan = ("--max-step", 2)
    before = train(name, "run", *plan)
    told = (tmp_path / "run/metrics.jsonl").read_text()
    assert same(train(name, "run", *plan, "--resume"), before)
    assert (tmp_path / "run/metrics.jsonl").read_text() == told


def test_resuming_nothing_is_a_start(train):
    assert same(train("autoencoder", "a", "--max-step", 1, "--resume"), train("autoencoder", "b", "--max-step", 1))


SIZE = "another number of images in a step"
CHANGED = [
    ("autoencoder", ["--seed", 1], None, "another --seed (0, now 1)"),
    (
        "autoencoder",
        ["--batch-size", 5],
        None,
        f"{SIZE} (12, now 5); keep it with --batch-size 12, or",
    ),
    (
        "autoencoder",
        ["--grad-accum-step", 2],
        None,
        f"{SIZE} (12, now 24); keep it with --batch-size 6,",
    ),
    (
        "autoencoder",
        ["--grad-accum-step", 5],
        None,
        f"{SIZE} (12, now 60); keep it, or start anew",
    ),
    ("autoencoder", ["--val-fraction", 0.3], None, "another --val-fraction (0.1, now 0.3)"),
    ("autoencoder", [], {"latent_channel": 3}, "another latent_channel (4, now 3)"),
    ("codebook_1", ["--seed", 1], None, "another --seed (0, now 1)"),
    ("codebook_1", [], {"num_embeddings": 12}, "another num_embeddings (16, now 12)"),
    ("codebook_1", [], {"patch_H": 4, "patch_W": 4}, "another patch_H (2, now 4)"),
    ("transformer_1", ["--batch-size", 5], None, f"{SIZE} (12, now 5)"),
    ("transformer_1", [], {"hidden_dim": 32}, "another transformer.hidden_dim (64, now 32)"),
]


@pytest.mark.parametrize(("name", "flags", "keys", "expected"), CHANGED)
def test_resuming_with_other_settings_is_refused_by_name(
    name, flags, keys, expected, command, train, tmp_path, write_json, capsys
):
    before = train(name, "run", "--max-step", 1)
    if keys is not None:
        config = json.loads((TINY / f"{name}.json").read_text()) | keys
        flags = ["--config-path", write_json(tmp_path / "other.json", config)]
    line = expect_error(capsys, MAINS[name], command(name, "run", "--max-step", 2, "--resume", *flags))
    assert f"{tmp_path / 'run' / WEIGHTS}: was made with {expected}" in line
    assert same(latest(tmp_path / "run"), before)
    assert [row["step"] for row in rows(tmp_path / "run", "train_loss")] == [1]


def test_resuming_with_another_codebook_is_refused_by_name(command, train, tiny_run, tmp_path, capsys):
    train("transformer_1", "run", "--max-step", 1)
    other = ("--lr-codebook-path", tiny_run / "codebook_2" / PRUNED)
    line = expect_error(capsys, MAINS["transformer_1"], command("transformer_1", "run", "--resume", *other))
    assert str(tmp_path / "run" / WEIGHTS) in line
    # Its grid is another as well; either reason will do.
    assert "codebook" in line or "coarse" in line


def test_resuming_a_damaged_checkpoint_is_refused_by_name(command, train, tmp_path, capsys):
    train("autoencoder", "run", "--max-step", 1)
    damaged = tmp_path / "run" / WEIGHTS
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert str(damaged) in expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", "--resume"))


@pytest.mark.parametrize(
    ("name", "flag"), [("autoencoder", "model"), ("codebook_1", "codebook"), ("transformer_1", "model")]
)
def test_resume_and_another_start_exclude_each_other(name, flag, command, tiny_run, tmp_path, capsys):
    more = ("--resume", f"--{flag}-path", tiny_run / name / WEIGHTS)
    line = expect_error(capsys, MAINS[name], command(name, "run", *more))
    assert "--resume" in line
    assert f"--{flag}-path" in line
    assert not (tmp_path / "run").exists()


def test_a_stop_while_the_last_step_is_measured_is_a_stop(command, tmp_path, monkeypatch):
    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"val_loss": 1.0, "val_bits": 1.0}

    monkeypatch.setattr(train_quantized_transformer, "mean_over", stop)
    assert expect_exit(MAINS["transformer_1"], command("transformer_1", "run", "--max-step", 1)) == 143
    assert measured_of(tmp_path / "run/models_checkpoint/latest.pt")["val_loss"] == 1


@pytest.mark.parametrize("name", GRADIENT)
def test_what_a_crash_left_unmeasured_is_measured_at_the_next_start(name, command, train, tmp_path, monkeypatch):
    plan = ("--max-step", 2, "--checkpoint-step", 1, "--log-step", 9)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        original, calls = sys.modules[MAINS[name].__module__].mean_over, []

        def crash(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(*arguments)

        patched.setattr(sys.modules[MAINS[name].__module__], "mean_over", crash)
        run_main(MAINS[name], *command(name, "run", *plan))
    assert measured_of(tmp_path / "run/models_checkpoint/latest.pt") == {}
    resumed = train(name, "run", *plan, "--resume")
    assert same(resumed, train(name, "whole", *plan))
    assert [row["step"] for row in rows(tmp_path / "run", "val_loss")] == [1, 2]
    assert same(torch.load(tmp_path / "run/models_checkpoint/best.pt", weights_only=True), resumed)


def content(folder):
    """The bytes of every file of a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", MAINS)
def test_a_start_in_the_folder_of_a_run_is_refused_and_touches_nothing(name, command, train, tmp_path, capsys):
    train(name, "run", "--max-step", 2)
    before = content(tmp_path / "run")
    line = expect_error(capsys, MAINS[name], command(name, "run", "--max-step", 2, "--keep-checkpoint", 1))
    assert "holds a run (latest.pt)" in line
    assert "--resume" in line
    assert "--overwrite" in line
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("lost", ["latest.pt", "best.pt"])
def test_so_it_is_where_only_some_of_the_run_is_left(lost, command, train, tmp_path, capsys):
    train("autoencoder", "run", "--max-step", 1)
    (tmp_path / "run/models_checkpoint" / lost).unlink()
    again = command("autoencoder", "run", "--max-step", 1)
    assert "holds a run" in expect_error(capsys, MAINS["autoencoder"], again)
    for path in (tmp_path / "run/models_checkpoint").iterdir():
        if path.name not in ("best.pt", "measured.json"):
            path.unlink()
    if lost == "latest.pt":
        line = expect_error(capsys, MAINS["autoencoder"], [*again, "--resume"])
        assert "holds a run (best.pt); nothing of it can be resumed: add --overwrite" in line


@pytest.mark.parametrize("name", MAINS)
def test_overwrite_leaves_what_a_run_in_an_empty_folder_leaves_and_a_persons_own_files(name, train, tmp_path):
    train(name, "run", "--max-step", 4, "--checkpoint-step", 1)
    own = [tmp_path / "run/models_checkpoint" / file for file in ("model_before_change.pt", "codebook_1 (copy).pt")]
    own += [tmp_path / "run/images/holiday_2024.png", tmp_path / "run/notes.txt"]
    for path in own:
        path.write_text("mine")
    plan = ("--max-step", 3, "--checkpoint-step", 2)
    found, expected = train(name, "run", *plan, "--overwrite"), train(name, "new", *plan)
    assert same(found, expected)
    names = [{path.relative_to(tmp_path / out) for path in (tmp_path / out).rglob("*")} for out in ("run", "new")]
    assert names[0] == names[1] | {path.relative_to(tmp_path / "run") for path in own}
    assert [row["step"] for row in rows(tmp_path / "run")] == [row["step"] for row in rows(tmp_path / "new")]


def test_overwrite_resumes_what_fits_and_replaces_what_does_not(train, command, tmp_path, capsys):
    flags, autoencoder = ("--resume", "--overwrite"), MAINS["autoencoder"]
    train("autoencoder", "run", "--max-step", 2)
    assert same(train("autoencoder", "run", "--max-step", 4, *flags), train("autoencoder", "whole", "--max-step", 4))
    other = ("--max-step", 2, "--seed", 1)
    assert "another --seed (0, now 1)" in expect_error(
        capsys, autoencoder, command("autoencoder", "run", *other, "--resume")
    )
    assert same(train("autoencoder", "run", *other, *flags), train("autoencoder", "other", *other))


def test_a_start_removes_the_latest_checkpoint_first(train, tmp_path, monkeypatch):
    """So that a start that is killed then leaves no run that seems whole."""
    train("autoencoder", "run", "--max-step", 2, "--checkpoint-step", 1)
    removed, original = [], type(tmp_path).unlink

    def unlink(path, **options):
        removed.append(path.name)
        original(path, **options)

    monkeypatch.setattr(type(tmp_path), "unlink", unlink)
    train("autoencoder", "run", "--max-step", 1, "--overwrite")
    ours = [name for name in removed if name.endswith(".pt") and not name.startswith(".")]
    assert ours[:2] == ["latest.pt", "best.pt"]
    assert sorted(ours[2:]) == ["model_1.pt", "model_2.pt"]


@pytest.mark.parametrize("name", ["autoencoder", "codebook_1"])
def test_the_newest_checkpoints_are_kept_by_step_and_a_persons_copies_stay(name, train, tmp_path):
    prefix = "codebook" if name == "codebook_1" else "model"
    folder = tmp_path / "run/models_checkpoint"
    folder.mkdir(parents=True)
    own = {f"{prefix}_before_change.pt", f"{prefix}_2.pt.bak", f"{prefix}_.pt", f"my_{prefix}_1.pt"}
    for file in own:
        (folder / file).write_text("mine")
    train(name, "run", "--max-step", 2, "--checkpoint-step", 1)
    later = (folder / f"{prefix}_2.pt").stat().st_mtime + 1000
    os.utime(folder / f"{prefix}_1.pt", (later, later))
    train(name, "run", "--max-step", 3, "--checkpoint-step", 1, "--keep-checkpoint", 2, "--resume")
    made = {path.name for path in folder.iterdir()} - own
    assert made - {"latest.pt", "best.pt", "measured.json"} == {f"{prefix}_2.pt", f"{prefix}_3.pt"}
    assert all((folder / file).read_text() == "mine" for file in own)


def test_a_run_whose_latest_and_best_are_gone_resumes_from_the_highest_step(train, tmp_path):
    plan = ("--max-step", 11, "--checkpoint-step", 3)
    whole = train("autoencoder", "whole", *plan)
    train("autoencoder", "run", "--max-step", 10, "--checkpoint-step", 3)
    for name in ("latest.pt", "best.pt", "model_10.pt"):
        (tmp_path / "run/models_checkpoint" / name).unlink()
    assert same(train("autoencoder", "run", *plan, "--resume"), whole)
    best = [measured_of(tmp_path / out / "models_checkpoint/best.pt") for out in ("run", "whole")]
    assert best[0] == best[1] != {}


@pytest.mark.parametrize("name", MAINS)
def test_a_stop_saves_no_checkpoint_and_no_row_that_an_uninterrupted_run_would_not_have(
    name, command, train, tmp_path, monkeypatch
):
    plan = ("--max-step", 8, "--checkpoint-step", 4, "--log-step", 3)
    train(name, "whole", *plan)
    with monkeypatch.context() as patched:
        interrupt(patched, MapLearner if name == "codebook_1" else GradientLearner, 4, signal.SIGTERM)
        assert expect_exit(MAINS[name], command(name, "parts", *plan)) == 143
    prefix = "codebook" if name == "codebook_1" else "model"
    made = {path.name for path in (tmp_path / "parts/models_checkpoint").iterdir()}
    assert made - {"best.pt"} == {f"{prefix}_4.pt", "latest.pt", "measured.json"}
    assert latest(tmp_path / "parts")["step"] == 5
    assert max(row["step"] for row in rows(tmp_path / "parts")) == 4
    train(name, "parts", *plan, "--resume")
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.parametrize("name", MAINS)
def test_a_crash_while_a_checkpoint_is_drawn_is_made_good(name, command, train, tmp_path, monkeypatch):
    plan = ("--max-step", 4, "--checkpoint-step", 2)
    train(name, "whole", *plan)
    script, calls = sys.modules[MAINS[name].__module__], []
    original = script.save_grid

    def crash(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(*arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(script, "save_grid", crash)
        run_main(MAINS[name], *command(name, "parts", *plan))
    train(name, "parts", *plan, "--resume")
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.parametrize("part", ["take_census", "arrange", "save_map", "decoded_psnr"])
def test_a_crash_in_the_last_pass_of_a_codebook_is_made_good(part, command, train, tmp_path, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    train("codebook_1", "whole", "--max-step", 3)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(train_codebook, part, crash)
        run_main(MAINS["codebook_1"], *command("codebook_1", "parts", "--max-step", 3))
    train("codebook_1", "parts", "--max-step", 3, "--resume")
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.parametrize("pruned", [False, True])
def test_a_codebook_that_goes_on_from_another_is_resumed_as_it_was(
    pruned, command, train, tiny_run, tmp_path, monkeypatch
):
    """At the final radius from its first step, and with as many units as the other one has left."""
    start = tiny_run / "codebook_1" / (PRUNED if pruned else WEIGHTS)
    plan = ("--max-step", 6, "--checkpoint-step", 3)
    whole = train("codebook_1", "whole", *plan, "--codebook-path", start)
    with monkeypatch.context() as patched:
        interrupt(patched, MapLearner, 1, signal.SIGTERM)
        assert expect_exit(MAINS["codebook_1"], command("codebook_1", "parts", *plan, "--codebook-path", start)) == 143
    assert same(train("codebook_1", "parts", *plan, "--resume"), whole)
    assert len(whole["model"]["units"]) == len(Codebook.load(start))
    assert {row["radius"] for row in rows(tmp_path / "parts", "radius")} == {0}
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.fixture
def moved(faces, tmp_path):
    """A copy of the faces."""
    return shutil.copytree(faces.parent, tmp_path / "data") / "dataset.json"


def test_other_images_of_the_same_number_and_size_are_refused(train, command, moved, tmp_path, capsys):
    plan = ("--dataset-path", moved, "--resume", "--max-step")
    before = train("autoencoder", "run", *plan, 1)
    images = sorted((moved.parent / "images").rglob("*.png"))
    shutil.copy(images[0], images[1])
    line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", *plan, 2))
    assert f"{tmp_path / 'run' / WEIGHTS}: the files of its data set have other times or sizes" in line
    assert "--verify" in line
    assert same(latest(tmp_path / "run"), before)


def touch(dataset):
    """Give all files of a data set other times."""
    for path in dataset.parent.rglob("*.png"):
        os.utime(path, (1, 1))


def test_copied_data_goes_on_once_it_is_verified(train, command, moved, tmp_path, capsys):
    whole = train("autoencoder", "whole", "--max-step", 3)
    train("autoencoder", "run", "--max-step", 1)
    touch(moved)
    plan = ("--dataset-path", moved, "--resume", "--max-step", 2)
    assert "--verify" in expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", *plan))
    train("autoencoder", "run", *plan, "--verify")
    found = train("autoencoder", "run", "--dataset-path", moved, "--resume", "--max-step", 3)  # verified once
    assert same(found["model"], whole["model"])


def test_verify_finds_a_file_that_is_another(train, command, moved, capsys):
    train("autoencoder", "run", "--max-step", 1)
    images = sorted((moved.parent / "images").rglob("*.png"))
    shutil.copy(images[0], images[1])
    plan = ("--dataset-path", moved, "--resume", "--max-step", 2, "--verify")
    line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", *plan))
    assert f"{images[1]}: is not the file that was written" in line


def test_another_index_is_refused(train, command, moved, capsys):
    plan = ("--dataset-path", moved, "--resume", "--max-step")
    train("autoencoder", "run", *plan, 1)
    moved.write_text(moved.read_text().replace('"labels": []', '"labels": ["new"]', 1))
    line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", *plan, 2, "--verify"))
    assert "was made with another data set" in line


def test_pictures_of_trainings_are_named_in_one_place(tiny_run):
    drawn = {path.stem.rpartition("_")[0] for path in tiny_run.glob("[act]*/images/*.png")}
    assert drawn == set(PICTURES)


@pytest.mark.parametrize("name", MAINS)
def test_a_training_that_was_stopped_can_be_ended_there(name, command, train, tmp_path, monkeypatch):
    """It is measured and drawn as if its last step had been planned, so that later steps find what they need."""
    with monkeypatch.context() as patched:
        interrupt(patched, MapLearner if name == "codebook_1" else GradientLearner, 2, signal.SIGINT)
        assert expect_exit(MAINS[name], command(name, "run", "--max-step", 9)) == 130
    train(name, "run", "--max-step", 1, "--resume", "--num-workers", 1)
    prefix = "codebook" if name == "codebook_1" else "model"
    made = {path.name for path in (tmp_path / "run/models_checkpoint").iterdir()}
    assert made == {"latest.pt", f"{prefix}_3.pt", "measured.json"} | (set() if name == "codebook_1" else {"best.pt"})
    assert [row["step"] for row in rows(tmp_path / "run", "val_loss")][-1] == 3
    assert all(path.stem.endswith("_3") for path in (tmp_path / "run/images").iterdir())
    assert name != "codebook_1" or rows(tmp_path / "run", "topographic_error")[0]["step"] == 3


@pytest.mark.parametrize("name", ["autoencoder", "codebook_1"])
def test_weights_to_begin_from_are_not_removed(name, command, train, tmp_path, capsys):
    train(name, "run", "--max-step", 2)
    flag = "--codebook-path" if name == "codebook_1" else "--model-path"
    start = tmp_path / "run" / WEIGHTS
    before = content(tmp_path / "run")
    line = expect_error(capsys, MAINS[name], command(name, "run", "--max-step", 3, "--overwrite", flag, start))
    assert f"{start}: --overwrite would remove it" in line
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["autoencoder", "codebook_1"])
def test_a_start_from_other_weights_that_saved_nothing_is_not_resumed_without_them(
    name, command, train, tiny_run, monkeypatch, capsys
):
    flag = "--codebook-path" if name == "codebook_1" else "--model-path"
    start = (flag, tiny_run / name / WEIGHTS)
    cls = MapLearner if name == "codebook_1" else GradientLearner

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(cls, "update", die)
        run_main(MAINS[name], *command(name, "run", "--max-step", 2, *start))
    line = expect_error(capsys, MAINS[name], command(name, "run", "--max-step", 2, "--resume"))
    assert "has saved nothing yet; give its command once more, without --resume" in line
    assert same(train(name, "run", "--max-step", 2, *start), train(name, "whole", "--max-step", 2, *start))


def test_overwrite_does_not_replace_a_run_for_the_times_of_its_data(train, moved, tmp_path):
    plan = ("--dataset-path", moved, "--max-step")
    train("autoencoder", "run", *plan, 2)
    touch(moved)
    found = train("autoencoder", "run", *plan, 4, "--resume", "--overwrite")
    assert same(found["model"], train("autoencoder", "whole", "--max-step", 4)["model"])
    assert (tmp_path / "run/models_checkpoint/model_2.pt").exists()


def damage(path):
    """Damage a checkpoint, but not the file that it is linked to."""
    octets = bytearray(path.read_bytes())
    octets[len(octets) // 2] ^= 1
    path.unlink()
    path.write_bytes(octets)


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_a_damaged_checkpoint_costs_no_more_than_the_steps_since_the_one_before(flags, train, tmp_path):
    plan = ("--checkpoint-step", 2, "--max-step")
    train("autoencoder", "whole", *plan, 6)
    train("autoencoder", "run", *plan, 6)
    for name in ("latest.pt", "best.pt", "model_4.pt", "model_6.pt"):
        damage(tmp_path / "run/models_checkpoint" / name)
    train("autoencoder", "run", *plan, 6, "--resume", *flags)
    assert differences(tmp_path / "whole", tmp_path / "run") == []
    log = (tmp_path / "run/train.log").read_text()
    assert "going on from model_2.pt" in log
    assert "best.pt: not a readable checkpoint" in log


@pytest.mark.parametrize("name", MAINS)
@pytest.mark.parametrize("lost", ["gone", "damaged"])
def test_the_latest_checkpoint_of_a_training_that_has_ended_is_made_good(name, lost, train, tmp_path):
    plan = ("--checkpoint-step", 2, "--max-step", 4)
    train(name, "whole", *plan)
    train(name, "run", *plan)
    path = tmp_path / "run" / WEIGHTS
    damage(path)
    if lost == "gone":
        path.unlink()
    train(name, "run", *plan, "--resume")
    assert differences(tmp_path / "whole", tmp_path / "run") == []
    assert "going on from " in (tmp_path / "run/train.log").read_text()


@pytest.mark.parametrize("text", ["", "[]", '{"%s": null}', '{"%s": 3}', "no JSON"])
def test_what_was_measured_may_be_lost_or_damaged(text, train, tmp_path):
    plan = ("--checkpoint-step", 1, "--max-step")
    train("autoencoder", "run", *plan, 1)
    file = tmp_path / "run/models_checkpoint/measured.json"
    if text:
        file.write_text(text.replace("%s", latest(tmp_path / "run")["fingerprint"]))
    else:
        file.unlink()
    assert train("autoencoder", "run", *plan, 2, "--resume")["step"] == 2
    assert measured_of(tmp_path / "run/models_checkpoint/best.pt")["val_loss"] > 0
    assert "how good it is was lost, so the next checkpoint replaces it" in (tmp_path / "run/train.log").read_text()


def test_a_refused_resume_makes_no_best_checkpoint(train, command, tmp_path, monkeypatch, capsys):
    train("autoencoder", "run", "--max-step", 1)
    best = tmp_path / "run/models_checkpoint/best.pt"
    best.unlink()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    again = ("--max-step", 1, "--resume")
    assert "--tensorboard" in expect_error(
        capsys, MAINS["autoencoder"], command("autoencoder", "run", *again, "--tensorboard")
    )
    assert not best.exists()
    train("autoencoder", "run", *again)
    assert same(torch.load(best, weights_only=True), latest(tmp_path / "run"))


def test_lost_and_damaged_rows_cost_neither_weights_nor_statistics(train, tmp_path):
    whole = train("codebook_1", "run", "--max-step", 3)
    metrics = tmp_path / "run/metrics.jsonl"
    metrics.unlink()
    for _ in range(2):
        found = train("codebook_1", "run", "--max-step", 3, "--resume")
        assert same(found["statistics"], whole["statistics"])
        assert same(found["model"], whole["model"])
        assert rows(tmp_path / "run", "topographic_error")[0]["step"] == 3
    with metrics.open("ab") as file:
        file.write(b"\xff\xfe\n5\n{}\n")
    assert same(train("codebook_1", "run", "--max-step", 3, "--resume")["model"], whole["model"])


def test_rows_that_somebody_removes_do_not_keep_weights_from_being_saved(train, tmp_path, monkeypatch):
    original = GradientLearner.update

    def update(self, batch, step, share):
        if step == 1:
            (tmp_path / "run/metrics.jsonl").unlink()
        return original(self, batch, step, share)

    monkeypatch.setattr(GradientLearner, "update", update)
    assert train("autoencoder", "run", "--max-step", 2)["step"] == 2


def test_a_checkpoint_without_a_training_is_named(train, command, tiny_run, tmp_path, capsys):
    train("codebook_1", "run", "--max-step", 1)
    shutil.copy(tiny_run / "codebook_1" / PRUNED, tmp_path / "run" / WEIGHTS)
    line = expect_error(capsys, MAINS["codebook_1"], command("codebook_1", "run", "--max-step", 2, "--resume"))
    assert "is no checkpoint of a training, without settings" in line


def test_a_full_disk_is_named_with_the_file(train, command, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fail)
    line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", "--max-step", 1))
    assert f"{tmp_path / 'run/models_checkpoint/model_1.pt'}: cannot be written" in line
    assert "is the disk full?" in line


def test_feature_maps_that_were_moved_away_from_their_images_are_the_same(train, tiny_run, tmp_path):
    """What is written of where the images lie is no part of a data set of feature maps."""
    train("codebook_1", "run", "--max-step", 1)
    index = tiny_run / "feature_maps/dataset.json"
    text = index.read_text()
    try:
        index.write_text(text.replace('"image_path": "', '"image_path": "elsewhere/'))
        train("codebook_1", "run", "--max-step", 2, "--resume")
    finally:
        index.write_text(text)
