import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.patches import patchify, unpatchify

few = st.integers(1, 3)


@given(batch=few, channels=few, rows=few, columns=few, patch_h=few, patch_w=few)
def test_patches_are_the_cells_of_the_map_and_go_back_to_it(batch, channels, rows, columns, patch_h, patch_w):
    height, width = rows * patch_h, columns * patch_w
    fmap = torch.arange(batch * channels * height * width).view(batch, channels, height, width)
    patches = patchify(fmap, patch_h, patch_w)
    assert patches.shape == (batch, rows * columns, channels * patch_h * patch_w)
    for token in range(rows * columns):
        top, left = token // columns * patch_h, token % columns * patch_w
        cell = fmap[:, :, top : top + patch_h, left : left + patch_w]
        assert torch.equal(patches[:, token], cell.flatten(1))
    assert torch.equal(unpatchify(patches, channels, height, width, patch_h), fmap)


@pytest.mark.parametrize(("patch_h", "patch_w"), [(3, 2), (2, 4), (5, 6), (4, 7)])
def test_sizes_that_do_not_divide_are_named(patch_h, patch_w):
    with pytest.raises(ValueError, match=f"feature map 4×6 is not divisible by patch {patch_h}×{patch_w}"):
        patchify(torch.zeros(1, 1, 4, 6), patch_h, patch_w)
