"""`auto`: what is seen in a data set, what is planned for it, and how the hours are kept."""

import contextlib
import dataclasses
import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scripts import dry_run, recipe, train_cascade
from scripts.auto import expect, plan, train
from scripts.auto.look import DRAWINGS, PHOTOGRAPHS, PIXEL_ART, Fingerprint, look
from tests.conftest import undisturbed
from tests.helpers.scripts import expect_error, run_main
from utils.core.files import UserError
from utils.core.size import Size
from utils.runs.chain import Recipe, steps_of
from utils.runs.folders import RunFolder
from utils.runtime import child
from utils.runtime.child import Attendant

FACES = Fingerprint("d", 64, 9000, 0, 0, 0.05, 8113, 445, 442, 0, 0, 0.81, 90000, 0.05, 0.66, 1.04)


def write_set(folder, images):
    """A data set of arrays (H, W, 3), uint8."""
    images = list(images)
    (folder / "images").mkdir(parents=True)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
    names = [f"images/{number:03}.png" for number in range(len(images))]
    records = {str(index): {"image_fpath": name, "labels": []} for index, name in enumerate(names, 1)}
    (folder / "dataset.json").write_text(json.dumps({"_default": records}))
    return folder / "dataset.json"


def squares(number=120, size=16):
    """Pictures of a plain square on a plain ground, which are soft at the edge by one pixel."""
    random = np.random.default_rng(0)
    for _ in range(number):
        picture = np.full((size, size, 3), random.integers(0, 256, 3), np.uint8)
        (y, x), colour = random.integers(1, size // 2, 2), random.integers(0, 256, 3)
        picture[y : y + size // 2, x : x + size // 2] = picture[0, 0] // 2 + colour // 2
        picture[y + 1 : y + size // 2 - 1, x + 1 : x + size // 2 - 1] = colour
        yield picture


def play(attendant, command, *, seconds=None, **_):
    """Run a program of the project in this process, which has torch already."""
    words = [str(word) for word in command[1:]]
    name, arguments = (words[1], words[2:]) if words[0] == "-m" else (Path(words[0]).stem, words[1:])
    with undisturbed():
        run_main(import_module(name).main, *arguments)
    return 0


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder, and programs that run in this process."""
    monkeypatch.setattr(Attendant, "run", play)
    monkeypatch.setattr(train, "seconds_to_start", lambda: 0.1)
    return tmp_path


def test_a_run_ends_with_pictures_and_a_report_and_resumes_where_it_was_killed(here, monkeypatch, capsys):
    monkeypatch.setattr(plan, "PASSES", dict.fromkeys(plan.PASSES, 1))
    monkeypatch.setattr(plan, "CODEBOOK_STEPS", 20)
    dataset, out = write_set(here / "data", squares()), here / "out"
    command = ["auto", dataset, out, "--hours", 1, "--device", "cpu"]
    import time
    t=time.process_time()
    run_main(train_cascade.main, *command)
    output = capsys.readouterr().out
    print(output[-4000:])
    print((out/"recipe/recipe.md").read_text())
    print((out/"recipe/auto.json").read_text())
    print(time.process_time()-t)
