"""Which unit lies where on the map: places are exchanged until the units that patches fall between are neighbours.

A unit's vector says what it means, its place only who its neighbours are. So order costs no precision: whatever the
vectors are, this looks for the places that leave the least topographic error. That is a quadratic assignment problem,
solved here by exchanges of two units at a time, under a neighbourhood that shrinks as that of a map in training does.
"""

import numpy as np
import torch

from utils.progress import progress

# Radii of the neighbourhood, one after another; 0: the eight places around, which the error counts.
RADII = (4, 2, 1, 0)
SWEEPS, EARLY = 10, 2  # times past all units, at most: at the last radius, and at those before
PARTNERS = 16  # of each unit, those that it shares most patches with
FAINT = 0.05  # weight along an axis below which a place is outside of the neighbourhood
VISITS = 512  # small maps are arranged several times, until so many units were visited a sweep, and the best is kept


class PairCounts:
    """How many patches lie nearest to unit a and second nearest to unit b, for the pairs that occur."""

    MERGE = 2**20  # keys that may wait to be merged

    def __init__(self, num_units: int) -> None:
        self.num_units = num_units
        self.keys = self.numbers = torch.empty(0, dtype=torch.int64)
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._waiting_keys = 0

    def add(self, indices: torch.Tensor) -> None:
        """Count the pairs of `indices` (N, 2), as `Codebook.nearest` gives them for k = 2."""
        counted = (indices[:, 0] * self.num_units + indices[:, 1]).unique(return_counts=True)
        self._waiting.append(tuple(part.cpu() for part in counted))
        self._waiting_keys += len(self._waiting[-1][0])
        if self._waiting_keys > self.MERGE:
            self._merge()

    def _merge(self) -> None:
        keys, numbers = zip((self.keys, self.numbers), *self._waiting, strict=True)
        self.keys, slots = torch.cat(keys).unique(return_inverse=True)
        self.numbers = torch.zeros_like(self.keys).index_add_(0, slots, torch.cat(numbers))
        self._waiting, self._waiting_keys = [], 0

    def counted(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Nearest unit, second nearest unit and number of patches of each pair that occurs, (P,) int64 each."""
        if self._waiting:
            self._merge()
        return self.keys // self.num_units, self.keys % self.num_units, self.numbers

    def topographic_error(self, coordinates: torch.Tensor) -> float:
        """The share of patches whose two nearest units are no neighbours on the map (Kiviluoto 1996).

        `coordinates` (K, 2) are the rows and columns of the units; a unit has up to eight neighbours.
        """
        first, second, numbers = self.counted()
        coordinates = coordinates.cpu()
        apart = (coordinates[first] - coordinates[second]).abs().amax(1) > 1
        return float(numbers[apart].sum() / numbers.sum())

    def strongest(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """For each unit, the units that it shares most patches with, and how many it shares: (K, most) each.

        Two units name each other or neither does, if each is among the `most` strongest of the other. Where that leaves
        fewer, 0 patches are shared with unit 0.
        """
        first, second, numbers = (part.numpy() for part in self.counted())
        units, partners = np.concatenate((first, second)), np.concatenate((second, first))
        keys, slots = np.unique(units * self.num_units + partners, return_inverse=True)
        shared = np.bincount(slots, np.concatenate((numbers, numbers)))
        units, partners = np.divmod(keys, self.num_units)
        order = np.lexsort((-shared, units))
        units, partners, shared = units[order], partners[order], shared[order]
        rank = np.arange(len(units)) - np.searchsorted(units, units)
        close = rank < most
        mutual = close & np.isin(partners * self.num_units + units, (units * self.num_units + partners)[close])
        found = np.zeros((self.num_units, most), dtype=np.int64)
        weights = np.zeros((self.num_units, most))
        found[units[mutual], rank[mutual]] = partners[mutual]
        weights[units[mutual], rank[mutual]] = shared[mutual]
        return found, weights


def arrange(coordinates: torch.Tensor, pairs: PairCounts, quick: bool = False) -> torch.Tensor:
    """The same places (K, 2), given to the units anew, so that the topographic error over `pairs` is small.

    Never worse than `coordinates` are; equal input, equal output. `quick` makes an order and does not perfect it.
    """
    partners, weights = pairs.strongest(PARTNERS)
    best, least = coordinates, pairs.topographic_error(coordinates)
    radii = RADII[:2] if quick else RADII
    attempts = 1 if quick else max(1, VISITS // len(coordinates))
    plan = [radii[attempt % len(radii) :] for attempt in range(attempts)]  # small ones alone mend what is near to order
    most = sum(EARLY if radius else SWEEPS for radii in plan for radius in radii)
    with progress(total=most, desc="arranging", unit="sweep", delay=2, leave=False) as bar:
        for attempt, radii in enumerate(plan):
            if least == 0:
                break
            board = _Board(coordinates.cpu().numpy(), partners, weights)
            rng = np.random.default_rng(attempt)
            for radius in radii:
                board.set_radius(radius)
                for _ in range(EARLY if radius else SWEEPS):
                    bar.update()
                    if board.sweep(rng.permutation(len(coordinates))) == 0:
                        break
            found = torch.from_numpy(board.places).to(coordinates)
            error = pairs.topographic_error(found)
            if error < least:
                best, least = found, error
    return best


class _Board:
    """Units on a map, and what each gains from its neighbourhood: the patches shared with the units in it, weighted."""

    def __init__(self, places: np.ndarray, partners: np.ndarray, weights: np.ndarray) -> None:
        self.places, self.partners, self.weights = places.copy(), partners, weights
        self.shape = tuple(places.max(0) + 1)
        self.slack = 1e-9 * weights.sum() / len(places)  # less is rounding, and would be exchanged back and forth

    def set_radius(self, radius: int) -> None:
        """Take another neighbourhood: a Gaussian, or at 0 the eight places around a place."""
        distance = np.arange(max(self.shape))
        one_axis = np.exp(-(distance**2) / (2 * radius**2)) if radius else (distance <= 1).astype(float)
        one_axis[one_axis < FAINT] = 0
        self.kernel = one_axis[np.abs(distance[:, None] - distance)]  # of a map's row or column, from place to place
        rows, columns = self.places.T
        near = self.kernel[rows[:, None], rows[self.partners]] * self.kernel[columns[:, None], columns[self.partners]]
        self.gains = (self.weights * near).sum(1)

    def sweep(self, order: np.ndarray) -> int:
        """Give each unit in turn the best exchange that there is for it; returns how many were made."""
        return sum(self._exchange(unit) for unit in order)

    def _near(self, place: np.ndarray, units: np.ndarray | slice) -> np.ndarray:
        """The kernel from a place (2,) to those of units."""
        rows, columns = self.places[units].T
        return self.kernel[place[0]][rows] * self.kernel[place[1]][columns]

    def _gain(self, unit: int) -> float:
        return self.weights[unit] @ self._near(self.places[unit], self.partners[unit])

    def _exchange(self, unit: int) -> bool:
        """Find the unit whose place is worth most to this one, counting what each gains and loses; exchange them."""
        rows, columns = self.places.T
        number, (height, width) = len(self.places), self.shape
        shared = np.bincount(self.partners[unit], self.weights[unit], number)  # with each other unit
        partner_rows, partner_columns = self.places[self.partners[unit]].T
        by_row = self.kernel[:height, partner_rows] * self.weights[unit]
        gain_there = (by_row @ self.kernel[partner_columns, :width])[rows, columns]
        near = self._near(self.places[unit], slice(None))
        around = np.flatnonzero(near)
        gain_here = np.bincount(
            self.partners[around].ravel(), (self.weights[around] * near[around, None]).ravel(), number
        )
        # Both sums take the other unit to be still where it was.
        change = gain_there + gain_here - self.gains - self.gains[unit] - 2 * shared * (1 - near)
        change[unit] = 0
        other = int(change.argmax())
        if change[other] <= self.slack:
            return False
        here, there = self.places[unit].copy(), self.places[other].copy()
        for moved, before, after in ((unit, here, there), (other, there, here)):
            partners = self.partners[moved]
            step = self._near(after, partners) - self._near(before, partners)
            np.add.at(self.gains, partners, self.weights[moved] * step)
        self.places[unit], self.places[other] = there, here
        self.gains[unit], self.gains[other] = self._gain(unit), self._gain(other)
        return True
