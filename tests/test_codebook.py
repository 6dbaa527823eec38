from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from models import codebook as codebook_module
from models.codebook import KIND, Codebook
from models.som.statistics import take_census
from tests.helpers.codebooks import LINE, PAIRS, build, config, generator, slow_distances, slow_patches, whole_maps
from tests.helpers.transformers import seeds
from utils.runs.checkpoint import save_checkpoint


@given(st.integers(2, 2**14))
def test_every_unit_has_a_place_of_its_own_and_no_row_is_empty(number):
    rows, columns = config(num_embeddings=number).map_shape
    assert (rows - 1) * columns < number <= rows * columns
    assert rows <= columns <= rows + 2


def test_sizes_that_follow_from_a_config_and_places_in_raster_order():
    codebook = Codebook(config(num_embeddings=7))
    assert [config(num_embeddings=number).map_shape for number in (2, 7, 512)] == [(1, 2), (2, 4), (22, 24)]
    assert (codebook.config.dim, codebook.config.grid, codebook.fmap_shape) == (12, (2, 2), (2, 4, 6))
    assert codebook.coordinates.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [1, 2]]


@pytest.mark.parametrize("mean", [200.0, 2000.0, -2000.0])
def test_a_large_mean_costs_no_precision(mean):
    codebook = build(mean + torch.randn(64, 12, generator=generator(0)))
    fmap = mean + torch.randn(50, *codebook.fmap_shape, generator=generator(1))
    patches = slow_patches(fmap, codebook.config)
    distances = slow_distances(patches, codebook.units)
    chosen = distances.gather(1, codebook.find_bmu(fmap).view(-1, 1)).squeeze(1)
    assert torch.allclose(chosen, distances.min(1).values, rtol=1e-5)
    variance = float(patches.var(0, correction=0).sum())
    assert take_census(codebook, [fmap]).variance == pytest.approx(variance, rel=1e-4)


@given(seed=seeds, number=st.integers(1, 5), units=st.integers(2, 12), cells=st.integers(1, 60))
def test_search_in_blocks_equals_brute_force(seed, number, units, cells):
    codebook = build(num_embeddings=units, seed=seed)
    fmap = whole_maps(number, codebook, seed + 1)
    distances = slow_distances(slow_patches(fmap, codebook.config), codebook.units)
    with patch.object(codebook_module, "SEARCH_DISTANCES", {"cpu": cells}):
        tokens = codebook.find_bmu(fmap)
        errors, indices = codebook.nearest(codebook.patchify(fmap), k=2)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, distances.argmin(1).view(number, 4))
    assert torch.equal(errors.double(), distances.sort(1).values[:, :2])
    assert torch.equal(distances.gather(1, indices), errors.double())
    assert (indices[:, 0] != indices[:, 1]).all()


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor that an operator made holds."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        built = function(*args, **kwargs or {})
        if isinstance(built, torch.Tensor):
            self.numbers = max(self.numbers, built.numel())
        return built


@pytest.mark.parametrize(("units", "dim"), [(50, 2), (3, 50)])
def test_search_never_holds_more_distances_or_differences_than_a_block(units, dim):
    codebook = build(torch.randn(units, dim, generator=generator(0)), **{**LINE, "image_C": dim}, image_W=1)
    patches = torch.randn(1000, dim, generator=generator(1))
    with Largest() as largest, patch.object(codebook_module, "SEARCH_DISTANCES", {"cpu": 500}):
        codebook.nearest(patches, k=1)
    assert largest.numbers <= max(500, 2 * len(patches))  # two is what the indices and errors take, and their parts


@given(seed=seeds, units=st.integers(2, 20))
def test_tokens_survive_lookup_and_search(seed, units):
    codebook = build(num_embeddings=units, seed=seed)
    codebook.units[:, 0] = torch.randperm(units, generator=generator(seed))  # no two units alike
    tokens = torch.randint(units, (3, 4), generator=generator(seed))
    fmap = codebook.lookup(tokens)
    assert fmap.shape == (3, 2, 4, 6)
    assert torch.equal(codebook.find_bmu(fmap), tokens)


@given(seed=seeds, units=st.integers(2, 40), dim=st.integers(1, 4), more=st.integers(0, 60))
def test_the_start_is_made_of_patches_each_used_once(seed, units, dim, more):
    torch.manual_seed(seed)
    patches = torch.randn(units + more, dim, generator=generator(seed))
    codebook = Codebook(config(num_embeddings=units, image_H=1, image_W=1, image_C=dim, patch_H=1, patch_W=1))
    codebook.lay_out(patches)
    same = (codebook.units[:, None] == patches[None]).all(2)
    assert (same.sum(1) >= 1).all()
    assert len(codebook.units.unique(dim=0)) == len(patches[same.any(0)].unique(dim=0)) == units


@pytest.mark.parametrize("number", [100, 104])
def test_the_start_is_ordered(number):
    """On a rectangle of data, the map's neighbours are near, and its columns follow the long side."""
    torch.manual_seed(0)
    patches = torch.rand(800, 2, generator=generator(1)) * torch.tensor([1.0, 3.0])
    codebook = Codebook(config(**PAIRS, image_W=1, num_embeddings=number))
    codebook.lay_out(patches)
    apart = (codebook.coordinates[:, None] - codebook.coordinates[None]).abs().sum(2)
    distances = slow_distances(codebook.units, codebook.units).sqrt()
    assert distances[apart == 1].mean() < 0.35 * distances[apart > 1].mean()
    columns = codebook.coordinates[:, 1].double()
    assert abs(torch.corrcoef(torch.stack((columns, codebook.units[:, 1].double())))[0, 1]) > 0.95


@given(seed=seeds, units=st.integers(2, 30), share=st.floats(0.1, 0.9))
def test_pruning_keeps_survivors_as_they_are(seed, units, share):
    codebook = build(num_embeddings=units, seed=seed)
    fmap = whole_maps(3, codebook, seed + 1)
    codebook.counts.copy_(take_census(codebook, [fmap]).counts)
    before = {name: value.clone() for name, value in codebook.state_dict().items()}
    keep = torch.rand(units, generator=generator(seed)) < share
    keep[seed % units] = True
    pruned = codebook.prune(keep)
    assert len(pruned) == int(keep.sum())
    assert pruned.config == codebook.config
    for name in ("units", "coordinates", "counts"):
        assert torch.equal(getattr(pruned, name), before[name][keep])
        assert torch.equal(getattr(codebook, name), before[name])
    tokens, new_tokens = codebook.find_bmu(fmap), pruned.find_bmu(fmap)
    survives = keep[tokens]
    assert torch.equal(pruned.units[new_tokens][survives], codebook.units[tokens][survives])
    # And no patch is nearer than before, nor farther than the best survivor.
    expected = slow_distances(slow_patches(fmap, codebook.config), codebook.units[keep]).min(1).values
    assert torch.equal(pruned.nearest(pruned.patchify(fmap))[0][:, 0].double(), expected)


def save(codebook, path, **trained_from):
    save_checkpoint(path, KIND, codebook.config, codebook.state_dict(), trained_from=trained_from)


@pytest.mark.parametrize("pruned", [False, True])
def test_a_saved_codebook_comes_back_the_same(pruned, tmp_path):
    codebook = build(seed=4)
    fmap = whole_maps(5, codebook)
    codebook.counts.copy_(take_census(codebook, [fmap]).counts)
    if pruned:
        codebook = codebook.prune(torch.tensor([1, 0, 1, 1, 0, 0, 1], dtype=torch.bool))
    save(codebook, tmp_path / "c.pt", encoder="abc")
    loaded = Codebook.load(tmp_path / "c.pt")
    assert (loaded.config, loaded.fingerprint) == (codebook.config, codebook.fingerprint)
    assert loaded.origin == {"encoder": "abc"}
    for name, value in codebook.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert torch.equal(loaded.find_bmu(fmap), codebook.find_bmu(fmap))
