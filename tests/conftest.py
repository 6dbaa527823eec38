"""What test files share: one thread, a small real data set, a small trained cascade, and ways to run scripts."""

import json
import logging
import shutil
import signal
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch
from hypothesis import settings

from scripts import demo_data
from tests.helpers.runs import FRACTIONS, GRADIENT, MAINS, PRUNED, SMALL, WEIGHTS, latest
from tests.helpers.scripts import CODEBOOKS, TINY, run_main
from utils.runs.chain import steps_of
from utils.runs.folders import RunFolder

torch.set_num_threads(1)  # equal tensors need an equal number of threads, and the tests may share the machine
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


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
def handlers_of_pytest():
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
def command(tiny_run, faces, tmp_path):
    """A function: the arguments that train a stage into a folder of `tmp_path`. The last of a repeated flag counts."""

    def build(name, out, *more):
        argv = ["--device", "cpu", "--batch-size", 12, *FRACTIONS, "--log-step", 1]
        argv += ["--config-path", TINY / f"{name}.json", "--out-dir", tmp_path / out]
        if name == "autoencoder":
            argv += ["--dataset-path", faces]
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


@pytest.fixture
def train(command, tmp_path):
    """A function: train a stage and return the content of its latest checkpoint."""

    def call(name, out, *more):
        run_main(MAINS[name], *command(name, out, *more))
        return latest(tmp_path / out)

    return call
