import numpy as np
import pytest
import torch
from PIL import Image

from models.autoencoder import Autoencoder
from models.codebook import Codebook
from models.som import pictures as map_pictures
from models.som.pictures import atlas, hit_map, save_map, u_matrix
from tests.helpers.codebooks import LINE, build
from utils.runs.folders import OutputFolder

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


def test_a_large_atlas_is_scaled_down(load, monkeypatch):
    decoder, codebook = load("codebook_cond")
    full = atlas(codebook, decoder)
    monkeypatch.setattr(map_pictures, "ATLAS_SIDE", 32)
    small = atlas(codebook, decoder)
    assert small.shape == (3, 32, 32)
    assert torch.allclose(small, full.view(3, 32, 2, 32, 2).mean((2, 4)), atol=1e-5)
    decoder, codebook = load("codebook_2")  # tiles of 4 pixels, which would be enlarged to 24
    monkeypatch.setattr(map_pictures, "ATLAS_SIDE", 60)
    assert atlas(codebook, decoder).shape == (3, 5 * 8, 7 * 8)


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


def test_pictures_are_saved_and_hits_only_once_counted(load, tmp_path):
    decoder, codebook = load("codebook_0")
    folder, fresh = OutputFolder(tmp_path), OutputFolder(tmp_path / "fresh")
    save_map(codebook, decoder, folder, "pruned")
    names = {f"{name}_pruned.png" for name in ("atlas", "u_matrix", "hit_map")}
    assert {path.name for path in folder.images.iterdir()} == names
    assert np.asarray(Image.open(folder.picture("hit_map", "pruned"))).std() > 0
    codebook.counts.zero_()
    save_map(codebook, decoder, fresh, 3)
    assert {path.name for path in fresh.images.iterdir()} == {"atlas_3.png", "u_matrix_3.png"}
