"""Each step of a small chain, killed at a drawn point and started again, leaves what an uninterrupted one leaves.

A point is the call of the operating system before which the step gets a signal. `--kills 50` kills each step so often,
and `--kill-seed` repeats the points of a run, which prints its seed.
"""

import builtins
import io
import itertools
import json
import os
import random
import shutil
import signal
from importlib import import_module

from scripts import export, make_dataset
from tests.helpers.deaths import differences
from tests.helpers.jobs import run_job
from tests.helpers.runs import SMALL
from tests.helpers.scripts import TINY, run_main
from utils.data.dataset import ImageDataset
from utils.runs.chain import Recipe, steps_of
from utils.runs.folders import RunFolder

CALLS = [(os, name) for name in ("open", "mkdir", "replace", "link", "unlink", "rmdir", "fsync", "sync")]
CALLS += [(io, "open"), (builtins, "open")]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # the first is the hardest
SHORT = {"device": "cpu", "batch_size": 6, "log_step": 2, "max_step": 5, "warmup_step": 1, "checkpoint_step": 2}
SETTINGS = {name: {"device": "cpu"} | settings for name, settings in SMALL.settings.items()}
SETTINGS |= {"autoencoder": SHORT | {"flip": True}, "decoder": SHORT, "transformer_0": SHORT | {"test_num_sample": 2}}
SETTINGS["codebook"] |= {"max_epoch": 3, "checkpoint_step": 3, "keep_checkpoint": 2}
SETTINGS["generate"] |= {"num_images": 7, "batch_size": 3, "animate": "webp"}


def commands(pictures, path):
    """The name, the `main` and the arguments of each step of a chain with one stage, before it of its data."""
    run = RunFolder(path, 1)
    yield "data", make_dataset.main, [pictures, "--image-size", 32, "--num-workers", 0, "--out-dir", run.images.parent]
    for step in steps_of(run, Recipe(TINY, SETTINGS), run.images):
        yield step.name, import_module(step.script).main, step.command[1:]
    yield "export", export.main, ["--device", "cpu", path, path / "exported"]


def count_calls(last, number):
    """Count the calls of this process, and send it a signal before the one whose number is `last`."""
    counter, process = itertools.count(), os.getpid()

    def counted(function):
        def call(*arguments, **options):
            if os.getpid() == process and next(counter) == last:
                os.kill(process, number)
            return function(*arguments, **options)

        return call

    for module, name in CALLS:
        setattr(module, name, counted(getattr(module, name)))
    return counter


def start(main, arguments, log, last=None, number=signal.SIGKILL):
    """Run a step in a process of its own; returns how many calls it made, unless a signal ended it."""

    def work(_):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        counter = count_calls(last, number)
        run_main(main, *arguments)
        (log / "count").write_text(str(next(counter)))

    ((status, errors),) = run_job(work, log, number=1)
    assert status == 0 or (last is not None and status in {-number, 128 + number}), errors
    return int((log / "count").read_text()) if status == 0 else None


def test_a_step_that_is_killed_and_started_again_leaves_what_an_uninterrupted_one_leaves(
    pytestconfig, tiny_run, faces, tmp_path
):
    """The tiny run is there since it imports what the scripts import late, which would take each start 2 s."""
    kills, seed = pytestconfig.getoption("--kills"), pytestconfig.getoption("--kill-seed")
    print(f"repeat with: pytest tests/test_kill.py --kills {kills} --kill-seed {seed}")
    run, before, whole, log = (tmp_path / name for name in ("run", "before", "whole", "log"))
    run.mkdir()
    stages = json.loads((TINY / "generate.json").read_text())
    (run / "generate.json").write_text(json.dumps({"0": stages["0"]}))
    pictures = shutil.copytree(faces.parent, tmp_path / "pictures", ignore=shutil.ignore_patterns("*.json"))
    shutil.copy(ImageDataset(faces).path(3), pictures / "copy.png")
    (pictures / "broken.png").write_bytes(b"no picture")
    for name, main, arguments in commands(pictures, run):
        shutil.copytree(run, before)
        calls = start(main, arguments, log)
        run.rename(whole)
        rng = random.Random(f"{seed} {name}")
        for _ in range(kills):
            shutil.copytree(before, run)
            place, number = rng.randrange(calls), rng.choice(SIGNALS)
            point = f"{name}, {number.name} before call {place} of {calls}"
            assert start(main, arguments, log, place, number) is None, point
            start(main, arguments, log)
            assert differences(whole, run) == [], point
            shutil.rmtree(run)
        whole.rename(run)
        shutil.rmtree(before)
