"""The small data sets that scripts.demo_data draws, and its cut of the training images."""

import struct
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from scripts import demo_data
from scripts.sources import photos, pixels
from tests.helpers.scripts import run_main
from tests.test_make_dataset import contents, records, side_of
from utils.core.size import Size
from utils.data.split import TRAINING
from utils.runs.chain import ROOT

COLUMNS = (((1, (5, 6)),), (), ((0, (7,)), (3, (8,))))  # of a sprite: posts, each its top and its pixels
CUTS = {"whole": (), "cut": ("--num-training", 5)}  # flags of a data set
SPRITE = [[-1, -1, 7], [5, -1, -1], [6, -1, -1], [-1, -1, 8]]


def need(source):
    for package in demo_data.SOURCES[source].PACKAGES:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.fixture(params=demo_data.SOURCES)
def source(request):
    """The name of a source whose packages are installed."""
    need(request.param)
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


def test_each_source_has_a_licence_and_a_file_of_what_to_install():
    for module in demo_data.SOURCES.values():
        assert (ROOT / module.REQUIREMENTS).is_file()
        licence, text = module.LICENCE
        assert licence in {"mit", "cc-by-sa-4.0", "cc-by-4.0", "bsd-3-clause", "other"}  # as the Hub names them
        assert text.endswith(".")


def test_fewer_training_images_leave_those_that_measure(tmp_path):
    need("avatars")
    whole, cut = (draw("avatars", tmp_path / name, "--num-images", 60, *flags) for name, flags in CUTS.items())
    training = [record for record in whole if side_of(record) == TRAINING]
    assert len(training) < len(whole)
    assert cut == [record for record in whole if record not in training[5:]]
    assert {name for name in contents(tmp_path / "cut") if name.endswith(".png")} == {r["image_fpath"] for r in cut}
    before = contents(tmp_path / "cut")
    assert draw("avatars", tmp_path / "cut", "--num-images", 60, *CUTS["cut"]) == cut
    assert contents(tmp_path / "cut") == before


def test_crops_are_of_all_photographs_alike_and_each_is_a_group():
    need("photos")
    items, describe = photos.items(0, 46), photos.describe()
    assert set(Counter(describe(item)["group"] for item in items).values()) == {2}
    assert len({describe(item)["group"] for item in items}) == sum(map(len, photos.find_all().values())) == 46


def test_a_crop_is_a_part_of_its_photograph_and_no_enlargement_of_a_large_one(tmp_path):
    ramp = np.stack(np.broadcast_arrays(np.arange(256)[None], np.arange(200)[:, None], 90), axis=-1).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    for index in range(20):
        crop = np.asarray(photos.draw((tmp_path / "ramp.png", index), 0, Size(32, 32))).astype(int)
        steps = np.diff(crop[4:-4, 4:-4, 0], axis=1).mean(), np.diff(crop[4:-4, 4:-4, 1], axis=0).mean()
        assert steps[0] == pytest.approx(steps[1], abs=0.1)  # not stretched
        assert 0.95 < steps[0] < photos.LARGEST * 200 / 32 + 0.1  # pixels of the photograph for one of the crop


def sprite_lump():
    """The bytes of `SPRITE`, as a WAD file holds it."""
    columns = [
        b"".join(bytes((top, len(values), 0, *values, 0)) for top, values in posts) + b"\xff" for posts in COLUMNS
    ]
    head = 8 + 4 * len(columns)
    places = [head + sum(map(len, columns[:number])) for number in range(len(columns))]
    return struct.pack(f"<HHhh{len(columns)}I", 3, 4, 0, 0, *places) + b"".join(columns)


def test_a_sprite_is_read_by_its_posts():
    assert pixels.read_sprite(sprite_lump()).tolist() == SPRITE


def test_pixels_of_a_sprite_stay_sharp_and_in_the_middle(monkeypatch):
    palette = np.arange(768, dtype=np.uint16).reshape(256, 3).astype(np.uint8)
    monkeypatch.setattr(pixels, "read_wad", lambda: (palette, {"HEROA1": sprite_lump()}))
    small, large = (np.asarray(pixels.draw("HEROA1", 0, Size(side, side))) for side in (64, 128))
    expected = np.where(np.array(SPRITE)[..., None] < 0, pixels.BACKGROUND, palette[np.array(SPRITE)])
    np.testing.assert_array_equal(small[30:34, 30:33], expected)
    np.testing.assert_array_equal(large[60:68, 61:67], expected.repeat(2, 0).repeat(2, 1))
    for picture, scale in ((small, 1), (large, 2)):
        assert (picture != pixels.BACKGROUND).any(-1).sum() == 4 * scale**2


def test_what_looks_alike_is_one_group_of_sprites():
    describe = pixels.describe()
    assert describe("BOS2A1C1")["group"] == describe("BOSSH0")["group"] == "freedoom2/BOSS"
    assert describe("TROOA1")["group"] == "freedoom2/TROO"
    assert not set(pixels.SAME) & set(pixels.SAME.values())
