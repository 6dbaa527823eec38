"""The small data sets that scripts.demo_data draws, and its cut of the training images."""

import pytest
from PIL import Image

from scripts import demo_data
from tests.helpers.scripts import run_main
from tests.test_make_dataset import contents, records, side_of
from utils.core.size import Size
from utils.data.split import TRAINING

CUTS = {"whole": (), "cut": ("--num-training", 5)}  # flags of a data set


@pytest.fixture(params=demo_data.SOURCES)
def source(request):
    return request.param


def draw(source, out_dir, *flags):
    run_main(demo_data.main, source, "--out-dir", out_dir, "--image-size", 32, "--num-workers", 0, *flags)
    return records(out_dir)


def test_drawings_are_seeded_distinct_and_a_smaller_set_is_a_prefix(source, tmp_path):
    ten, four, other = (
        [record["image_fpath"] for record in draw(source, tmp_path / name, "--num-images", count, "--seed", seed)]
        for name, count, seed in (("ten", 10, 3), ("four", 4, 3), ("other", 4, 4))
    )
    assert len(set(ten)) == 10
    assert four == ten[:4]
    assert not set(other) & set(four)
    assert Image.open(tmp_path / "ten" / ten[0]).size == (32, 32)


def test_a_picture_has_the_size_that_is_asked_for(source):
    module = demo_data.SOURCES[source]
    item = module.items(0, 1)[0]
    for size in (Size(24, 36), Size(36, 24), Size(31, 97), Size(130, 130)):
        picture = module.draw(item, 0, size)
        assert (picture.size, picture.mode) == ((size.width, size.height), "RGB")


def test_fewer_training_images_leave_those_that_measure(tmp_path):
    whole, cut = (draw("avatars", tmp_path / name, "--num-images", 60, *flags) for name, flags in CUTS.items())
    training = [record for record in whole if side_of(record) == TRAINING]
    assert len(training) < len(whole)
    assert cut == [record for record in whole if record not in training[5:]]
    assert {name for name in contents(tmp_path / "cut") if name.endswith(".png")} == {r["image_fpath"] for r in cut}
    before = contents(tmp_path / "cut")
    assert draw("avatars", tmp_path / "cut", "--num-images", 60, *CUTS["cut"]) == cut
    assert contents(tmp_path / "cut") == before
