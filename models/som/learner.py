"""How a map learns: the radius at a step, the update from a batch, and the relocation of rarely used units."""

import math
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from models.codebook import Codebook, CodebookConfig
from models.som.order import PairCounts, arrange
from utils.data.batches import chunks
from utils.runs.checkpoint import load_weights
from utils.runtime import distributed
from utils.runtime.distributed import Share
from utils.runtime.draws import draw
from utils.runtime.progress import progress

BALANCE_ROUNDS = 20
BALANCE_SHARE = 0.5  # share of a cell's error that a second unit in it is expected to save, in the first round
BALANCE_WEIGHT = 0.25  # weight of a patch of the balancing sample, relative to a patch of a later batch


def neighbourhood_radius(step: int, total_steps: int, config: CodebookConfig) -> float:
    """The radius at a step. It starts at half the map's longest side and ends at `final_radius`.

    It shrinks by one every `neighbourhood_step` steps, or faster in a short run, so that the last 80 % of the steps
    have the final radius.
    """
    start = max(config.map_shape) // 2
    # The first 20 % of the steps are divided into `start` equal parts; the second term counts those that have passed.
    # Integer arithmetic prevents rounding errors from extending it into the last 80 %.
    shrunk = max(step // config.neighbourhood_step, 5 * step * start // total_steps)
    return max(config.final_radius, start - shrunk)


def smooth(grid: torch.Tensor, radius: float) -> torch.Tensor:
    """Smooth (rows, columns, D) with a Gaussian of this radius, first along one axis of the map, then the other."""
    for axis in (0, 1):
        place = torch.arange(grid.shape[axis], device=grid.device, dtype=grid.dtype)
        kernel = torch.exp(-((place[:, None] - place) ** 2) / (2 * radius**2))
        grid = torch.tensordot(kernel, grid, dims=([1], [axis])).movedim(0, axis)
    return grid


def sample_size(config: CodebookConfig, planned: int) -> int:
    """Number of patches in the sample from which a map is initialised and with which it is balanced.

    64 per unit, or an eighth of the `planned` patches of the run if that is fewer, but at least 8 per unit. At most 128
    MiB.
    """
    units = config.num_embeddings
    return min(max(8 * units, min(64 * units, planned // 8)), 2**25 // config.dim)


def draw_sample(
    codebook: Codebook, maps: Dataset | torch.Tensor, indices: np.ndarray, wanted: int, seed: int
) -> torch.Tensor:
    """Up to `wanted` patches (N, D), in random order, of the feature maps `indices`.

    It takes about a quarter of the patches of each map that it reads: a few patches of many maps are a better sample
    than all patches of a few maps, but reading every map would take long.
    """
    rng = np.random.default_rng(seed & 0xFFFFFFFF)
    per_map = math.prod(codebook.config.grid)
    chosen = rng.permutation(indices)[: max(64, -(-wanted // max(1, per_map // 4)))]
    share = min(1.0, wanted / (len(chosen) * per_map))
    drawn = []
    for batch in chunks(chosen, 256):
        patches = codebook.patchify(maps[batch])
        drawn.append(patches[rng.permutation(len(patches))[: math.ceil(share * len(patches))]])
    patches = torch.cat(drawn)
    return patches[rng.permutation(len(patches))[:wanted]]


def count(indices: torch.Tensor, number: int) -> torch.Tensor:
    """How often each of `number` units is in `indices` (N,), float32 (number,), without `bincount`'s GPU sync."""
    ones = torch.ones(len(indices), device=indices.device)
    return torch.zeros(number, device=indices.device).index_add_(0, indices, ones)


@torch.no_grad()
def balance(codebook: Codebook, sample: torch.Tensor) -> torch.Tensor:
    """Move the units of least utility to where the error is largest, then rearrange the units on the map.

    The neighbourhood pulls units into the empty space between patches and leaves too few of them where patches are
    dense. Each round first moves every unit to the mean of its cell, the patches of `sample` (N, D) nearest to it. Then
    it ranks units by utility: the increase of the error if the patches of the cell had to use their second nearest unit
    (Fritzke 1997, "The LBG-U method for vector quantization"). The unit of least utility moves to the cell with the
    largest error, the next one to the next cell, and so on, each to a patch drawn in proportion to squared error. A
    unit moves only if its utility is less than a share of that cell's error; the share falls from round to round.
    Returns the number of patches of the sample in each cell, (K,).
    """
    units = codebook.units
    for round_ in progress(range(BALANCE_ROUNDS), desc="balancing", unit="round", delay=2, leave=False):
        errors, indices = codebook.nearest(sample, k=2)
        error, nearest = errors[:, 0], indices[:, 0]
        in_cell = torch.zeros_like(units[:, 0]).index_add_(0, nearest, error)
        utility = torch.zeros_like(in_cell).index_add_(0, nearest, errors[:, 1] - error)
        numbers = count(nearest, len(units))[:, None]
        sums = torch.zeros_like(units).index_add_(0, nearest, sample)
        units.copy_(torch.where(numbers > 0, sums / numbers.clamp(min=1), units))
        # At most a quarter of the units move per round, because each move makes the other utilities less accurate.
        # Utilities rise and errors fall along the two rankings, so the units that may move come first.
        least, worst = utility.argsort()[: len(units) // 4], in_cell.argsort(descending=True)[: len(units) // 4]
        share = BALANCE_SHARE * (1 - round_ / BALANCE_ROUNDS)
        may_move = utility[least] < share * in_cell[worst]
        # Of two units in one cluster only one may move: their utilities are low because of each other.
        rank = least.new_full((len(units),), len(units))
        rank[least] = torch.arange(len(least), device=least.device)
        own, other = codebook.nearest(units[least], k=2)[1].T
        may_move &= rank[torch.where(own == least, other, own)] > rank[least]
        seeds = draw_one_each(error, nearest, len(units))
        units[least] = torch.where(may_move[:, None], sample[seeds[worst]], units[least])
    _, indices = codebook.nearest(sample, k=2)
    pairs = PairCounts(len(units))
    pairs.add(indices)
    codebook.coordinates.copy_(arrange(codebook.coordinates, pairs, quick=True))
    return count(indices[:, 0], len(units))


def draw_keys(errors: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Keys (N,) from `uniform` numbers (N,): the n largest are n draws in proportion to `errors` (Efraimidis 2006)."""
    return uniform.log() / errors.clamp(min=1e-12)


def draw_one_each(errors: torch.Tensor, cells: torch.Tensor, number: int) -> torch.Tensor:
    """The index of one patch for each of `number` cells, drawn in proportion to `errors` (N,).

    `cells` (N,) are the cells of the patches. The index for a cell without patches is arbitrary.
    """
    order = draw_keys(errors, torch.rand_like(errors)).argsort(descending=True)
    by_cell = cells[order].sort(stable=True)
    first = torch.searchsorted(by_cell.values, torch.arange(number, device=cells.device))
    return order[by_cell.indices[first.clamp(max=len(order) - 1)]]


class MapLearner:
    """Trains a map, one batch per step, without gradients.

    For each unit, a batch gives a sum of patches and their number n, both smoothed by the neighbourhood. The unit moves
    a share of the way to their mean: max(1 − (1 − rate)^n, 2n / (N + 2n)). N is the sum of n since the radius last
    changed; the rate is `model_lr`, halved every `lr_step` steps if that is given. The second term makes the unit a
    running mean that gives later patches more weight, because the first ones arrived while the unit was still
    elsewhere.
    When the radius reaches 0, the map is balanced with `sample` (N, D), patches of the training data, if there is one.
    At radius 0, units that were nearest to no patch during a whole epoch are replaced by patches of that epoch, drawn
    in proportion to squared error; a weighted reservoir holds the candidates.
    """

    def __init__(
        self,
        codebook: Codebook,
        steps_per_epoch: int,
        total_steps: int,
        continued: bool = False,
        sample: torch.Tensor | None = None,
        lr_step: int | None = None,
    ) -> None:
        self.codebook, self.sample, self.lr_step = codebook, None if continued else sample, lr_step
        self.steps_per_epoch, self.total_steps, self.continued = steps_per_epoch, total_steps, continued
        units = codebook.units
        self.device = units.device
        self.last_radius = math.inf  # saved, since a resumed run may have another schedule
        self.gathered = units.new_zeros(len(units))
        self.wins = units.new_zeros(len(units))
        self.candidates = torch.zeros_like(units)
        self.candidate_keys = units.new_full((len(units),), -math.inf)

    def radius(self, step: int) -> float:
        config = self.codebook.config
        return config.final_radius if self.continued else neighbourhood_radius(step, self.total_steps, config)

    @torch.no_grad()
    def update(self, fmap: torch.Tensor, step: int, share: Share | None = None) -> dict[str, torch.Tensor | float]:
        """Learn from feature maps (B, C, H, W); return the error before the update, the radius and the rate.

        The maps are the whole batch of the step, or this process's `share` of it.
        """
        radius = min(self.radius(step), self.last_radius)  # a longer plan does not smooth precise units again
        self.codebook.counts.zero_()  # the units change, so the counts are stale
        if radius != self.last_radius:
            self.last_radius = radius
            self.gathered.zero_()
            if radius == 0 and self.sample is not None:
                self._balance()
                self.sample = None
        share = share or Share(0, len(fmap), len(fmap))
        patches = self.codebook.patchify(fmap[: share.number])
        errors, indices = (column.squeeze(1) for column in self.codebook.nearest(patches))
        sums = torch.zeros_like(self.codebook.units).index_add_(0, indices, patches)
        numbers, error = count(indices, len(sums)), errors.sum()
        distributed.all_reduce(sums, numbers, error)
        rate = self.codebook.config.model_lr * (0.5 ** (step // self.lr_step) if self.lr_step else 1)
        self._move(sums, numbers, radius, rate)
        if radius == 0:
            self._reseed(patches, errors, numbers, step)
        total = share.total * math.prod(self.codebook.config.grid)
        return {"loss": error / total / self.codebook.config.dim, "radius": radius, "learning_rate": rate}

    def _balance(self) -> None:
        """Balance the map in process 0 alone, because devices may round differently."""
        if distributed.is_main():
            gpu = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(gpu):  # keeps the other draws of the step equal in all processes
                self.gathered.copy_(BALANCE_WEIGHT * balance(self.codebook, self.sample))
        distributed.broadcast(self.codebook.units, self.codebook.coordinates, self.gathered)

    def _move(self, sums: torch.Tensor, numbers: torch.Tensor, radius: float, rate: float) -> None:
        units = self.codebook.units
        if radius > 0:
            rows, columns = self.codebook.coordinates.T
            grid = units.new_zeros(*self.codebook.config.map_shape, units.shape[1] + 1)
            grid[rows, columns] = torch.cat((sums, numbers[:, None]), dim=1)
            smoothed = smooth(grid, radius)[rows, columns]
            sums, numbers = smoothed[:, :-1], smoothed[:, -1]
        share = torch.maximum(1 - (1 - rate) ** numbers, 2 * numbers / (self.gathered + 2 * numbers))
        self.gathered += numbers
        moved = units + share[:, None] * (sums / numbers[:, None] - units)
        # Where the kernel is almost zero, the quotient of denormal numbers would be noise.
        units.copy_(torch.where(numbers[:, None] > 1e-30, moved, units))

    def _reseed(self, patches: torch.Tensor, errors: torch.Tensor, numbers: torch.Tensor, step: int) -> None:
        position = step % self.steps_per_epoch
        if position == 0:
            self.wins.zero_()
            self.candidate_keys.fill_(-math.inf)
        self.wins += numbers
        per_map = math.prod(self.codebook.config.grid)
        uniform = draw(lambda num: torch.rand(num, per_map, device=errors.device), len(errors) // per_map)
        self._offer(draw_keys(errors, uniform.flatten()), patches)
        whole_epoch = step + 1 >= self.steps_per_epoch and self.radius(step + 1 - self.steps_per_epoch) == 0
        if position == self.steps_per_epoch - 1 and whole_epoch and step + 1 < self.total_steps:
            self._pool()
            keys, candidates = self.candidate_keys.clone(), self.candidates.clone()
            distributed.broadcast(keys, candidates)
            dead = self.wins == 0
            place = dead.cumsum(0) - 1  # rank of each dead unit: the index of its candidate, if there are enough
            dead &= place < (keys > -math.inf).sum()
            units = self.codebook.units
            units.copy_(torch.where(dead[:, None], candidates[place.clamp(min=0)], units))
            self.gathered.masked_fill_(dead, 0)

    def _offer(self, new_keys: torch.Tensor, patches: torch.Tensor) -> None:
        """Keep those of the candidates and of the patches (N, D) with `new_keys` (N,) that have the largest keys."""
        keys, kept = torch.cat((self.candidate_keys, new_keys)).topk(len(self.candidate_keys))
        new = kept - len(keys)  # indices of patches; negative for those that were candidates already
        before = self.candidates[kept.clamp(max=len(keys) - 1)]
        self.candidate_keys = keys
        if len(patches):
            self.candidates = torch.where(new[:, None] < 0, before, patches[new.clamp(min=0)])

    def _pool(self) -> None:
        if distributed.num_processes() > 1:
            own = len(self.candidate_keys)
            keys, candidates = (distributed.gather_rows(part)[own:] for part in (self.candidate_keys, self.candidates))
            if distributed.is_main():
                self._offer(keys.to(self.device), candidates.to(self.device))
            else:
                self.candidate_keys.fill_(-math.inf)

    def checkpoint(self) -> dict:
        """The codebook, and the rest of the state for an exact resume."""
        self._pool()
        state = {name: getattr(self, name) for name in ("gathered", "wins", "candidates", "candidate_keys")}
        model = self.codebook.state_dict()
        return {"model": model, "learner": state, "radius": self.last_radius, "continued": self.continued}

    def restore(self, content: dict, path: Path) -> None:
        load_weights(self.codebook, content, path)
        self.last_radius = content["radius"]
        for name, value in content["learner"].items():
            setattr(self, name, value.to(self.device))
        if not distributed.is_main():  # the first process has all of them
            self.candidate_keys.fill_(-math.inf)
