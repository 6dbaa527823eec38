import pytest
import torch

from models.autoencoder import Autoencoder
from models.codebook import Codebook
from models.som import pictures as map_pictures
from models.som.pictures import atlas, hit_map, u_matrix
from tests.helpers.codebooks import LINE, build

NAN = float("nan")


@pytest.fixture
def load(tiny_run):
    """The autoencoder, and a codebook by its name."""

    def load(name):
        decoder = Autoencoder.load(tiny_run / "autoencoder/models_checkpoint/latest.pt")
        return decoder, Codebook.load(tiny_run / name / "models_checkpoint/latest.pt")

    return load


def decode(decoder, fmap):
    with torch.no_grad():
        return decoder.decode(fmap)[0].clamp(-1, 1)


def cell(picture, row, column, side):
    return picture[:, row * side : (row + 1) * side, column * side : (column + 1) * side]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_atlas_of_whole_maps_shows_each_unit_at_its_place(load, batch, monkeypatch):
    monkeypatch.setattr(map_pictures, "BATCH", batch)
    decoder, codebook = load("codebook_cond")
    codebook = codebook.prune(torch.tensor([1, 0, 1, 1], dtype=torch.bool))  # of 2 × 2
    picture = atlas(codebook, decoder)
    assert picture.shape == (3, 64, 64)
    empty = {(0, 0), (0, 1), (1, 0), (1, 1)}
    for index, (row, column) in enumerate(codebook.coordinates.tolist()):
        expected = decode(decoder, codebook.lookup(torch.tensor([[index]])))
        assert torch.allclose(cell(picture, row, column, 32), expected, atol=1e-5)
        empty.discard((row, column))
    assert [(cell(picture, *place, 32) == 1).all() for place in empty] == [True]


@pytest.mark.parametrize(("name", "scale"), [("codebook_0", 2), ("codebook_1", 3), ("codebook_2", 6)])
def test_the_atlas_of_patches_cuts_each_from_a_map_full_of_it(load, name, scale):
    decoder, codebook = load(name)
    patch = codebook.config.patch_H
    pixels = 4 * patch  # a cell of the feature map is 4 pixels wide
    picture = atlas(codebook, decoder)
    assert pixels * scale >= 24
    copies = 2 * -(-3 // patch) + 1
    for index, (row, column) in enumerate(codebook.coordinates.tolist()):
        unit = codebook.units[index].view(1, codebook.config.image_C, patch, patch)
        middle = decode(decoder, unit.repeat(1, 1, copies, copies))
        start = (copies // 2) * pixels
        tile = middle[:, start : start + pixels, start : start + pixels]
        expected = tile.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
        assert torch.allclose(cell(picture, row, column, pixels * scale), expected, atol=1e-5)


def test_the_u_matrix_by_hand():
    """Units 0, 1, 4 above 10, 3; the place under 4 is empty."""
    matrix = u_matrix(build([[0.0], [1.0], [4.0], [10.0], [3.0]], **LINE, image_W=1))
    between = [[0, 1, 0, 3, 0], [10, (3 + 9) / 2, 2, 1, NAN], [0, 7, 0, NAN, NAN]]
    expected = torch.tensor(between, dtype=torch.float32)
    expected[0, 0] = (1 + 10 + 6) / 3
    expected[0, 2] = (1 + 3 + 6 + 2 + 1) / 5
    expected[0, 4] = (3 + 1) / 2
    expected[2, 0] = (10 + 6 + 7) / 3
    expected[2, 2] = (7 + 2 + 6 + 1) / 4
    assert torch.allclose(matrix, expected, equal_nan=True)
    codebook = build(torch.arange(7.0)[:, None], **LINE, image_W=1)
    apart = codebook.prune(torch.tensor([1, 0, 0, 1, 0, 0, 0], dtype=torch.bool))  # the ends of the first row
    assert u_matrix(apart)[0, ::6].tolist() == [0, 0]


def test_the_hit_map_by_hand():
    codebook = build([[0.0], [1.0], [4.0], [10.0], [3.0]], **LINE, image_W=1)
    codebook.counts.copy_(torch.tensor([4, 0, 9, 1, 16]))
    assert torch.equal(hit_map(codebook).nan_to_num(-1), torch.tensor([[2.0, 0.0, 3.0], [1.0, 4.0, -1.0]]))
