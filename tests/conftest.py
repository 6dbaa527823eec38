"""What test files share: one thread, a small real data set, a small trained cascade, and ways to run scripts."""

import json
import logging
import random
import shutil
import signal
from contextlib import contextmanager
from functools import cache
from importlib import import_module

import pytest
import torch
from hypothesis import settings

from scripts import demo_data, report
from tests.helpers.browser import chromium
from tests.helpers.reports import make_run
from tests.helpers.runs import FRACTIONS, GRADIENT, MAINS, PLAN, PRUNED, SMALL, WEIGHTS, latest
from tests.helpers.scripts import CODEBOOKS, TINY, run_main
from utils.data.dataset import ImageDataset
from utils.runs.chain import steps_of
from utils.runs.folders import RunFolder

torch.set_num_threads(1)  # equal tensors need an equal number of threads, and the tests may share the machine
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=6, help="how often test_kill.py kills a run (default: 6)")
    parser.addoption("--kill-seed", type=int, default=random.randrange(10**6), help="of the points where it does")
    parser.addoption("--damages", type=int, default=8, help="damaged files of a kind in test_damage.py (default: 8)")


@contextmanager
def undisturbed():
    """Put back the signal handlers and the log handlers that a script replaces."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        for number, handler in signals.items():
            signal.signal(number, handler)
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.fixture(autouse=True)
def apart():
    with undisturbed():
        yield


@pytest.fixture(scope="session")
def write_json():
    """A function that writes an object to a path, which it returns."""

    def write(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """The dataset.json of 40 drawn faces of 32×32 pixels, alone with its images in a folder."""
    folder = tmp_path_factory.mktemp("faces")
    run_main(demo_data.main, "avatars", "--out-dir", folder, "--image-size", 32, "--num-images", 40, "--num-workers", 0)
    return folder / "dataset.json"


@pytest.fixture(scope="session")
def tiny_run(faces, tmp_path_factory):
    """The folder of a whole cascade, as scripts.train_cascade leaves it. To be read only: copy what changes."""
    run = RunFolder(tmp_path_factory.mktemp("run"), 3)
    shutil.copy(TINY / run.generation.name, run.generation)
    with undisturbed():
        for step in steps_of(run, SMALL, faces):
            run_main(import_module(step.script).main, *step.command[1:], "--device", "cpu")
    return run.path


@pytest.fixture
def run_with_images(tiny_run, faces, tmp_path):
    """A copy of the tiny run and its images, as scripts/demo.py puts them: the folder `run` of `tmp_path`."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.copytree(faces.parent, run / "data")
    return run


@pytest.fixture(scope="session")
def reported(tiny_run, tmp_path_factory):
    """A run with all that a report can show, whose names look like markup, and the page about it. To be read only."""
    folder = tmp_path_factory.mktemp("reported")
    run, page = make_run(tiny_run, folder), folder / "page.html"
    run_main(report.main, run, "--out", page)
    return run, page


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def arguments(tiny_run, faces):
    """A function: the arguments that train a stage into a folder. The last of a repeated flag counts."""

    def build(name, out, *more):
        argv = ["--device", "cpu", "--batch-size", 12, *FRACTIONS, "--log-step", 1]
        argv += ["--config-path", TINY / f"{name}.json", "--out-dir", out]
        if name == "autoencoder":
            argv += ["--dataset-path", faces, "--flip"]
        else:
            argv += ["--dataset-path", tiny_run / "feature_maps/dataset.json"]
            argv += ["--decoder-path", tiny_run / "autoencoder" / WEIGHTS]
        if name in GRADIENT:
            argv += ["--precision", "fp32", "--warmup-step", 3]
        if name.startswith("transformer"):
            number = int(name[-1])
            argv += ["--lr-codebook-path", tiny_run / CODEBOOKS[number] / PRUNED, "--test-num-sample", 2]
            argv += ["--hr-codebook-path", tiny_run / CODEBOOKS[number + 1] / PRUNED]
            argv += ["--train-base-model"] if number == 0 else []
        return [*argv, *more]

    return build


@pytest.fixture(scope="session")
def whole(arguments, tmp_path_factory):
    """A function: the folder of a stage that was trained by `PLAN`, once. To be read only: `begun` copies it."""

    @cache
    def train_once(name):
        out = tmp_path_factory.mktemp("whole") / name
        with undisturbed():
            run_main(MAINS[name], *arguments(name, out, *PLAN))
        return out

    return train_once


@pytest.fixture
def begun(whole, tmp_path):
    """A function: a copy of what training a stage by `PLAN` has left, as the folder `run` of `tmp_path`."""
    return lambda name: shutil.copytree(whole(name), tmp_path / "run")


@pytest.fixture
def command(arguments, tmp_path):
    """A function: the arguments that train a stage into a folder of `tmp_path`."""
    return lambda name, out, *more: arguments(name, tmp_path / out, *more)


@pytest.fixture
def train(command, tmp_path):
    """A function: train a stage and return the content of its latest checkpoint."""

    def call(name, out, *more):
        run_main(MAINS[name], *command(name, out, *more))
        return latest(tmp_path / out)

    return call


@pytest.fixture
def read(monkeypatch):
    """The indices of the images that are read in batches."""
    indices, original = [], ImageDataset.__getitem__
    monkeypatch.setattr(
        ImageDataset, "__getitem__", lambda self, batch: indices.extend(batch.tolist()) or original(self, batch)
    )
    return indices


@pytest.fixture(scope="session")
def for_decoder(tiny_run):
    """The flags that train the decoder of the tiny run alone, on maps quantized by its finest codebook."""
    codebook = tiny_run / CODEBOOKS[-1] / PRUNED
    return ("--encoder-path", tiny_run / "autoencoder" / WEIGHTS, "--hr-codebook-path", codebook)
