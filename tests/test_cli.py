"""How scripts end by a signal: a lost terminal is like a scheduler's SIGTERM, unless nohup has it ignored."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.scripts import TINY
from utils.data.batches import _ignore_stop
from utils.runtime import cli
from utils.training.loop import catch_stop

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def hangups():
    """The signals that would have ended the process; what is done with SIGHUP is put back afterwards."""
    received, before = [], signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGHUP, 129), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_becomes_an_exit_status(number, status):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
    with pytest.raises(SystemExit) as found:
        cli.run(lambda: os.kill(os.getpid(), number))
    assert found.value.code == status


def test_what_nohup_has_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    cli.run(lambda: os.kill(os.getpid(), signal.SIGHUP))
    with catch_stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
    assert stop == []
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_training_takes_any_number_of_hangups_for_one(hangups):
    with catch_stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
    assert (stop[0], hangups) == (signal.SIGHUP, [])
    os.kill(os.getpid(), signal.SIGHUP)
    assert hangups == [signal.SIGHUP]


def test_a_loading_process_leaves_a_hangup_to_its_parent(hangups):
    _ignore_stop(0)
    os.kill(os.getpid(), signal.SIGHUP)
    assert hangups == []


def start_training(faces, out, **options):
    flags = ["--dataset-path", faces, "--config-path", TINY / "autoencoder.json", "--out-dir", out, "--device", "cpu"]
    flags += ["--num-workers", 2, "--batch-size", 4, "--max-step", 10**6, "--checkpoint-step", 10**6]
    process = subprocess.Popen(
        [sys.executable, ROOT / "train_autoencoder.py", *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    return process


def test_a_training_that_loses_its_terminal_saves(faces, tmp_path):
    process = start_training(faces, tmp_path / "run", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    for _ in range(2):
        os.killpg(process.pid, signal.SIGHUP)
        time.sleep(0.01)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 129, errors
    assert "Traceback" not in errors
    assert torch.load(tmp_path / "run/models_checkpoint/latest.pt", weights_only=True)["step"] >= 1
    assert json.loads((tmp_path / "run/run.json").read_text())["attempts"][-1]["outcome"] == "stopped by SIGHUP"


def test_a_training_under_nohup_goes_on(faces, tmp_path):
    process = start_training(faces, tmp_path / "run", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    metrics = tmp_path / "run/metrics.jsonl"
    size = metrics.stat().st_size
    os.killpg(process.pid, signal.SIGHUP)
    while process.poll() is None and metrics.stat().st_size == size:
        time.sleep(0.05)
    assert process.poll() is None
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
