from collections import Counter
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.som.order import PairCounts, _Board, arrange
from tests.helpers.codebooks import build, generator
from tests.helpers.transformers import seeds


def count(indices, num_units):
    pairs = PairCounts(num_units)
    pairs.add(indices)
    return pairs


def random_pairs(number, num_units, seed):
    """Pairs of different units, (number, 2)."""
    first = torch.randint(num_units, (number,), generator=generator(seed))
    apart = torch.randint(1, num_units, (number,), generator=generator(seed + 1))
    return torch.stack((first, (first + apart) % num_units), dim=1)


def grid_pairs(rows, columns, each=10):
    """Units of a grid, numbered row by row, each of which shares patches with those beside, above and below it."""
    units = torch.arange(rows * columns).view(rows, columns)
    across = torch.stack((units[:, :-1].flatten(), units[:, 1:].flatten()), dim=1)
    down = torch.stack((units[:-1].flatten(), units[1:].flatten()), dim=1)
    return torch.cat((across, down)).repeat(each, 1)


@given(seed=seeds, units=st.integers(2, 12), batches=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_pairs_are_counted_whatever_the_batches(seed, units, batches):
    indices = random_pairs(sum(batches), units, seed)
    with patch.object(PairCounts, "MERGE", 5):
        pairs = PairCounts(units)
        for batch in indices.split(batches):
            pairs.add(batch)
        first, second, numbers = (part.tolist() for part in pairs.counted())
    assert len({*zip(first, second, strict=True)}) == len(first)
    assert dict(zip(zip(first, second, strict=True), numbers, strict=True)) == Counter(map(tuple, indices.tolist()))


@given(seed=seeds, units=st.integers(2, 40), quick=st.booleans(), pruned=st.booleans())
@settings(max_examples=12)
def test_the_same_places_are_given_anew_and_the_error_is_never_larger(seed, units, quick, pruned):
    codebook = build(num_embeddings=units)
    if pruned:  # places are empty
        keep = torch.rand(units, generator=generator(seed)) < 0.6
        keep[:2] = True
        codebook = codebook.prune(keep)
    places = codebook.coordinates.clone()
    pairs = count(random_pairs(100, len(codebook), seed), len(codebook))
    result = arrange(places, pairs, quick)
    assert torch.equal(codebook.coordinates, places)
    assert result.dtype == torch.int64
    assert sorted(result.tolist()) == sorted(places.tolist())
    assert pairs.topographic_error(result) <= pairs.topographic_error(places)
    assert torch.equal(arrange(places, pairs, quick), result)


@pytest.mark.parametrize(("moved", "most"), [(16, 0.01), (64, 0.35)])
@pytest.mark.parametrize("seed", range(3))
def test_a_scrambled_grid_is_put_in_order(seed, moved, most):
    """All but entirely where a quarter of the units were exchanged; from chaos, to an order with a few folds."""
    places = build(num_embeddings=64).coordinates
    chosen = torch.randperm(64, generator=generator(seed))[:moved]
    scrambled = places.clone()
    scrambled[chosen] = places[chosen.roll(1)]
    pairs = count(grid_pairs(8, 8), 64)
    assert pairs.topographic_error(places) == 0
    assert torch.equal(arrange(places, pairs), places)
    assert pairs.topographic_error(scrambled) > moved / 90
    assert pairs.topographic_error(arrange(scrambled, pairs)) < most


def dense_objective(board):
    """What all units gain from their neighbourhoods, by the dense kernel; each pair is counted twice."""
    rows, columns = board.places.T
    near = board.kernel[rows[:, None], rows] * board.kernel[columns[:, None], columns]
    weights = np.zeros_like(near)
    np.add.at(weights, (np.arange(len(near))[:, None], board.partners), board.weights)
    return (weights * near).sum(1)


@pytest.mark.parametrize("most", [2, 16])
@pytest.mark.parametrize("radius", [4, 1, 0])
@given(seed=seeds, units=st.integers(2, 16), row=st.booleans())
@settings(max_examples=6)
def test_each_exchange_is_the_best_there_is_and_the_books_are_kept(radius, most, seed, units, row):
    """Also where partners are left out, and places, on a map of one long row."""
    places = build(num_embeddings=units).coordinates.numpy()
    places = np.stack((np.zeros(units, dtype=np.int64), np.arange(units)), axis=1) if row else places
    board = _Board(places, *count(random_pairs(60, units, seed), units).strongest(most))
    board.set_radius(radius)
    assert np.allclose(board.gains, dense_objective(board))
    for unit in np.random.default_rng(seed).permutation(np.repeat(np.arange(units), 2)):
        before = dense_objective(board).sum()
        best = max(swapped(board, unit, other) for other in range(units))
        built = board.sweep([unit])
        after = dense_objective(board)
        assert np.allclose(board.gains, after)
        assert after.sum() == pytest.approx(best)
        assert built == (after.sum() > before + 1e-6)


def swapped(board, unit, other):
    """The objective if two units were exchanged."""
    board.places[[unit, other]] = board.places[[other, unit]]
    value = dense_objective(board).sum()
    board.places[[unit, other]] = board.places[[other, unit]]
    return value
