"""What test files share: one thread, a small real data set, a small trained cascade, and ways to run scripts."""

import json
import logging
import shutil
import signal
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from hypothesis import settings

import generate_fmap_dataset
import generate_images
import prune_codebook
import train_autoencoder
import train_codebook
import train_quantized_transformer
from scripts import demo_data
from tests.helpers.runs import FRACTIONS, GRADIENT, MAINS, PRUNED, WEIGHTS, latest
from tests.helpers.scripts import CODEBOOKS, TINY, run_main
from utils.run_folder import RunFolder

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
    """The folder of a whole cascade, laid out as scripts/train_cascade.sh does. To be read only: copy what changes."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    decoder, maps = run.autoencoder.latest, run.feature_maps.dataset
    books = [run.step(name) for name in CODEBOOKS]
    common = ("--device", "cpu", "--batch-size", 16)
    training = (*common, *FRACTIONS, "--seed", 0)
    with undisturbed():
        run_main(
            train_autoencoder.main, *training, "--max-step", 40, "--warmup-step", 5, "--dataset-path", faces,
            "--config-path", TINY / "autoencoder.json", "--out-dir", run.autoencoder.path,
        )  # fmt: skip
        run_main(
            generate_fmap_dataset.main, *common, "--flip", "--num-files-folder", 30, "--dataset-path", faces,
            "--model-path", decoder, "--out-dir", run.feature_maps.path,
        )  # fmt: skip
        for book in books:
            run_main(
                train_codebook.main, *training, "--max-epoch", 2, "--dataset-path", maps, "--decoder-path", decoder,
                "--config-path", TINY / f"{book.name}.json", "--out-dir", book.path,
            )  # fmt: skip
            run_main(
                prune_codebook.main, *common, *FRACTIONS, "--prune-threshold", 1, "--dataset-path", maps,
                "--codebook-path", book.latest, "--out-dir", book.path,
            )  # fmt: skip
        for number, (coarse, fine) in enumerate(pairwise(books)):
            step = run.step(f"transformer_{number}")
            run_main(
                train_quantized_transformer.main, *training, "--max-step", 10, "--test-num-sample", 4,
                *(["--train-base-model"] if number == 0 else []), "--dataset-path", maps, "--decoder-path", decoder,
                "--lr-codebook-path", coarse.pruned, "--hr-codebook-path", fine.pruned,
                "--config-path", TINY / f"{step.name}.json", "--out-dir", step.path,
            )  # fmt: skip
        shutil.copy(TINY / run.generation.name, run.generation)
        run_main(
            generate_images.main, "--device", "cpu", "--num-images", 4, "--batch-size", 4, "--decoder-path", decoder,
            "--config-path", run.generation, "--out-dir", run.generated.path,
        )  # fmt: skip
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
