"""What test files share: one thread, a small real data set, a small trained cascade, and ways to run scripts."""

import json
import logging
import shutil
import signal
from contextlib import contextmanager

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
from tests.helpers.scripts import CODEBOOKS, TINY, run_main

torch.set_num_threads(1)  # equal tensors need an equal number of threads, and the tests may share the machine
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@contextmanager
def undisturbed():
    """Put back the signal handlers and the log handlers that a script replaces."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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
    out = tmp_path_factory.mktemp("run")
    latest, pruned = "models_checkpoint/latest.pt", "models_checkpoint/pruned_codebook.pt"
    decoder, maps = out / "autoencoder" / latest, out / "feature_maps" / "dataset.json"
    common = ("--device", "cpu", "--batch-size", 16)
    training = (*common, "--val-fraction", 0.2, "--seed", 0)
    with undisturbed():
        run_main(
            train_autoencoder.main, *training, "--max-step", 20, "--dataset-path", faces,
            "--config-path", TINY / "autoencoder.json", "--out-dir", out / "autoencoder",
        )  # fmt: skip
        run_main(
            generate_fmap_dataset.main, *common, "--flip", "--num-files-folder", 30, "--dataset-path", faces,
            "--model-path", decoder, "--out-dir", out / "feature_maps",
        )  # fmt: skip
        for name in CODEBOOKS:
            run_main(
                train_codebook.main, *training, "--max-epoch", 2, "--dataset-path", maps, "--decoder-path", decoder,
                "--config-path", TINY / f"{name}.json", "--out-dir", out / name,
            )  # fmt: skip
            run_main(
                prune_codebook.main, *common, "--prune-threshold", 1, "--dataset-path", maps,
                "--codebook-path", out / name / latest, "--out-dir", out / name,
            )  # fmt: skip
        for number in range(3):
            run_main(
                train_quantized_transformer.main, *training, "--max-step", 10, "--test-num-sample", 4,
                *(["--train-base-model"] if number == 0 else []), "--dataset-path", maps, "--decoder-path", decoder,
                "--lr-codebook-path", out / CODEBOOKS[number] / pruned,
                "--hr-codebook-path", out / CODEBOOKS[number + 1] / pruned,
                "--config-path", TINY / f"transformer_{number}.json", "--out-dir", out / f"transformer_{number}",
            )  # fmt: skip
        shutil.copy(TINY / "generate.json", out / "generate.json")
        run_main(
            generate_images.main, "--device", "cpu", "--num-images", 4, "--batch-size", 4, "--decoder-path", decoder,
            "--config-path", out / "generate.json", "--out-dir", out / "generated",
        )  # fmt: skip
    return out
