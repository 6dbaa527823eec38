"""Views of images against slow loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.views import View, views


@given(st.booleans(), st.integers(-4, 4), st.integers(-4, 4))
def test_a_moved_image_repeats_its_border(flipped, right, down):
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    found = View(flipped, right, down).of(image)
    for row in range(5):
        for column in range(7):
            source = min(max(column - right, 0), 6)
            source = 6 - source if flipped else source
            assert torch.equal(found[:, row, column], image[:, min(max(row - down, 0), 4), source])


@pytest.mark.parametrize("sides", [(False,), (False, True)])
@pytest.mark.parametrize("copies", [0, 1, 3])
def test_an_image_has_all_its_sides_and_as_many_moved_ones_for_each_copy(sides, copies):
    found = [views(number, sides, copies, (40, 80)) for number in range(200)]
    assert all(len(one) == len(sides) * (1 + copies) for one in found)
    assert all(one[: len(sides)] == [View(flipped) for flipped in sides] for one in found)
    moved = np.array([view[1:] for one in found for view in one[len(sides) :]]).reshape(-1, 2)
    if copies:
        assert set(moved[:, 0].tolist()) == set(range(-4, 5)) and set(moved[:, 1].tolist()) == set(range(-2, 3))
    assert found == [views(number, sides, copies, (40, 80)) for number in range(200)]
