"""Sizes as people say them, and data sets and whole runs of images that are not square."""

import pytest

from scripts import demo_data, make_dataset
from tests.helpers.scripts import expect_exit
from utils.core.size import Size


@pytest.mark.parametrize(
    ("given", "size", "plain"),
    [("96x64", Size(96, 64), "96x64"), ("96×64", Size(96, 64), "96x64"), ("1X8192", Size(1, 8192), "1x8192"),
     (64, Size(64, 64), 64), ("64", Size(64, 64), 64), ("64x64", Size(64, 64), 64)],
)  # fmt: skip
def test_a_size_is_width_times_height_or_one_number_for_a_square(given, size, plain):
    assert Size.parse(given) == size == Size.parse(size.plain) == Size.of((3, size.height, size.width))
    assert (size.plain, str(size)) == (plain, str(plain))


@pytest.mark.parametrize("given", ["0x5", "5x0", "64x", "x64", "abcx3", "1e3", "-64", "1000000000", "8193", "64.0", ""])
@pytest.mark.parametrize("script", [make_dataset, demo_data])
def test_what_is_no_size_is_refused_in_one_line(given, script, tmp_path, capsys):
    first = tmp_path if script is make_dataset else "avatars"
    assert expect_exit(script.main, [first, "--out-dir", tmp_path / "out", f"--image-size={given}"]) == 2
    expected = "expected WIDTHxHEIGHT, such as 96x64, or one number for a square, of 1 to 8192 pixels a side"
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f": argument --image-size: '{given}' is not a size; {expected}")


def test_the_nearest_multiples_are_the_next_smaller_and_larger_size():
    assert Size(64, 96).multiples(16, 16) == [Size(64, 96)]
    assert Size(64, 90).multiples(16, 16) == [Size(64, 80), Size(64, 96)]
    assert Size(100, 150).multiples(16, 8) == [Size(96, 144), Size(112, 152)]
    assert Size(3, 40).multiples(16, 16) == [Size(16, 32), Size(16, 48)]
