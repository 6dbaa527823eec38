"""Sizes as people say them, and data sets and whole runs of images that are not square."""

import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

import generate_images
from models.cascade import Cascade
from playground.uploads import read_upload
from scripts import make_dataset
from scripts.recipe import check, open_images
from tests.helpers.files import edited
from tests.helpers.runs import SMALL
from tests.helpers.scripts import TINY, run_main
from utils.core.size import Size
from utils.runs.chain import steps_of
from utils.runs.folders import OutputFolder, RunFolder


@pytest.mark.parametrize(
    ("given", "size", "plain"),
    [("96x64", Size(96, 64), "96x64"), ("96×64", Size(96, 64), "96x64"), ("1X8192", Size(1, 8192), "1x8192"),
     (64, Size(64, 64), 64), ("64", Size(64, 64), 64), ("64x64", Size(64, 64), 64)],
)  # fmt: skip
def test_a_size_is_width_times_height_or_one_number_for_a_square(given, size, plain):
    assert Size.parse(given) == size == Size.parse(size.plain) == Size.of((3, size.height, size.width))
    assert (size.plain, str(size)) == (plain, str(plain))


# --- A whole run of portraits of 2:3, from a folder to a shared model ---


FEW = {"max_step": 4, "checkpoint_step": 4, "warmup_step": 2}


@pytest.fixture(scope="module")
def portraits(faces, tmp_path_factory):
    """A run of the tiny recipe with images of 32×48 pixels, every second one of which is tagged "night"."""
    run = RunFolder(tmp_path_factory.mktemp("portraits"), 3)
    data = ("--out-dir", run.images.parent, "--image-size", "32x48", "--fit", "stretch", "--num-workers", 0)
    run_main(make_dataset.main, faces.parent, *data)
    with edited(run.images) as content:
        for record in list(content["_default"].values())[::2]:
            record["labels"].append("night")
    folder = Path(shutil.copytree(TINY, run.path / "recipe"))
    with edited(folder / "transformer_0.json") as base:
        base["use_labels"] = True
    recipe = replace(SMALL, folder=folder, image_size=Size(32, 48)).change(("autoencoder", *SMALL.stages), **FEW)
    recipe = recipe.change(("codebook",), max_epoch=1).change(("prune",), prune_threshold=0)
    shutil.copy(TINY / run.generation.name, run.generation)
    steps = steps_of(run, recipe, run.images)
    check(recipe, steps, run, run.generation)
    assert open_images(recipe, run.images).shape == (3, 48, 32)
    for step in steps:
        run_main(import_module(step.script).main, *step.command[1:], "--device", "cpu")
    return run


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_the_grids_of_every_step_follow_from_the_size(portraits):
    cascade = Cascade.load(portraits.path, device="cpu")
    assert [book.config.grid for book in cascade.codebooks] == [(1, 1), (3, 2), (6, 4), (12, 8)]
    assert [stage.config.fine.shown for stage in cascade.stages] == ["2×3", "4×6", "8×12"]
    made = portraits.generated
    assert {size_of(path) for path in made.final_images} == {(32, 48)}
    assert {size_of(path) for path in made.grids} == {(2 * 34 + 2, 2 * 50 + 2)}


def test_every_request_is_answered_in_the_size_of_the_model(portraits, tmp_path):
    cascade = Cascade.load(portraits.path, device="cpu", batch_size=4)
    given = next((portraits.path / "data").rglob("*.png"))
    for images in (cascade.sample(2), cascade.like(given), cascade.complete(Image.new("RGB", (90, 70)), 2)):
        assert {image.size for image in images} == {(32, 48)}
    kept = cascade.complete(given, 3, as_tensor=True)  # all rows of the base stage's grid, so all tokens
    assert torch.equal(kept, cascade.decode(cascade.tokens(given)[-1]))
    rows, columns = (int(side) + 1 for side in cascade.codebooks[0].coordinates.amax(0))
    common = ("--device", "cpu", "--batch-size", 4)
    for name, flags, size in (
        ("condition_atlas.png", ("--condition-atlas",), (columns * 32, rows * 48)),
        ("walk.webp", ("--condition-walk", 0, given, "--steps", 3, "--animate"), (32, 48)),
        ("filling_in.gif", ("--num-images", 2, "--animate", "gif"), (2 * 34 + 2, 50 + 2)),
    ):
        out = OutputFolder(tmp_path / name)
        run_main(generate_images.main, "--model", portraits.path, "--out-dir", out.path, *common, *flags)
        assert size_of(out.images / name) == size
    Image.new("RGB", (64, 64)).save(tmp_path / "square.png")
    image, note = read_upload(tmp_path / "square.png", "cat", cascade.image_size)
    assert image.size == (32, 48) and "32×48" in note
