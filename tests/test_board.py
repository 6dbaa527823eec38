"""TensorBoard's files hold what metrics.jsonl and the folder of pictures hold."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.helpers.runs import MAINS, rows
from tests.helpers.scripts import run_main

pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture
def board(command, tmp_path):
    """A function: train with --tensorboard; returns what TensorBoard then reads."""

    def call(name, *flags):
        run_main(MAINS[name], *command(name, "out", "--tensorboard", *flags))
        return EventAccumulator(str(tmp_path / "out/tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()

    return call


@pytest.mark.parametrize("name", ["autoencoder", "codebook_1"])
def test_numbers_and_pictures_are_on_the_board(name, board, tmp_path):
    events, out = board(name, "--max-step", 4, "--checkpoint-step", 2), tmp_path / "out"
    expected = {}
    for row in rows(out):
        for key in {key for key, value in row.items() if not isinstance(value, list)} - {"step"}:
            expected.setdefault(key, []).append((row["step"], pytest.approx(row[key], rel=1e-6)))
    assert {"train_loss", "val_loss"} < expected.keys()
    tags = events.Tags()
    assert {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]} == expected
    shown = {(tag, event.step): event.encoded_image_string for tag in tags["images"] for event in events.Images(tag)}
    assert {f"{tag}_{step}.png" for tag, step in shown} == {path.name for path in (out / "images").glob("*.png")}
    assert len({step for _, step in shown}) == 2
    for (tag, step), content in shown.items():
        saved = Image.open(out / f"images/{tag}_{step}.png")
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(saved))


def test_a_new_run_hides_what_an_earlier_one_wrote(board):
    for steps in (6, 3):
        board("autoencoder", "--max-step", steps, "--overwrite")
    events = board("autoencoder", "--max-step", 4, "--resume")
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3, 4]
