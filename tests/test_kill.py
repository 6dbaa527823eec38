"""A step that is killed at any point, and started again, leaves what one leaves that nothing interrupts, to the bit.

`pytest tests/test_kill.py --kills 300` tries that many points; which ones, is a function of their number alone.
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from tests.helpers.results import differences
from tests.helpers.scripts import TINY
from utils.core.options import words_of
from utils.runs.chain import ROOT, Recipe, steps_of
from utils.runs.folders import RunFolder
from utils.runtime.cli import run

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# A signal comes before one of these calls: of the operating system, and of the project, where a step has written half.
CALLS = ("replace", "link", "unlink", "fsync", "sync", "rmdir")
MEASURED = ("mean_over", "count_maps", "decoded_psnr", "arrange", "quantize", "write_png", "write_dataset")
MODULES = ("train_codebook", "train_autoencoder", "train_quantized_transformer", "prune_codebook", "models.tokens")
MODULES += ("utils.data.images", "scripts.make_dataset", "utils.data.dataset_json", "scripts.export")
TRAINING = {"batch_size": 6, "val_fraction": 0.2, "log_step": 2, "max_step": 5, "checkpoint_step": 2}
SETTINGS = {
    "autoencoder": TRAINING | {"keep_checkpoint": 2, "flip": True},
    "feature_maps": {"flip": True, "num_files_folder": 9, "batch_size": 5},
    "codebook": TRAINING | {"keep_checkpoint": 2, "max_step": 7, "checkpoint_step": 3},
    "prune": {"prune_threshold": 1},
    "decoder": TRAINING,
    "transformer_0": TRAINING | {"test_num_sample": 2},
    "generate": {"num_images": 7, "batch_size": 3, "animate": "webp"},
}


def cases(folder):
    """The steps of a chain, each a module and its arguments, from pictures in a folder to an exported model."""
    yield "scripts.make_dataset", [folder / "pictures", "--image-size", 32, "--out-dir", folder / "data"]
    run = RunFolder(folder, 1)
    for step in steps_of(run, Recipe(TINY, SETTINGS), run.images):
        yield step.script, [*words_of(step.options), "--device", "cpu", "--out-dir", step.folder.path]
    yield "scripts.export", [folder, folder / "exported", "--device", "cpu"]


def in_child(module, words, last=None, number=signal.SIGKILL):
    """Run a script in a child, which gets a signal before its call number `last`; return the number of its calls."""
    calls, (reader, writer) = itertools.count(), os.pipe()
    if pid := os.fork():
        os.close(writer)
        _, status = os.waitpid(pid, 0)
        written = os.read(reader, 99)
        os.close(reader)
        assert last is not None or status == 0, (module, status)
        return int(written or 0)

    def counted(function):
        def call(*arguments, **options):
            if next(calls) == last:
                os.kill(os.getpid(), number)
            return function(*arguments, **options)

        return call

    try:
        for owner, names in ((os, CALLS), *((import_module(name), MEASURED) for name in MODULES)):
            for name in names:
                if hasattr(owner, name):
                    setattr(owner, name, counted(getattr(owner, name)))
        run(lambda: import_module(module).main([str(word) for word in words]))
        os.write(writer, str(next(calls)).encode())
        os._exit(0)
    except BaseException as error:
        print(repr(error))
        os._exit(1)


def draw_pictures(folder):
    """Some pictures, of which two are equal and one is broken."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    for number in range(24):
        image = Image.new("RGB", (40, 32), tuple(rng.choices(range(256), k=3)))
        ImageDraw.Draw(image).ellipse((rng.randrange(12), 3, 30, 28), fill=tuple(rng.choices(range(256), k=3)))
        image.save(folder / f"{number:02d}.png")
    shutil.copy(folder / "03.png", folder / "10_copy.png")
    (folder / "broken.png").write_bytes(b"no picture")


def kill(folder, kills):
    """Run each step; then, from what was there before it, again with a kill and a restart, for the points drawn."""
    torch.set_num_threads(1)  # one that forks has no other, and equal results need as many
    whole, before, expected, rng = folder / "run", folder / "before", folder / "expected", random.Random(kills)
    draw_pictures(whole / "pictures")
    (whole / "generate.json").write_text(json.dumps({"0": json.loads((TINY / "generate.json").read_text())["0"]}))
    steps = [*cases(whole)]
    chosen = [rng.randrange(len(steps)) for _ in range(kills)]
    for number, (module, words) in enumerate(steps):
        shutil.copytree(whole, before)
        calls = in_child(module, words)
        shutil.copytree(whole, expected)
        for _ in range(chosen.count(number)):
            last, name = rng.randrange(calls), rng.choice(SIGNALS)
            shutil.rmtree(whole)
            shutil.copytree(before, whole)
            in_child(module, words, last, name)
            in_child(module, words)
            assert not (differing := differences(whole, expected)), (
                f"{differing}: {module} {words} gets {name!r} at call {last} of {calls}"
            )
        shutil.rmtree(before)
        shutil.rmtree(expected)


def test_a_step_that_is_killed_and_started_again_leaves_what_an_uninterrupted_one_leaves(request, tmp_path):
    command = [sys.executable, "-m", "tests.test_kill", tmp_path, str(request.config.getoption("--kills"))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # since only one thread can fork
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]


if __name__ == "__main__":
    kill(Path(sys.argv[1]), int(sys.argv[2]))
