"""How scripts end by a signal: a lost terminal is like a scheduler's SIGTERM, unless nohup has it ignored."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.helpers.jobs import until
from tests.helpers.runs import latest
from utils.runs.chain import ROOT
from utils.runs.manifest import log_file
from utils.runtime import child, cli
from utils.training.loop import catch_stop


@pytest.fixture(autouse=True)
def hangups():
    """The signals that would have ended the process; what is done with SIGHUP is put back afterwards."""
    received, before = [], signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGHUP, before)


def test_what_nohup_has_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    cli.run(lambda: os.kill(os.getpid(), signal.SIGHUP))
    with catch_stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
    assert stop == []
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_signal_to_all_processes_of_a_training_saves_once_also_while_others_load(command, tmp_path, request):
    """Under nohup two hangups of a lost terminal change nothing, and Ctrl-C stops it."""
    run = tmp_path / "run"
    flags = ("--num-workers", 2, "--batch-size", 4, "--max-step", 10**6, "--checkpoint-step", 10**6)
    words = [sys.executable, ROOT / "train_autoencoder.py", *map(str, command("autoencoder", "run", *flags))]

    def preexec():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(words, preexec_fn=preexec, **pipes)
    request.addfinalizer(process.kill)

    def size():
        return (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").exists() else 0

    def wait_for_rows(more_than):
        until(lambda: process.poll() is not None or size() > more_than)

    wait_for_rows(0)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGHUP)
        time.sleep(0.01)
    wait_for_rows(size())
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert latest(run)["step"] >= 1
    outcome = json.loads((run / "manifest.json").read_text())["attempts"][-1]["outcome"]
    assert outcome == "stopped by SIGINT"


def test_ctrl_c_amid_the_imports_leaves_no_traceback():
    code = "import utils.runtime.threads; raise KeyboardInterrupt"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "interrupted\n")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (MemoryError(), "error: out of memory: lower --batch-size (with"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "error: out of memory: lower --batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), "out of memory"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), "lower --num-workers"),
        (RuntimeError("unable to write to file </torch_3_4>: No space left on device (28)"), "--num-workers 0"),
    ],
)
def test_an_error_of_the_machine_is_one_line_with_advice_and_status_1(error, advice, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as stopped:
        cli.run(fail)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1
    assert advice in line
    assert "what was saved is intact" in line


@pytest.mark.parametrize("begin", ["cli.run", "child.main"])  # of a step, and of the chain of steps
def test_a_process_ends_when_its_parent_was_killed(begin):
    child = "import time; from utils.runtime import child, cli; "
    child += f"{begin}(lambda: (print('begun', flush=True), time.sleep(30)))"
    parent = "import sys; from utils.runtime.child import Attendant; "
    parent += f"Attendant().run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    process.kill()
    since = time.monotonic()
    assert process.stdout.read() == ""  # ends once neither holds it any more
    assert time.monotonic() - since < 15


def test_a_name_that_is_not_utf8_is_escaped_in_what_is_printed_and_logged(tmp_path, monkeypatch):
    """Python would print a traceback for each line of a log."""
    for call in (cli.run, child.main):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
        call(lambda: print("caf\udce9"))
        sys.stdout.flush()
        assert sys.stdout.buffer.getvalue() == b"caf\\udce9\n"
    handler = log_file(tmp_path / "train.log")
    handler.emit(logging.makeLogRecord({"msg": "caf\udce9"}))
    handler.close()
    assert (tmp_path / "train.log").read_bytes() == b"caf\\udce9\n"
