"""A run, killed at drawn points and started again each time, leaves what an uninterrupted one leaves.

A point is the call of the operating system before which it gets a signal. `--kills 300` kills it so often, and
`--kill-seed` repeats the points of a test, which prints its seed.
"""

import builtins
import io
import itertools
import os
import random
import shutil
import signal

from scripts import export, make_dataset, train_cascade
from tests.helpers.chain import recipe_of
from tests.helpers.deaths import differences
from tests.helpers.jobs import run_job
from tests.helpers.runs import SMALL, recipe_json
from tests.helpers.scripts import run_main
from utils.data.dataset import ImageDataset

CALLS = [(os, name) for name in ("open", "mkdir", "replace", "link", "unlink", "rmdir", "fsync", "sync")]
CALLS += [(io, "open"), (builtins, "open")]
PARTS = 12  # of a run, in each of which it is killed about once
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # the first is the hardest
SHORT = {"batch_size": 6, "log_step": 2, "max_step": 5, "warmup_step": 1, "checkpoint_step": 2}
SETTINGS = {name: SMALL.settings[name] for name in ("feature_maps", "codebook", "prune")}
SETTINGS |= {"autoencoder": SHORT | {"flip": True}, "decoder": SHORT, "transformer_0": SHORT | {"test_num_sample": 2}}
SETTINGS["codebook"] = SETTINGS["codebook"] | {"max_epoch": 3, "checkpoint_step": 3, "keep_checkpoint": 2}
SETTINGS["generate"] = {"num_images": 7, "batch_size": 3, "animate": "webp"}


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


def start(folder, faces, log, last=None, number=signal.SIGKILL):
    """Go from pictures to an exported model in a process of its own; return its calls, unless a signal ended it."""

    def work(_):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        counter, run, data = count_calls(last, number), folder / "run", folder / "run/data"
        words = [folder / "pictures", "--image-size", 32, "--num-workers", 0, "--out-dir", data]
        run_main(make_dataset.main, *words)
        run_main(train_cascade.main, f"{folder / 'recipe'}/", data / "dataset.json", run, "--device", "cpu")
        run_main(export.main, "--device", "cpu", run, run / "exported")
        (log / "count").write_text(str(next(counter)))

    ((status, errors),) = run_job(work, log, number=1)
    assert status == 0 or (last is not None and status in {-number, 128 + number}), errors
    return int((log / "count").read_text()) if status == 0 else None


def test_a_run_that_is_killed_again_and_again_leaves_what_an_uninterrupted_one_leaves(
    pytestconfig, tiny_run, faces, tmp_path
):
    """The tiny run is there since it imports what the scripts import late, which would take each start 2 s."""
    kills, seed = pytestconfig.getoption("--kills"), pytestconfig.getoption("--kill-seed")
    print(f"repeat with: pytest tests/test_kill.py --kills {kills} --kill-seed {seed}")
    folder, whole, rng = tmp_path / "here", tmp_path / "whole", random.Random(seed)
    pictures = shutil.copytree(faces.parent, folder / "pictures", ignore=shutil.ignore_patterns("*.json"))
    shutil.copy(ImageDataset(faces).path(3), pictures / "copy.png")
    (pictures / "broken.png").write_bytes(b"no picture")
    (recipe_of(1, folder / "recipe") / "recipe.json").write_text(recipe_json(SETTINGS, image_size=32))
    calls = start(folder, faces, tmp_path / "log")
    (folder / "run").rename(whole)
    points = []
    while len(points) < kills:
        points.append((rng.randrange(2 * calls // PARTS), rng.choice(SIGNALS)))
        if start(folder, faces, tmp_path / "log", *points[-1]) is not None:  # it has ended before that
            shutil.rmtree(folder / "run")
    start(folder, faces, tmp_path / "log")
    assert differences(whole, folder / "run") == [], points
