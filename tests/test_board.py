"""TensorBoard's files hold what metrics.jsonl and the folder of pictures hold."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

import train_autoencoder
import train_codebook
from tests.helpers.runs import FRACTIONS
from tests.helpers.scripts import TINY, expect_error, run_main

pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def argv(script, run, faces, out, *more):
    name = {train_autoencoder: "autoencoder", train_codebook: "codebook_1"}[script]
    given = ["--device", "cpu", "--batch-size", 16, *FRACTIONS, "--log-step", 1, "--out-dir", out]
    given += ["--config-path", TINY / f"{name}.json", "--tensorboard"]
    if script is train_autoencoder:
        return [*given, "--dataset-path", faces, *more]
    decoder = run / "autoencoder/models_checkpoint/latest.pt"
    return [*given, "--dataset-path", run / "feature_maps/dataset.json", "--decoder-path", decoder, *more]


@pytest.mark.parametrize("script", [train_autoencoder, train_codebook])
def test_numbers_and_pictures_are_on_the_board(script, tiny_run, faces, tmp_path):
    run_main(script.main, *argv(script, tiny_run, faces, tmp_path, "--max-step", 4, "--checkpoint-step", 2))
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()
    expected = {}
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name in {name for name, value in row.items() if not isinstance(value, list)} - {"step"}:
            expected.setdefault(name, []).append((row["step"], pytest.approx(row[name], rel=1e-6)))
    assert {"train_loss", "val_loss"} < expected.keys()
    told = {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    assert told == expected
    pictures = {path.stem.rpartition("_")[::2] for path in (tmp_path / "images").glob("*.png")}
    shown = {(tag, str(event.step)) for tag in board.Tags()["images"] for event in board.Images(tag)}
    assert shown == pictures and len({step for _, step in shown}) == 2
    tag = board.Tags()["images"][0]
    event = board.Images(tag)[-1]
    (tmp_path / "shown.png").write_bytes(event.encoded_image_string)
    saved = Image.open(tmp_path / f"images/{tag}_{event.step}.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "shown.png")), np.asarray(saved))


def test_a_new_run_hides_what_an_earlier_one_wrote(tiny_run, faces, tmp_path):
    for steps in (6, 3):
        run_main(
            train_autoencoder.main,
            *argv(train_autoencoder, tiny_run, faces, tmp_path, "--max-step", steps, "--overwrite"),
        )
    run_main(train_autoencoder.main, *argv(train_autoencoder, tiny_run, faces, tmp_path, "--max-step", 4, "--resume"))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train_loss")] == [1, 2, 3, 4]


def test_without_the_package_one_line_says_what_to_do(tiny_run, faces, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    error = expect_error(capsys, train_autoencoder.main, argv(train_autoencoder, tiny_run, faces, tmp_path))
    assert "--tensorboard" in error and "pip install tensorboard" in error
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]  # not even metrics.jsonl or run.json
