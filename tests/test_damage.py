"""A damaged file of any kind is read, or refused in one line: never another error, and never slow or large.

`pytest tests/test_damage.py --damages 1000` tries that many of each kind.
"""

import copy
import io
import json
import math
import shutil
import time
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train_autoencoder
from models.cascade import Cascade
from reporting.run import read_run
from scripts import export, train_cascade
from tests.conftest import undisturbed
from tests.helpers.scripts import TINY, run_main
from utils.core.files import UserError
from utils.data.dataset import FeatureMapDataset, ImageDataset
from utils.data.journal import Journal
from utils.data.split import Bounds
from utils.runs.chain import Recipe
from utils.runs.folders import RunFolder
from utils.runtime.cli import fault_of
from utils.runtime.device import peak_memory

ODD = (None, True, -1, 0, 1.5, 10**40, math.nan, "", "\0", "\ud800", "../x", "x" * 9999, [], {}, [[]], [None])
NAMES = ("images", "maps", "recipe", "run", "model", "journal", "resume")


def load(folder):
    return Cascade.load(folder, device="cpu", precision="fp32")


def use(dataset):
    dataset[dataset.split(Bounds()).training[:3]]
    [dataset.label(index) for index in range(len(dataset))]
    return dataset.fingerprint


@pytest.fixture(scope="module")
def targets(tiny_run, faces, tmp_path_factory):
    """The folder in which a file is damaged, and what reads it, by the names in `NAMES`."""
    scratch = {name: tmp_path_factory.mktemp("damage") / name for name in NAMES}
    run = RunFolder(shutil.copytree(tiny_run, scratch["run"], ignore=shutil.ignore_patterns("images", "*.log")))
    images = shutil.copytree(faces.parent, scratch["images"]) / faces.name
    maps = shutil.copytree(run.feature_maps.path, scratch["maps"]) / run.feature_maps.dataset.name
    recipe = shutil.copytree(TINY, scratch["recipe"])
    run_main(export.main, tiny_run, scratch["model"], "--device", "cpu")
    scratch["journal"].mkdir()
    record = scratch["journal"] / "unfinished.jsonl"
    Journal(record, "key").add({"0": {"places": [["a.png", None, "a"]]}})

    def chain(recipe):
        options = train_cascade.Options(recipe="tiny-32", dataset=faces, out=run.path, overwrite=True)
        return train_cascade.Chain(recipe, options)

    def train(steps=5):
        words = ["--dataset-path", faces, "--config-path", TINY / "autoencoder.json", "--out-dir", scratch["resume"]]
        words += ["--device", "cpu", "--batch-size", 4, "--num-workers", 0, "--checkpoint-step", 2, "--resume"]
        with undisturbed():
            run_main(train_autoencoder.main, *words, "--max-step", steps)

    train(3)
    return scratch, {
        "images": lambda: use(ImageDataset(images)),
        "maps": lambda: use(FeatureMapDataset(maps)),
        "recipe": lambda: chain(Recipe.find(recipe)),
        "run": lambda: (read_run(run), chain(Recipe.find("tiny-32")), load(run.path)),
        "model": lambda: load(scratch["model"]),
        "journal": lambda: Journal(record, "key").find("0"),
        "resume": train,
    }


def alter(value, rng):
    """A value of JSON or of a checkpoint in which one part is odd, missing, or a copy of another."""
    places, parts = [], [value]
    while parts:
        part = parts.pop()
        keys = [*part] if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        places += [(part, key) for key in keys]
        parts += [part[key] for key in keys]
    if not places:
        return rng.choice(ODD)
    (part, key), (other, name), way = rng.choice(places), rng.choice(places), rng.randrange(3)
    if way == 0:
        del part[key]
    else:
        part[key] = copy.deepcopy(other[name]) if way == 1 else rng.choice(ODD)
    return value


def damaged(content, suffix, rng):
    """A file with a part that is wrong, missing, repeated or of another kind."""
    if suffix == ".pt" and rng.random() < 0.5:
        torch.save(alter(torch.load(io.BytesIO(content), weights_only=True), rng), file := io.BytesIO())
        return file.getvalue()
    if suffix.startswith(".json") and rng.random() < 0.7:
        lines = content.splitlines() if suffix == ".jsonl" else [content]
        number = rng.randrange(len(lines))
        lines[number] = json.dumps(alter(json.loads(lines[number]), rng)).encode()
        return b"\n".join(lines)
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    flipped = bytearray(content)
    for _ in range(rng.choice((1, 3, 20)) if content else 0):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    wrong = (content[:start], content[:start] + content[end:], content[:end] + content[start:], flipped)
    return rng.choice([*wrong, content[:start] + b"[" * 200_000])


def damage(folder, rng):
    """Damage, remove or replace one of the files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    suffix = rng.choice(sorted({path.suffix for path in files}))
    file, way = rng.choice([path for path in files if path.suffix == suffix]), rng.randrange(8)
    content = file.read_bytes()
    file.unlink()  # it may be the same file as another one, by a hard link
    if way == 0:
        file.symlink_to(rng.choice((file.name, "nowhere", "/dev/zero")))
    elif way == 1:
        file.mkdir()
    elif way > 2:
        file.write_bytes(damaged(content, file.suffix, rng))


@contextmanager
def spared(folder, spare):
    """Whatever happens to the folder, it is put back."""
    shutil.copytree(folder, spare)
    try:
        yield
    finally:
        shutil.rmtree(folder)
        spare.rename(folder)


@pytest.mark.parametrize("name", NAMES)
def test_no_damaged_file_ends_a_reader_with_a_traceback(name, targets, tmp_path, request):
    folder, read = targets[0][name], targets[1][name]
    with spared(folder, tmp_path / "spare"):
        read()  # whole, it is read

    @settings(max_examples=request.config.getoption("--damages"), derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def check(rng):
        with spared(folder, tmp_path / "spare"):
            damage(folder, rng)
            start, before = time.process_time(), peak_memory(torch.device("cpu"))
            try:
                read()
            except (UserError, OSError):
                pass
            except Exception as error:
                assert fault_of(error) is not None, "it would end a script with a traceback"
            assert time.process_time() - start < 5
            assert peak_memory(torch.device("cpu")) - before < 2**31

    check()
