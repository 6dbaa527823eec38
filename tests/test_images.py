import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from utils.core.config import read_json
from utils.core.files import UserError
from utils.core.size import Size
from utils.data.checksums import is_whole
from utils.data.feature_maps import read_map
from utils.data.images import (
    CHECKER,
    HEAT,
    TRANSPARENT,
    fit_to,
    heat_map,
    image_files,
    open_rgb,
    read_image,
    save_grid,
    save_image,
    to_uint8,
    write_png,
)
from utils.training.metrics import read_rows

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def pixels(image):
    return np.asarray(image).reshape(-1, 3).tolist()


def palette_image():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    return image


def grey(values, dtype):
    return Image.fromarray(np.array([values], dtype=dtype))


def pair(mode, first, second):
    image = Image.new(mode, (2, 1))
    image.putdata([first, second])
    return image


# Name of the file, what is saved in it, with which options, and the two pixels that must come out.
EXACT = {
    "rgb.png": (pair("RGB", RED, BLUE), {}, [RED, BLUE]),
    "rgb.bmp": (pair("RGB", RED, BLUE), {}, [RED, BLUE]),
    "rgb.tif": (pair("RGB", RED, BLUE), {}, [RED, BLUE]),
    "rgb.webp": (pair("RGB", RED, BLUE), {"lossless": True}, [RED, BLUE]),
    "rgba.png": (pair("RGBA", (*RED, 255), (*RED, 0)), {}, [RED, WHITE]),
    "half.png": (pair("RGBA", (*BLACK, 51), (*BLACK, 102)), {}, [(204,) * 3, (153,) * 3]),
    "rgba.webp": (pair("RGBA", (*RED, 255), (*RED, 0)), {"lossless": True}, [RED, WHITE]),
    "grey.png": (pair("L", 0, 200), {}, [BLACK, (200,) * 3]),
    "grey_alpha.png": (pair("LA", (9, 255), (9, 0)), {}, [(9,) * 3, WHITE]),
    "grey_key.png": (pair("L", 9, 10), {"transparency": 10}, [(9,) * 3, WHITE]),
    "one_bit.png": (pair("1", 0, 255), {}, [BLACK, WHITE]),
    "one_bit.tiff": (pair("1", 0, 255), {"compression": "group4"}, [BLACK, WHITE]),
    "palette.png": (palette_image(), {}, [RED, GREEN]),
    "palette.gif": (palette_image(), {}, [RED, GREEN]),
    "palette_key.png": (palette_image(), {"transparency": 0}, [WHITE, GREEN]),
    "palette_key.gif": (palette_image(), {"transparency": 0}, [WHITE, GREEN]),
    "cmyk.tif": (pair("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), {}, [RED, BLACK]),
    "grey16.png": (grey([0x8080, 0xFFFF], np.uint16), {}, [(128,) * 3, WHITE]),
    "grey16.tif": (grey([0x8080, 0xFFFF], np.uint16), {}, [(128,) * 3, WHITE]),
    "grey32.tif": (grey([0x8080, 0xFFFF], np.int32), {}, [(128,) * 3, WHITE]),
    "float_unit.tif": (grey([0.2, 1.0], np.float32), {}, [(51,) * 3, WHITE]),
    "float_byte.tif": (grey([51, 255], np.float32), {}, [(51,) * 3, WHITE]),
    "float_16_bit.tif": (grey([0x8080, 0xFFFF], np.float32), {}, [(128,) * 3, WHITE]),
}


@pytest.mark.parametrize("name", EXACT)
def test_every_format_and_mode_becomes_the_rgb_it_shows(name, tmp_path):
    image, options, expected = EXACT[name]
    image.save(tmp_path / name, **options)
    opened = open_rgb(tmp_path / name)
    assert (opened.mode, opened.size) == ("RGB", (2, 1))
    assert pixels(opened) == [list(colour) for colour in expected]


def test_transparency_is_told_from_an_alpha_channel_and_shown_by_a_checker(tmp_path):
    for name, alpha in (("clear", 0), ("opaque", 255)):
        Image.new("RGBA", (32, 16), (*RED, alpha)).save(tmp_path / f"{name}.png")
        assert open_rgb(tmp_path / f"{name}.png").info[TRANSPARENT] == (alpha == 0)
    grey, square = (204,) * 3, np.asarray(open_rgb(tmp_path / "clear.png", CHECKER))
    assert [[tuple(square[row, column]) for column in (0, 1, 2, 31)] for row in (0, 2)] == [
        [WHITE, WHITE, grey, grey],
        [grey, grey, WHITE, WHITE],
    ]
    assert open_rgb(tmp_path / "opaque.png", CHECKER).getcolors() == [(512, RED)]
    padded = np.asarray(fit_to(open_rgb(tmp_path / "opaque.png"), Size(16, 16), "pad", CHECKER))
    assert {tuple(pixel) for pixel in padded[0]} == {WHITE, grey}


@pytest.mark.parametrize("brand", [None, b"mif1"])
@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_the_formats_of_phones_are_read_upright_whatever_their_names(suffix, brand, tmp_path):
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    corners = Image.fromarray(np.ascontiguousarray(STORED[6])).resize((64, 96), Image.Resampling.NEAREST)
    corners.save(tmp_path / f"a.{suffix}", exif=exif.tobytes(), quality=95)
    content = bytearray((tmp_path / f"a.{suffix}").read_bytes())
    assert content[8:12] == suffix.encode()
    content[8:12] = brand or content[8:12]
    (tmp_path / "a.jpg").write_bytes(content)
    upright = open_rgb(tmp_path / "a.jpg")
    assert upright.size == (96, 64)
    expected = np.asarray(Image.fromarray(UPRIGHT).resize((96, 64), Image.Resampling.NEAREST), dtype=int)
    assert np.abs(np.asarray(upright) - expected)[8:24, 8:24].max() <= 12, "RED"
    assert np.abs(np.asarray(upright) - expected)[40:56, 40:56].max() <= 12, "BLACK"


def test_losses_a_background_and_a_first_frame(tmp_path):
    for mode, colour in (("RGB", (200, 50, 20)), ("L", 90), ("CMYK", (0, 255, 255, 0))):
        image = Image.new(mode, (16, 16), colour)
        image.save(tmp_path / "a.jpg", quality=95)
        apart = np.asarray(open_rgb(tmp_path / "a.jpg"), dtype=int) - np.asarray(image.convert("RGB"), dtype=int)
        assert np.abs(apart).max() <= 3
    pair("RGBA", (*RED, 255), (*RED, 0)).save(tmp_path / "a.png")
    assert pixels(open_rgb(tmp_path / "a.png", background=(1, 2, 3))) == [list(RED), [1, 2, 3]]
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(open_rgb(tmp_path / "a.gif"))[0] == list(RED)


# Where each EXIF orientation stores the corners (top left, top right, bottom left, bottom right) of an upright image.
UPRIGHT = np.array([[RED, GREEN, WHITE], [BLUE, BLACK, WHITE]], dtype=np.uint8)
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix, options in (("png", {}), ("webp", {"lossless": True}), ("tif", {})):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(path, exif=exif, **options)
        assert np.array_equal(np.asarray(open_rgb(path)), UPRIGHT)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def cut_short(path):
    NOISE.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_data(path):
    NOISE.save(path)
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    path.write_bytes(content[:start] + bytes(len(content) - start))


NO_IMAGES = {  # each name with what makes the file, and what is said of it
    **{f"cut.{suffix}": (cut_short, ".* replace it") for suffix in ("avif", "bmp", "gif", "jpg", "png", "tif", "webp")},
    **{f"none_{number}.png": (lambda path, content=content: path.write_bytes(content), "not an image in a known format")
       for number, content in enumerate((b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n"))},
    "zeros.avif": (without_data, ".*cannot be decoded"),
    "missing.png": (lambda path: None, "no such image file"), "folder.png": (Path.mkdir, "no such image file"),
    "bomb.png": (Image.new("RGB", (70, 70)).save, "too large to read safely"),
    **{f"float_{number}.tif": (grey([0, value], np.float32).save, ".*grey values from")
       for number, value in enumerate((-1, 1e6, np.nan, np.inf))},
}  # fmt: skip


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_named(name, tmp_path, monkeypatch):
    make, expected = NO_IMAGES[name]
    make(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(UserError, match=f"{tmp_path / name}: {expected}"):
        open_rgb(tmp_path / name)


@pytest.mark.parametrize("width", [2, 4, 6])
def test_crop_keeps_the_largest_part_in_the_centre_that_has_the_shape(width):
    wide = Image.new("RGB", (8, 4), RED)
    wide.paste(BLUE, (4 - width // 2, 0, 4 + width // 2, 4))
    assert fit_to(wide, Size(width, 4)).getcolors() == [(width * 4, BLUE)]
    assert fit_to(wide.transpose(Image.Transpose.ROTATE_90), Size(4, width)).getcolors() == [(width * 4, BLUE)]


def test_pad_keeps_the_whole_image_in_the_middle_and_stretch_fills_the_size_with_it():
    image = Image.new("RGB", (8, 4), RED)
    for size, rows in (("4", slice(1, 3)), ("4x6", slice(2, 4)), ("16x10", slice(1, 9))):
        padded = np.asarray(fit_to(image, Size.parse(size), "pad", BLUE))
        expected = np.full_like(padded, BLUE)
        expected[rows] = RED
        assert np.array_equal(padded, expected)
    image.paste(BLUE, (0, 0, 4, 4))
    stretched = np.asarray(fit_to(image, Size(8, 12), "stretch"))
    assert (stretched[:, 0] == BLUE).all() and (stretched[:, -1] == RED).all()


def test_large_images_are_averaged_not_sampled():
    board = np.indices((800, 800)).sum(0) % 2 * 255
    small = np.asarray(fit_to(Image.fromarray(np.stack([board] * 3, -1).astype(np.uint8)), Size(8, 8)), dtype=int)
    assert np.abs(small - 127.5).max() <= 1


def test_all_256_levels_survive_reading_and_rounding(tmp_path):
    levels = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    write_png(Image.fromarray(levels), tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image.shape, image.dtype, image.is_contiguous()) == ((3, 16, 16), torch.float32, True)
    assert (image.min(), image.max()) == (-1, 1)
    assert torch.equal(to_uint8(image), torch.from_numpy(levels).permute(2, 0, 1))
    save_image(image, tmp_path / "b.png")
    assert torch.equal(read_image(tmp_path / "b.png"), image)


@given(st.floats(width=32, allow_nan=False))
def test_to_uint8_is_the_nearest_level_within_range(value):
    nearest = round((min(max(value, -1.0), 1.0) + 1) * 127.5, 3)
    assert abs(to_uint8(torch.tensor(value)).item() - nearest) <= 0.501
    half = torch.tensor([[value], [-value]]).bfloat16()
    assert torch.equal(to_uint8(half), to_uint8(half.float()))


def test_png_text_is_kept(tmp_path):
    text = {"prompt": "unit 7", "note": "größer → kleiner"}
    save_image(torch.zeros(3, 2, 2), tmp_path / "a.png", text)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == text


@pytest.mark.parametrize(("count", "columns", "size"), [(5, None, (3, 2)), (9, None, (3, 3)), (5, 1, (1, 5))])
def test_a_grid_shows_every_image_at_its_own_pixels(count, columns, size, tmp_path):
    images = torch.linspace(-1, 0.9, count)[:, None, None, None].expand(count, 3, 4, 4)
    save_grid(images, tmp_path / "grid.png", columns)
    grid = read_image(tmp_path / "grid.png")  # (3, H, W), cells of 4 and gaps of 2
    assert grid.shape == (3, size[1] * 6 + 2, size[0] * 6 + 2)
    for index in range(count):
        top, left = 2 + 6 * (index // size[0]), 2 + 6 * (index % size[0])
        assert torch.equal(to_uint8(grid[:, top : top + 4, left : left + 4]), to_uint8(images[index]))


def test_image_files_are_sorted_nested_and_not_hidden(tmp_path):
    for name in ("b.png", "a/c.JPG", "a/b/d.Tiff", "a.webp", ".hidden.png", ".git/e.png", "notes.txt", "a/f.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names, others = ([path.relative_to(tmp_path).as_posix() for path in paths] for paths in image_files(tmp_path))
    assert names == ["a/b/d.Tiff", "a/c.JPG", "a/f.jpeg", "a.webp", "b.png"]
    assert others == ["notes.txt"]


def test_links_to_folders_are_followed_once(tmp_path):
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    photos.mkdir()
    elsewhere.mkdir()
    (elsewhere / "a.png").touch()
    (photos / "link").symlink_to(elsewhere)
    (photos / "link_again").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(photos)
    assert image_files(photos) == ([photos / "link" / "a.png"], [])


def test_a_heat_map_by_hand():
    picture = to_uint8(heat_map(torch.tensor([[0.0, 2.0, 4.0], [1.0, 0.5, float("nan")]]), side=7))
    assert picture.shape == (3, 4, 6)
    colours = picture[:, ::2, ::2].permute(1, 2, 0)
    cells = ((0, 0), (0, 1), (0, 2), (1, 0))
    assert [tuple(colours[cell].tolist()) for cell in cells] == [HEAT[k] for k in (0, 2, 4, 1)]
    assert colours[1, 2].tolist() == [255, 255, 255]
    between = [(a + b) / 2 for a, b in zip(HEAT[0], HEAT[1], strict=True)]
    assert colours[1, 1].tolist() == pytest.approx(between, abs=1)
    assert torch.equal(picture[:, 0::2], picture[:, 1::2])
    nothing = to_uint8(heat_map(torch.zeros(2, 2), side=2))
    assert nothing.permute(1, 2, 0).reshape(-1, 3).tolist() == [list(HEAT[0])] * 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
@pytest.mark.parametrize("read", [open_rgb, read_map, read_json, read_rows])
def test_a_pipe_or_a_device_is_refused_where_reading_it_would_not_end(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "endless"):
        with pytest.raises(UserError, match="is a pipe or a device"):
            read(path)
        assert not is_whole(path, "0")
