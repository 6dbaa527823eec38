import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.codebook import Codebook
from models.som import learner as map_learner
from models.som.learner import (
    BALANCE_ROUNDS,
    MapLearner,
    balance,
    draw_sample,
    neighbourhood_radius,
    sample_size,
    smooth,
)
from models.som.order import arrange
from models.som.statistics import take_census
from tests.helpers.codebooks import LINE, PAIRS, build, config, generator, slow_distances, slow_patches, whole_maps
from tests.helpers.transformers import seeds

# --- Radius and smoothing ---


@given(
    number=st.integers(2, 3000), total=st.integers(1, 500), every=st.integers(1, 300), final=st.sampled_from([0, 0.75])
)
def test_the_radius_starts_at_half_the_map_and_leaves_the_last_steps_to_quantization(number, total, every, final):
    settings_ = config(num_embeddings=number, neighbourhood_step=every, final_radius=final)
    start = max(settings_.map_shape) // 2
    radii = [neighbourhood_radius(step, total, settings_) for step in range(total)]
    assert radii[0] == start >= 1
    assert radii == sorted(radii, reverse=True)
    assert all(radius == final for step, radius in enumerate(radii) if 5 * step >= total)
    if every * start * 5 <= total:
        assert radii == [max(final, start - step // every) for step in range(total)]
    continued = MapLearner(Codebook(settings_), 10, 1000, continued=True)
    assert {continued.radius(step) for step in range(0, 1000, 100)} == {final}


@given(seed=seeds, rows=st.integers(1, 5), columns=st.integers(1, 6), radius=st.integers(1, 3))
def test_smoothing_by_rows_then_columns_equals_the_dense_kernel(seed, rows, columns, radius):
    """Also where places are empty: after the end of the last row, or pruned."""
    grid = torch.randn(rows, columns, 3, generator=generator(seed))
    grid[torch.rand(rows, columns, generator=generator(seed)) < 0.3] = 0
    expected = torch.zeros(rows, columns, 3, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            for i in range(rows):
                for j in range(columns):
                    weight = math.exp(-((row - i) ** 2 + (column - j) ** 2) / (2 * radius**2))
                    expected[row, column] += weight * grid[i, j].double()
    assert torch.allclose(smooth(grid, radius).double(), expected, atol=1e-5)


# --- The update ---


class SlowMap:
    """The update of the map, one patch and one unit at a time, in float64."""

    def __init__(self, codebook):
        self.config, self.units = codebook.config, codebook.units.double().clone()
        self.places = codebook.coordinates.tolist()
        self.gathered = [0.0] * len(self.units)
        self.rates = set()  # which of the two rates moved a unit

    def update(self, fmap, radius, radius_changed, rate):
        if radius_changed:
            self.gathered = [0.0] * len(self.units)
        sums, numbers = torch.zeros_like(self.units), [0.0] * len(self.units)
        error, patches = 0.0, slow_patches(fmap, self.config)
        for one in patches:
            distances = [float((one - unit).square().sum()) for unit in self.units]
            winner = distances.index(min(distances))
            error += min(distances)
            for k, (row, column) in enumerate(self.places):
                weight = float(k == winner)
                if radius > 0:
                    apart = (row - self.places[winner][0]) ** 2 + (column - self.places[winner][1]) ** 2
                    weight = math.exp(-apart / (2 * radius**2))
                sums[k] += weight * one
                numbers[k] += weight
        for k, number in enumerate(numbers):
            if number > 0:
                floor, mean = 1 - (1 - rate) ** number, 2 * number / (self.gathered[k] + 2 * number)
                self.gathered[k] += number
                self.rates.add("floor" if floor > mean else "mean")
                self.units[k] += max(floor, mean) * (sums[k] / number - self.units[k])
        return error / patches.numel()


def check_steps(codebook, radii, **more):
    """Every step of the update equals the slow one, to 1e-4 in the units and 1e-5 relative in the rest."""
    learner, slow = MapLearner(codebook, steps_per_epoch=10**6, total_steps=10**6, **more), SlowMap(codebook)
    codebook.counts.fill_(3)
    for step, radius in enumerate(radii):
        fmap = torch.randn(3, *codebook.fmap_shape, generator=generator(step))
        numbers = learner.update(fmap, step)
        rate = codebook.config.model_lr / 2 ** (step // more.get("lr_step", len(radii)))
        error = slow.update(fmap, radius, step > 0 and radius != radii[step - 1], rate)
        assert (numbers["radius"], numbers["learning_rate"]) == (radius, rate)
        assert float(numbers["loss"]) == pytest.approx(error, rel=1e-5)
        assert torch.allclose(codebook.units.double(), slow.units, atol=1e-4)
        assert learner.gathered.tolist() == pytest.approx(slow.gathered, rel=1e-5)
    assert slow.rates == {"floor", "mean"}
    assert codebook.counts.tolist() == [0] * len(codebook)  # those of units that moved are forgotten


def random_codebook(number, **changes):
    return build(torch.randn(number, 12, generator=generator(number)), **{"model_lr": 0.2, **changes})


@pytest.mark.parametrize(
    ("number", "every", "radii", "keep"),
    [(25, 6, [2] * 6, None), (6, 5, [0] * 8, None), (19, 3, [2] * 3 + [1] * 3 + [0] * 6, None),
     (25, 3, [2] * 3 + [1] * 3 + [0] * 6, torch.rand(25, generator=generator(3)) < 0.6)],
    ids=["radius 2", "radius 0", "shrinking", "pruned"],
)  # fmt: skip
def test_the_update_equals_a_loop_over_patches_and_units(number, every, radii, keep):
    codebook = random_codebook(number, neighbourhood_step=every)
    check_steps(codebook if keep is None else codebook.prune(keep), radii, continued=radii[0] == 0)


def test_the_learning_rate_halves_every_lr_step():
    check_steps(random_codebook(19, neighbourhood_step=6), [2] * 6, lr_step=2)


def test_a_trained_map_is_near_the_best_there_is_and_in_order():
    """36 units on a square of data."""
    torch.manual_seed(0)
    patches = torch.rand(4096, 2, generator=generator(0))
    codebook = Codebook(config(**PAIRS, image_W=16, num_embeddings=36, model_lr=1e-4, neighbourhood_step=10))
    fmaps = patches.view(256, 16, 2).permute(0, 2, 1)[:, :, None]
    codebook.lay_out(patches)
    learner = MapLearner(codebook, steps_per_epoch=32, total_steps=96, sample=patches[:1000])
    for step in range(96):
        learner.update(fmaps.roll(-8 * step, dims=0)[:8], step)
    census = take_census(codebook, [fmaps])
    codebook.coordinates.copy_(arrange(codebook.coordinates, census.pairs))
    after = census.statistics(codebook)
    # A hexagon of the square's area over 36 has a mean squared error of 0.0802 times its area a dimension.
    assert after["quantization_error"] < 1.08 * 0.0802 / 36
    assert after["topographic_error"] < 0.1
    assert after["units_used"] == 36


# --- Balance ---


def slow_error(units, patches):
    return float(slow_distances(patches, units).min(1).values.mean())


@pytest.mark.parametrize("seed", range(6))
def test_balance_lowers_the_error_of_units_that_are_badly_spread(seed):
    """Nearly to what the same number of rounds of k-means reach from patches drawn by k-means++ (both vary)."""
    torch.manual_seed(seed)
    centres = 5 * torch.randn(12, 3, generator=generator(seed))
    patches = (centres[torch.arange(600) % 12] + torch.randn(600, 3, generator=generator(seed + 1))).float()
    crowded = patches[patches[:, 0].argsort()[:30]]
    codebook = build(crowded, **{**LINE, "image_C": 3}, image_W=1)
    before, places = slow_error(codebook.units, patches), codebook.coordinates.tolist()
    balance(codebook, patches)
    assert codebook.coordinates.tolist() != places  # those of the map are given anew
    assert sorted(codebook.coordinates.tolist()) == places
    units = patches[:1].double()
    while len(units) < 30:
        nearest = slow_distances(patches, units).min(1).values
        units = torch.cat((units, patches[torch.multinomial(nearest, 1)].double()))
    for _ in range(BALANCE_ROUNDS):
        cells = slow_distances(patches, units).argmin(1)
        units = torch.stack([patches[cells == k].double().mean(0) for k in range(30) if (cells == k).any()])
    assert slow_error(codebook.units, patches) < min(0.7 * before, 1.15 * slow_error(units, patches))


@pytest.mark.parametrize(
    ("changes", "continued", "balanced"),
    [({}, False, [6]), ({}, True, []), ({"final_radius": 1}, False, []), ({"neighbourhood_step": 1}, False, [3])],
)
def test_a_map_is_balanced_once_when_its_radius_first_is_0(changes, continued, balanced, monkeypatch):
    codebook = build(num_embeddings=42, **{"neighbourhood_step": 2, **changes})  # 6 × 7, from radius 3
    sample, calls = torch.zeros(50, 12), []
    learner = MapLearner(codebook, steps_per_epoch=4, total_steps=40, continued=continued, sample=sample)
    monkeypatch.setattr(map_learner, "balance", lambda *given: calls.append((step, *given)) or torch.full((42,), 8.0))
    for step in range(20):
        learner.update(whole_maps(2, codebook, step), step)
    assert [call[0] for call in calls] == balanced
    assert all(call[1] is codebook and call[2] is sample for call in calls)


@pytest.mark.parametrize(
    ("units", "planned", "whole", "expected"),
    [
        (512, 10**6, False, 64 * 512),
        (512, 100_000, False, 12_500),
        (512, 1000, False, 8 * 512),
        (1024, 10**9, True, 2**25 // 4096),  # each patch is a whole map: no more than memory may hold
    ],
)
def test_a_sample_is_a_few_patches_a_unit(units, planned, whole, expected):
    maps = {"image_H": 32, "image_W": 32, "image_C": 4, "patch_H": 32, "patch_W": 32} if whole else {}
    assert sample_size(config(**maps, num_embeddings=units), planned) == expected


@pytest.mark.parametrize(("maps", "wanted", "expected"), [(70, 1000, 280), (70, 50, 50), (300, 100, 100)])
def test_a_sample_is_drawn_from_patches_of_many_maps(maps, wanted, expected):
    codebook = build()
    fmaps = torch.arange(maps * 48.0).view(maps, 2, 4, 6)
    indices = np.arange(maps)[::-1]
    sample = draw_sample(codebook, fmaps, indices, wanted, seed=3)
    assert sample.shape == (expected, 12)
    known = {tuple(patch): number for number, patch in enumerate(codebook.patchify(fmaps).tolist())}
    result = [known[tuple(patch)] for patch in sample.tolist()]
    assert len({*result}) == expected
    assert result != sorted(result)
    assert len({number // 4 for number in result}) >= min(maps, 0.5 * wanted)
    assert torch.equal(draw_sample(codebook, fmaps, indices, wanted, seed=3), sample)
    assert not torch.equal(draw_sample(codebook, fmaps, indices, wanted, seed=4), sample)


# --- Dead units ---


def learn_line(learner, values, step, seed=None):
    torch.manual_seed(step if seed is None else seed)
    learner.update(torch.tensor(values).view(1, 1, 1, -1), step)


def test_dead_units_are_drawn_anew_from_the_patches_of_a_whole_epoch_at_radius_0():
    codebook = build([[0.0], [10.0], [1000.0], [2000.0]], **LINE, image_W=3)
    learner = MapLearner(codebook, steps_per_epoch=3, total_steps=6, continued=True)
    epoch = [[0.5, 1.0, 11.0], [9.0, 12.0, 2.0], [0.25, 10.5, 11.5]]
    for step, values in enumerate(epoch):
        assert codebook.units.flatten().tolist()[2:] == [1000, 2000]
        learn_line(learner, values, step)
    new = codebook.units.flatten().tolist()
    assert len({new[2], new[3]} & {value for values in epoch for value in values}) == 2
    expected = [0.75, 11.0]
    for unit, gathered, values in [(0, 2, [2.0]), (1, 1, [9.0, 12.0]), (0, 3, [0.25]), (1, 3, [10.5, 11.5])]:
        share = 2 * len(values) / (gathered + 2 * len(values))
        expected[unit] += share * (sum(values) / len(values) - expected[unit])
    assert new[:2] == pytest.approx(expected)
    assert learner.gathered.tolist() == [4, 5, 0, 0]


@pytest.mark.parametrize("total_steps", [6, 4])
def test_a_unit_that_won_once_stays_seeds_are_of_the_last_epoch_and_the_last_step_draws_nothing(total_steps):
    """In the second epoch a patch near 300 is won once, and the unit at 400, won before, is dead."""
    start = [[0.0], [10.0], [300.0], [400.0]]
    codebook = build(start, **LINE, image_W=3)
    learner = MapLearner(codebook, steps_per_epoch=2, total_steps=total_steps, continued=True)
    for step, values in enumerate([[0.5, 301.0, 9.5], [399.0, 0.25, 9.75], [0.01, 299.0, 9.01], [0.02, 9.02, 9.03]]):
        if step == 2:
            codebook.units.copy_(torch.tensor(start))
        learn_line(learner, values, step)
    units = codebook.units.flatten().tolist()
    assert units[2] == pytest.approx(299, abs=2)
    if total_steps == 4:
        assert units[3] == 400
    else:
        assert any(units[3] == pytest.approx(value) for value in (0.01, 299, 9.01, 0.02, 9.02, 9.03))
        assert learner.gathered.tolist() == [4, 5, 2, 0]  # a unit drawn anew forgets what it had gathered


def test_seeds_are_drawn_in_proportion_to_squared_error():
    """A patch at distance 2 from its unit is drawn four times as often as one at distance 1, one on it never."""
    drawn = []
    for trial in range(500):
        codebook = build([[0.0], [1000.0]], **LINE, image_W=3)
        learner = MapLearner(codebook, steps_per_epoch=1, total_steps=2, continued=True)
        learn_line(learner, [0.0, 1.0, -2.0], 0, trial)
        drawn.append(codebook.units[1].item())
    assert set(drawn) == {1.0, -2.0}
    assert drawn.count(-2.0) / 500 == pytest.approx(0.8, abs=0.06)  # three standard deviations
    # Nor do patches that fit exactly break the draw.
    codebook = build([[1.0], [2.0], [1000.0]], **LINE, image_W=2)
    learner = MapLearner(codebook, steps_per_epoch=1, total_steps=5, continued=True)
    for step in range(2):
        learn_line(learner, [1.0, 2.0], step)
    assert codebook.units[:2].flatten().tolist() == [1, 2]
    assert codebook.units[2].item() in (1, 2)


# --- Resume ---


@pytest.mark.parametrize("sample", [None, torch.randn(100, 12, generator=generator(5))], ids=["as it is", "balanced"])
def test_a_map_restored_halfway_equals_an_uninterrupted_one(sample, tmp_path):
    def start():
        codebook = random_codebook(9, neighbourhood_step=3)
        return MapLearner(codebook, steps_per_epoch=2, total_steps=15, sample=sample)

    def go(learner, step):
        torch.manual_seed(step)
        learner.update(torch.randn(2, 2, 4, 6, generator=generator(step)).round(), step)

    straight, saved = start(), {}
    for step in range(12):
        if step:
            saved[step] = io.BytesIO()
            torch.save(straight.checkpoint(), saved[step])
        go(straight, step)
    for halfway, file in saved.items():
        file.seek(0)
        second = start()
        second.codebook.units.zero_()
        second.restore(torch.load(file, weights_only=True), tmp_path)
        for step in range(halfway, 12):
            go(second, step)
        for name, value in straight.codebook.state_dict().items():
            assert torch.equal(second.codebook.state_dict()[name], value), name
        for name in ("gathered", "wins", "candidates", "candidate_keys"):
            assert torch.equal(getattr(second, name), getattr(straight, name)), name
    # An epoch of 16 patches at radius 0 leaves units of this map without a win, so the draws are part of this.
    assert (straight.wins == 0).any() or sample is not None
