"""run.json: an entry an attempt, only of those whose checks have passed."""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train_autoencoder
from tests.helpers.scripts import TINY, expect_error, expect_exit, run_main
from utils.core.files import UserError
from utils.core.options import parse_options
from utils.runs.attempt import FINISHED, read_attempts
from utils.runs.folders import OutputFolder
from utils.training.gradient import GradientLearner


@pytest.fixture
def argv(faces, tmp_path):
    return [
        "--dataset-path", faces, "--config-path", TINY / "autoencoder.json", "--out-dir", tmp_path / "run",
        "--device", "cpu", "--batch-size", 16, "--max-step", 2, "--checkpoint-step", 1,
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return OutputFolder(tmp_path / "run")


def test_an_attempt_holds_what_was_asked_with_what_and_how_it_ended(argv, folder):
    run_main(train_autoencoder.main, *argv)
    run_main(train_autoencoder.main, *argv, "--resume")
    first, second = read_attempts(folder)
    assert (first.script, first.outcome, second.outcome) == ("train_autoencoder.py", FINISHED, FINISHED)
    assert first.config == json.loads((TINY / "autoencoder.json").read_text()) | {
        "num_enc_res_blocks": 1, "num_dec_res_blocks": 1, "weight_decay": 2e-5
    }  # fmt: skip
    assert (first.device, first.threads) == ("cpu", torch.get_num_threads())
    assert first.versions["torch"] == torch.__version__
    assert first.begin < first.end <= second.begin
    assert first.seconds > 0
    assert not first.arguments["resume"]
    assert second.arguments["resume"]
    words = shlex.split(first.command)
    assert words[:2] == ["python", "train_autoencoder.py"]
    typed = parse_options(train_autoencoder.Options, "", words[2:])
    assert {name: str(value) for name, value in vars(typed).items()} == {
        name: str(value) for name, value in first.arguments.items()
    }


@pytest.mark.parametrize("flags", [["--resume", "--seed", 1], ["--config-path", "no-such.json"], ["--device", "x"]])
def test_a_refused_attempt_changes_nothing(flags, argv, folder, capsys):
    run_main(train_autoencoder.main, *argv)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    expect_error(capsys, train_autoencoder.main, [*argv, *flags])
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def failing(error, at=1):
    original = GradientLearner.update

    def update(self, batch, step, share):
        if step == at:
            raise error
        return original(self, batch, step, share)

    return update


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UserError("map.npy: not a feature map"), "failed: UserError: map.npy: not a feature map"),
        (KeyboardInterrupt(), "stopped by SIGINT"),
        (SystemExit(143), "stopped by SIGTERM"),
    ],
)
def test_what_ended_an_attempt_is_kept(error, outcome, argv, folder, monkeypatch):
    monkeypatch.setattr(GradientLearner, "update", failing(error))
    expect_exit(train_autoencoder.main, argv)
    assert [attempt.outcome for attempt in read_attempts(folder)] == [outcome]


def test_a_killed_attempt_lasted_until_its_last_checkpoint(argv, folder):
    script = Path(__file__).parent.parent / "train_autoencoder.py"
    words = [str(word) for word in [*argv, "--max-step", 10**6, "--checkpoint-step", 5]]
    process = subprocess.Popen([sys.executable, script, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (folder.checkpoints / "model_10.pt").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    attempt = read_attempts(folder)[-1]
    assert attempt.outcome == "running"
    assert attempt.seconds > 0


@pytest.mark.parametrize(
    ("content", "named"),
    [("{", "not valid JSON"), ('{"attempts": [{}]}', "missing key 'script'"), ('{"attempts": 3}', "'attempts' is 3")],
)
def test_a_damaged_record_is_named(content, named, folder):
    assert read_attempts(folder) == []
    folder.path.mkdir()
    folder.record.write_text(content)
    with pytest.raises(UserError, match=f"run.json.*{named}"):
        read_attempts(folder)


def test_a_resume_with_other_threads_is_reported(argv, folder):
    run_main(train_autoencoder.main, *argv)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        run_main(train_autoencoder.main, *argv, "--resume")
    finally:
        torch.set_num_threads(threads)
    assert (
        f"began with {threads} threads, now there are {threads + 1}" in folder.log("train_autoencoder.py").read_text()
    )
