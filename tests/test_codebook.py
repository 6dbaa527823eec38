import io
import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from models import codebook as codebook_module
from models.codebook import KIND, Codebook, CodebookConfig, MapLearner, neighbourhood_radius, smooth
from utils.checkpoint import save_checkpoint
from utils.files import UserError

DEFAULTS = {
    "model_lr": 0.05,
    "image_H": 4,
    "image_W": 6,
    "image_C": 2,
    "patch_H": 2,
    "patch_W": 3,
    "num_embeddings": 7,
    "neighbourhood_step": 5,
}
# Feature maps of 1 × columns numbers, each number a patch, or each pair of channels.
LINE = {"image_H": 1, "image_C": 1, "patch_H": 1, "patch_W": 1}
PAIRS = {**LINE, "image_C": 2}

seeds = st.integers(0, 2**31)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def config(**changes):
    return CodebookConfig(**DEFAULTS | changes)


def build(units=None, seed=0, **changes):
    """A codebook with these units, or with random ones of whole numbers, so that distances are exact in float32."""
    if units is not None:
        changes["num_embeddings"] = len(units)
    made = Codebook(config(**changes))
    if units is None:
        units = torch.randint(-8, 9, made.units.shape, generator=generator(seed))
    made.units.copy_(torch.as_tensor(units))
    return made


def whole_maps(number, codebook, seed=1):
    return torch.randint(-8, 9, (number, *codebook.fmap_shape), generator=generator(seed)).float()


def slow_patches(fmap, settings):
    """Every patch of the maps in raster order, cut out one by one, in float64."""
    cells = []
    for one in fmap.double():
        for top in range(0, settings.image_H, settings.patch_H):
            for left in range(0, settings.image_W, settings.patch_W):
                cells.append(one[:, top : top + settings.patch_H, left : left + settings.patch_W].flatten())
    return torch.stack(cells)


def slow_distances(patches, units):
    """Squared distances (N, K) in float64."""
    return (patches[:, None].double() - units[None].double()).square().sum(2)


def distinct_units(number, dim, seed):
    """Whole numbers, no two units alike."""
    units = torch.randint(-8, 9, (number, dim), generator=generator(seed))
    units[:, 0] = torch.randperm(number, generator=generator(seed))
    return units


# --- Geometry and configuration ---


@pytest.mark.parametrize(
    ("number", "shape"), [(2, (1, 2)), (3, (1, 3)), (5, (2, 3)), (7, (2, 4)), (12, (3, 4)), (512, (22, 24))]
)
def test_the_map_is_nearly_square(number, shape):
    assert config(num_embeddings=number).map_shape == shape


@given(st.integers(2, 20_000))
def test_every_unit_has_a_place_of_its_own_and_no_row_is_empty(number):
    rows, columns = config(num_embeddings=number).map_shape
    assert (rows - 1) * columns < number <= rows * columns
    assert rows <= columns <= rows + 2


def test_units_lie_on_the_map_in_raster_order():
    expected = [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [1, 2]]
    assert Codebook(config(num_embeddings=7)).coordinates.tolist() == expected


def test_sizes_that_follow_from_a_config():
    settings_ = config()
    assert (settings_.dim, settings_.grid) == (12, (2, 2))
    assert Codebook(settings_).fmap_shape == (2, 4, 6)
    assert len(Codebook(settings_)) == 7


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model_lr", 0, "between 0 and 1"),
        ("model_lr", 1, "between 0 and 1"),
        ("image_H", 0, "at least 1"),
        ("image_W", 0, "at least 1"),
        ("image_C", 0, "at least 1"),
        ("patch_H", 0, "at least 1"),
        ("patch_W", 0, "at least 1"),
        ("neighbourhood_step", 0, "at least 1"),
        ("num_embeddings", 1, "at least 2"),
    ],
)
def test_a_config_out_of_its_limits_is_refused_by_key_and_value(key, value, expected):
    with pytest.raises(ValueError, match=f"'{key}' is {value}.*{expected}"):
        config(**{key: value})


@pytest.mark.parametrize(("axis", "size", "unfit"), [("H", 4, 3), ("W", 6, 4)])
def test_a_patch_that_does_not_divide_the_map_is_refused(axis, size, unfit):
    with pytest.raises(ValueError, match=f"'image_{axis}' {size} is not divisible by 'patch_{axis}' {unfit}"):
        config(**{f"patch_{axis}": unfit})


# --- Search ---


@given(seed=seeds, number=st.integers(1, 5), units=st.integers(2, 12), cells=st.integers(1, 60))
def test_search_in_blocks_equals_brute_force(seed, number, units, cells):
    codebook = build(num_embeddings=units, seed=seed)
    fmap = whole_maps(number, codebook, seed + 1)
    distances = slow_distances(slow_patches(fmap, codebook.config), codebook.units)
    with patch.object(codebook_module, "SEARCH_CELLS", cells):
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
        made = function(*args, **kwargs or {})
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def test_search_never_holds_more_distances_than_a_block():
    codebook = build(torch.randn(50, 2, generator=generator(0)), **PAIRS, image_W=1)
    patches = torch.randn(1000, 2, generator=generator(1))
    with Largest() as largest, patch.object(codebook_module, "SEARCH_CELLS", 500):
        codebook.nearest(patches, k=1)
    assert largest.numbers <= patches.numel()


@given(seed=seeds, units=st.integers(2, 20))
def test_tokens_survive_lookup_and_search(seed, units):
    codebook = build(distinct_units(units, 12, seed))
    tokens = torch.randint(units, (3, 4), generator=generator(seed))
    fmap = codebook.lookup(tokens)
    assert fmap.shape == (3, 2, 4, 6)
    assert torch.equal(codebook.find_bmu(fmap), tokens)


@given(seed=seeds, units=st.integers(2, 20))
def test_quantizing_twice_is_quantizing_once(seed, units):
    codebook = build(num_embeddings=units, seed=seed)
    once = codebook.lookup(codebook.find_bmu(whole_maps(3, codebook, seed + 1)))
    assert torch.equal(codebook.lookup(codebook.find_bmu(once)), once)


def test_lookup_puts_each_patch_in_its_cell_by_hand():
    codebook = build([[0, 1], [10, 11], [20, 21]], image_C=1, image_H=2, image_W=4, patch_H=1, patch_W=2)
    fmap = codebook.lookup(torch.tensor([[0, 1, 2, 0]]))
    assert fmap.tolist() == [[[[0, 1, 10, 11], [20, 21, 0, 1]]]]


def test_quantization_error_by_hand():
    codebook = build([[0.0], [10.0]], **LINE, image_W=4)
    error = codebook.quantization_error(torch.tensor([[[[1.0, 8.0, 0.0, 13.0]]]]))
    assert error == pytest.approx((1 + 4 + 0 + 9) / 4)


# --- The start ---


@given(seed=seeds, units=st.integers(2, 40), dim=st.integers(1, 4), more=st.integers(0, 60))
def test_the_start_is_made_of_patches_each_used_once(seed, units, dim, more):
    torch.manual_seed(seed)
    patches = torch.randn(units + more, dim, generator=generator(seed))
    codebook = Codebook(config(num_embeddings=units, image_H=1, image_W=1, image_C=dim, patch_H=1, patch_W=1))
    codebook.start_from(patches)
    same = (codebook.units[:, None] == patches[None]).all(2)
    assert (same.sum(1) >= 1).all()
    assert len(codebook.units.unique(dim=0)) == len(patches[same.any(0)].unique(dim=0)) == units


@pytest.mark.parametrize("number", [100, 104])
def test_the_start_is_ordered(number):
    """On a rectangle of data, the map's neighbours are near, and its columns follow the long side."""
    torch.manual_seed(0)
    patches = torch.rand(800, 2, generator=generator(1)) * torch.tensor([1.0, 3.0])
    codebook = Codebook(config(**PAIRS, image_W=1, num_embeddings=number))
    codebook.start_from(patches)
    apart = (codebook.coordinates[:, None] - codebook.coordinates[None]).abs().sum(2)
    distances = slow_distances(codebook.units, codebook.units).sqrt()
    assert distances[apart == 1].mean() < 0.35 * distances[apart > 1].mean()
    columns = codebook.coordinates[:, 1].double()
    assert abs(torch.corrcoef(torch.stack((columns, codebook.units[:, 1].double())))[0, 1]) > 0.95


# --- Radius and smoothing ---


def test_the_radius_shrinks_by_one_every_neighbourhood_step():
    settings_ = config(num_embeddings=42, neighbourhood_step=10)  # 6 × 7
    radii = [neighbourhood_radius(step, 1000, settings_) for step in range(60)]
    assert radii == [3] * 10 + [2] * 10 + [1] * 10 + [0] * 30


def test_a_short_run_shrinks_faster():
    settings_ = config(num_embeddings=42, neighbourhood_step=10)
    radii = [neighbourhood_radius(step, 20, settings_) for step in range(20)]
    assert radii == [3] * 4 + [2] * 4 + [1] * 4 + [0] * 8


@given(number=st.integers(2, 3000), total=st.integers(1, 500), every=st.integers(1, 300))
def test_the_radius_starts_at_half_the_map_and_leaves_the_last_steps_to_quantization(number, total, every):
    settings_ = config(num_embeddings=number, neighbourhood_step=every)
    start = max(settings_.map_shape) // 2
    radii = [neighbourhood_radius(step, total, settings_) for step in range(total)]
    assert radii[0] == start >= 1
    assert radii == sorted(radii, reverse=True)
    assert all(radius == 0 for step, radius in enumerate(radii) if 10 * step >= 6 * total)
    if every * start * 10 <= 6 * total:
        assert radii == [max(0, start - step // every) for step in range(total)]


def test_a_continued_codebook_is_at_radius_0():
    codebook = build(num_embeddings=42, neighbourhood_step=10)
    assert {MapLearner(codebook, 10, 1000, continued=True).radius(step) for step in range(100)} == {0}
    assert MapLearner(codebook, 10, 1000).radius(0) == 3


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

    def update(self, fmap, radius, radius_changed):
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
                self.gathered[k] += number
                floor, mean = 1 - (1 - self.config.model_lr) ** number, number / self.gathered[k]
                self.rates.add("floor" if floor > mean else "mean")
                self.units[k] += max(floor, mean) * (sums[k] / number - self.units[k])
        return error / patches.numel()


def check_steps(codebook, radii, **learner_settings):
    """Every step of the update equals the slow one, to 1e-4 in the units and 1e-5 relative in the rest."""
    learner, slow = (
        MapLearner(codebook, steps_per_epoch=10**6, total_steps=10**6, **learner_settings),
        SlowMap(codebook),
    )
    for step, radius in enumerate(radii):
        fmap = torch.randn(3, *codebook.fmap_shape, generator=generator(step))
        numbers = learner.update(fmap, step)
        error = slow.update(fmap, radius, step > 0 and radius != radii[step - 1])
        assert numbers["radius"] == radius
        assert float(numbers["loss"]) == pytest.approx(error, rel=1e-5)
        assert torch.allclose(codebook.units.double(), slow.units, atol=1e-4)
        assert learner.gathered.tolist() == pytest.approx(slow.gathered, rel=1e-5)
    assert slow.rates == {"floor", "mean"}


def random_codebook(number, **changes):
    return build(torch.randn(number, 12, generator=generator(number)), **{"model_lr": 0.2, **changes})


@pytest.mark.parametrize("number", [25, 19])
def test_the_update_equals_a_loop_over_patches_and_units_at_radius_2(number):
    check_steps(random_codebook(number, neighbourhood_step=6), [2] * 6)


def test_the_update_equals_a_loop_over_patches_and_units_at_radius_0():
    check_steps(random_codebook(6), [0] * 8, continued=True)


def test_the_update_equals_the_loop_as_the_radius_shrinks():
    check_steps(random_codebook(19, neighbourhood_step=3), [2] * 3 + [1] * 3 + [0] * 6)


def test_the_update_of_a_pruned_map_equals_the_loop():
    whole = random_codebook(25, neighbourhood_step=3)
    check_steps(whole.prune(torch.rand(25, generator=generator(3)) < 0.6), [2] * 3 + [1] * 3 + [0] * 6)


def test_counts_of_units_that_moved_are_forgotten():
    codebook = build()
    codebook.counts.fill_(3)
    MapLearner(codebook, steps_per_epoch=2, total_steps=9).update(whole_maps(2, codebook), 0)
    assert codebook.counts.tolist() == [0] * 7


def test_at_radius_0_only_winners_move_and_the_first_batch_puts_them_on_their_mean():
    codebook = build([[0.0], [10.0], [50.0]], **LINE, image_W=4, model_lr=1e-4)
    learner = MapLearner(codebook, steps_per_epoch=100, total_steps=100, continued=True)
    learner.update(torch.tensor([[[[1.0, 2.0, 9.0, 3.0]]]]), 0)
    assert codebook.units.flatten().tolist() == pytest.approx([2, 9, 50])
    learner.update(torch.tensor([[[[4.0, 12.0, 12.0, 12.0]]]]), 1)
    assert codebook.units.flatten().tolist() == pytest.approx([(1 + 2 + 3 + 4) / 4, (9 + 3 * 12) / 4, 50])


def test_training_a_map_halves_its_error_and_keeps_its_order():
    """On a square of data, near the best that any 36 units could do."""
    torch.manual_seed(0)
    patches = torch.rand(4096, 2, generator=generator(0))
    codebook = Codebook(config(**PAIRS, image_W=16, num_embeddings=36, model_lr=1e-4, neighbourhood_step=10))
    fmaps = patches.view(256, 16, 2).permute(0, 2, 1)[:, :, None]
    codebook.start_from(patches)
    before = codebook.statistics([fmaps])
    learner = MapLearner(codebook, steps_per_epoch=32, total_steps=96)
    for step in range(96):
        learner.update(fmaps.roll(-8 * step, dims=0)[:8], step)
    after = codebook.statistics([fmaps])
    # A hexagon of the square's area over 36 has a mean squared error of 0.0802 times its area a dimension.
    assert after["quantization_error"] < 1.15 * 0.0802 / 36
    assert after["quantization_error"] < before["quantization_error"]
    assert after["topographic_error"] < 0.5
    assert after["units_used"] == 36


# --- Dead units ---


def learn_line(learner, values, step):
    torch.manual_seed(step)
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
    assert new[:2] == pytest.approx([(0.5 + 1 + 2 + 0.25) / 4, (11 + 9 + 12 + 10.5 + 11.5) / 5])
    assert learner.gathered.tolist() == [4, 5, 0, 0]


def two_epochs(total_steps):
    """A map after two epochs: in the second a patch near 300 is won once, and the unit at 400, won before, is dead."""
    codebook = build([[0.0], [10.0], [300.0], [400.0]], **LINE, image_W=3)
    learner = MapLearner(codebook, steps_per_epoch=2, total_steps=total_steps, continued=True)
    for step, values in enumerate([[0.5, 301.0, 9.5], [399.0, 0.25, 9.75]]):
        learn_line(learner, values, step)
    codebook.units.copy_(torch.tensor([[0.0], [10.0], [300.0], [400.0]]))
    for step, values in enumerate([[0.01, 299.0, 9.01], [0.02, 9.02, 9.03]], 2):
        learn_line(learner, values, step)
    return learner


def test_a_unit_that_won_once_stays_and_seeds_are_of_the_last_epoch():
    learner = two_epochs(total_steps=6)
    units = learner.codebook.units.flatten().tolist()
    assert units[2] == pytest.approx(299, abs=2)
    assert any(units[3] == pytest.approx(value) for value in (0.01, 299, 9.01, 0.02, 9.02, 9.03))
    assert learner.gathered.tolist() == [4, 5, 2, 0]  # a unit drawn anew forgets what it had gathered


def test_the_last_step_draws_nothing():
    assert two_epochs(total_steps=4).codebook.units[3] == 400


def test_an_epoch_that_began_at_a_larger_radius_draws_nothing():
    codebook = build([[0.0], [1.0], [2.0], [3.0]], **LINE, image_W=3, neighbourhood_step=4)  # 2 × 2, radius 1
    learner = MapLearner(codebook, steps_per_epoch=3, total_steps=20)
    assert [learner.radius(step) for step in range(6)] == [1, 1, 1, 1, 0, 0]
    for step in range(9):
        if step == 4:
            codebook.units[3] = 1000.0
        assert (codebook.units[3] == 1000) == (step >= 4)
        learn_line(learner, [0.5, 1.5, 2.5], step)
    assert any(codebook.units[3] == value for value in (0.5, 1.5, 2.5))


def test_seeds_are_drawn_in_proportion_to_squared_error():
    """A patch at distance 2 from its unit is drawn four times as often as one at distance 1, one on it never."""
    drawn = []
    for trial in range(500):
        codebook = build([[0.0], [1000.0]], **LINE, image_W=3)
        learner = MapLearner(codebook, steps_per_epoch=1, total_steps=2, continued=True)
        torch.manual_seed(trial)
        learner.update(torch.tensor([[[[0.0, 1.0, -2.0]]]]), 0)
        drawn.append(codebook.units[1].item())
    assert set(drawn) == {1.0, -2.0}
    assert drawn.count(-2.0) / 500 == pytest.approx(0.8, abs=0.06)  # three standard deviations


def test_patches_that_fit_exactly_do_not_break_the_draw():
    codebook = build([[1.0], [2.0], [1000.0]], **LINE, image_W=2)
    learner = MapLearner(codebook, steps_per_epoch=1, total_steps=5, continued=True)
    for step in range(2):
        learn_line(learner, [1.0, 2.0], step)
    assert codebook.units[:2].flatten().tolist() == [1, 2]
    assert codebook.units[2].item() in (1, 2)


# --- Resume ---


@pytest.mark.parametrize("halfway", range(1, 12))
def test_a_map_restored_halfway_equals_an_uninterrupted_one(halfway, tmp_path):
    def start():
        codebook = random_codebook(9, neighbourhood_step=3)
        return MapLearner(codebook, steps_per_epoch=2, total_steps=12)

    def go(learner, steps):
        for step in steps:
            torch.manual_seed(step)
            learner.update(torch.randn(2, 2, 4, 6, generator=generator(step)).round(), step)

    straight = start()
    go(straight, range(12))
    first = start()
    go(first, range(halfway))
    file = io.BytesIO()
    torch.save(first.checkpoint(), file)
    file.seek(0)
    second = start()
    second.codebook.units.zero_()
    second.restore(torch.load(file, weights_only=True), tmp_path)
    go(second, range(halfway, 12))
    assert torch.equal(second.codebook.units, straight.codebook.units)
    for name in ("gathered", "wins", "candidates", "candidate_keys"):
        assert torch.equal(getattr(second, name), getattr(straight, name)), name
    # An epoch of 16 patches at radius 0 leaves units of this map without a win, so the draws are part of this.
    assert (straight.wins == 0).any()


# --- Statistics ---


def slow_statistics(codebook, fmap):
    patches = slow_patches(fmap, codebook.config)
    places, counts, torn, error = codebook.coordinates.tolist(), [0] * len(codebook), 0, 0.0
    for one in patches:
        distances = (codebook.units.double() - one).square().sum(1).tolist()
        first, second = sorted(range(len(codebook)), key=distances.__getitem__)[:2]
        counts[first] += 1
        error += distances[first]
        torn += max(abs(a - b) for a, b in zip(places[first], places[second], strict=True)) > 1
    use = [count / len(patches) for count in counts if count]
    return counts, {
        "quantization_error": error / patches.numel(),
        "share_of_variance": error / float((patches - patches.mean(0)).square().sum()),
        "topographic_error": torn / len(patches),
        "units_used": len(use),
        "units": len(codebook),
        "perplexity": math.exp(-sum(share * math.log(share) for share in use)),
    }


@given(seed=seeds, units=st.integers(2, 30), batch=st.integers(1, 7))
@settings(max_examples=30)
def test_statistics_equal_a_slow_count_whatever_the_batch_size(seed, units, batch):
    codebook = build(torch.randn(units, 12, generator=generator(seed)))
    fmap = 1 + torch.randn(7, 2, 4, 6, generator=generator(seed + 1))
    counts, expected = slow_statistics(codebook, fmap)
    assert codebook.statistics(fmap.split(batch)) == pytest.approx(expected, rel=1e-4)
    assert codebook.counts.tolist() == counts
    assert codebook.quantization_error(fmap).item() == pytest.approx(expected["quantization_error"], rel=1e-4)


def test_statistics_count_anew_each_time():
    codebook = build(seed=3)
    fmap = whole_maps(4, codebook)
    assert codebook.statistics([fmap]) == codebook.statistics([fmap])
    assert codebook.counts.sum() == 16


def test_topographic_error_by_hand():
    """A row of three units at 0, 10 and 1: the ends of the row are near in space, and no neighbours on the map."""
    codebook = build([[0.0], [10.0], [1.0]], **LINE, image_W=3)
    assert codebook.coordinates.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert codebook.statistics([torch.tensor([[[[0.2, 9.0, 0.9]]]])])["topographic_error"] == pytest.approx(2 / 3)
    square = build([[0.0], [10.0], [20.0], [1.0]], **LINE, image_W=2)  # 0 and 1 meet at a corner
    assert square.statistics([torch.tensor([[[[0.2, 0.9]]]])])["topographic_error"] == 0


def test_perplexity_is_the_number_of_units_in_even_use():
    codebook = build(torch.arange(7.0)[:, None], **LINE, image_W=7)
    assert codebook.statistics([torch.arange(7.0).view(1, 1, 1, 7)])["perplexity"] == pytest.approx(7)
    alone = codebook.statistics([torch.full((3, 1, 1, 7), 2.0)])
    assert alone["perplexity"] == pytest.approx(1)
    assert alone["units_used"] == 1
    assert codebook.counts.tolist() == [0, 0, 21, 0, 0, 0, 0]


def test_units_on_the_mean_leave_all_of_the_variance():
    fmap = torch.randn(5, 1, 1, 8, generator=generator(0))
    codebook = build([[float(fmap.mean())], [100.0]], **LINE, image_W=8)
    assert codebook.statistics([fmap])["share_of_variance"] == pytest.approx(1)


# --- Pruning, saving ---


@given(seed=seeds, units=st.integers(2, 30), share=st.floats(0.1, 0.9))
def test_pruning_keeps_survivors_as_they_are(seed, units, share):
    codebook = build(num_embeddings=units, seed=seed)
    fmap = whole_maps(3, codebook, seed + 1)
    codebook.statistics([fmap])
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
    codebook.statistics([fmap])
    if pruned:
        codebook = codebook.prune(torch.tensor([1, 0, 1, 1, 0, 0, 1], dtype=torch.bool))
    save(codebook, tmp_path / "c.pt", autoencoder="abc")
    loaded = Codebook.load(tmp_path / "c.pt")
    assert (loaded.config, loaded.autoencoder, loaded.fingerprint) == (codebook.config, "abc", codebook.fingerprint)
    for name, value in codebook.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert torch.equal(loaded.find_bmu(fmap), codebook.find_bmu(fmap))


class Maps:
    """What `check_fits` asks of a data set."""

    def __init__(self, shape, autoencoder):
        self.shape, self.autoencoder = shape, autoencoder


def test_a_codebook_for_other_feature_maps_is_refused_by_name(tmp_path):
    codebook, path = build(), tmp_path / "c.pt"
    codebook.check_fits(path, Maps((2, 4, 6), "abc"))
    with pytest.raises(UserError, match=r"c\.pt: is for feature maps of \(2, 4, 6\).*holds \(2, 6, 4\)"):
        codebook.check_fits(path, Maps((2, 6, 4), "abc"))
    codebook.autoencoder = "def"
    with pytest.raises(UserError, match=r"c\.pt: does not belong with this data set's autoencoder"):
        codebook.check_fits(path, Maps((2, 4, 6), "abc"))
