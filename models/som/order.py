"""The arrangement of units on the map: units swap places until units that are near to the same patches are neighbours.

The vector of a unit determines what it represents; its place only determines its neighbours. So order costs no
precision: the vectors are unchanged, and places are chosen to minimise the topographic error. This is a quadratic
assignment problem. It is solved approximately by swapping two units at a time, with a neighbourhood that shrinks as in
training.
"""

import numpy as np
import torch

from utils.runtime import distributed
from utils.runtime.progress import progress

# Radii of the neighbourhood, in order; 0 means the eight adjacent places, as in the topographic error.
RADII = (4, 2, 1, 0)
SWEEPS, EARLY = 10, 2  # maximal sweeps over all units: at the last radius, and at each earlier one
PARTNERS = 16  # per unit, the units with which it shares the most patches
FAINT = 0.05  # weight along an axis below which a place is outside the neighbourhood
VISITS = 512  # a smaller map is arranged VISITS / K times, and the best arrangement is kept


class PairCounts:
    """For each pair (a, b) that occurs, the number of patches whose nearest unit is a and whose second nearest is b."""

    MERGE = 2**20  # maximal number of keys before a merge

    def __init__(self, num_units: int) -> None:
        self.num_units = num_units
        self.keys = self.numbers = torch.empty(0, dtype=torch.int64)
        self._waiting, self._waiting_keys = [], 0

    def add(self, indices: torch.Tensor) -> None:
        """Add the pairs `indices` (N, 2), as `Codebook.nearest` returns them for k = 2."""
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
        """The nearest unit, the second nearest unit and the number of patches of each pair, (P,) int64 each."""
        if self._waiting:
            self._merge()
        return self.keys // self.num_units, self.keys % self.num_units, self.numbers

    def pool(self) -> None:
        self.counted()
        gathered = [distributed.gather_rows(part) for part in (self.keys, self.numbers)]
        if distributed.is_main():
            self.keys = self.numbers = torch.empty(0, dtype=torch.int64)
            self._waiting.append(tuple(gathered))
            self._merge()

    def topographic_error(self, coordinates: torch.Tensor) -> float:
        """The share of patches whose two nearest units are not neighbours on the map (Kiviluoto 1996).

        `coordinates` (K, 2) are the rows and columns of the units. A unit has up to eight neighbours.
        """
        first, second, numbers = self.counted()
        coordinates = coordinates.cpu()
        apart = (coordinates[first] - coordinates[second]).abs().amax(1) > 1
        return float(numbers[apart].sum() / numbers.sum())

    def strongest(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The partners of each unit, and the number of patches shared with each: (K, most) both.

        Two units are partners if each is among the `most` units with which the other shares the most patches. Rows with
        fewer partners are padded with unit 0 and 0 patches.
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
        neighbours = np.zeros((self.num_units, most), dtype=np.int64)
        weights = np.zeros((self.num_units, most))
        neighbours[units[mutual], rank[mutual]] = partners[mutual]
        weights[units[mutual], rank[mutual]] = shared[mutual]
        return neighbours, weights


def arrange(coordinates: torch.Tensor, pairs: PairCounts, quick: bool = False) -> torch.Tensor:
    """Reassign the places `coordinates` (K, 2) to units so that the topographic error over `pairs` is small.

    The error never increases. The result is deterministic. `quick` stops at a coarse order.
    """
    partners, weights = pairs.strongest(PARTNERS)
    best, least = coordinates, pairs.topographic_error(coordinates)
    radii = RADII[:2] if quick else RADII
    attempts = 1 if quick else max(1, VISITS // len(coordinates))
    # A map that is nearly in order is best improved by small radii alone, so some attempts skip the large ones.
    plan = [radii[attempt % len(radii) :] for attempt in range(attempts)]
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
            places = torch.from_numpy(board.places).to(coordinates)
            error = pairs.topographic_error(places)
            if error < least:
                best, least = places, error
    return best


class _Board:
    """Units on a map, and the gain of each: the patches that it shares with nearby units, weighted by the kernel."""

    def __init__(self, places: np.ndarray, partners: np.ndarray, weights: np.ndarray) -> None:
        self.places, self.partners, self.weights = places.copy(), partners, weights
        self.shape = tuple(places.max(0) + 1)
        # A smaller gain may be a rounding error, which would swap units back and forth.
        self.slack = 1e-9 * weights.sum() / len(places)

    def set_radius(self, radius: int) -> None:
        distance = np.arange(max(self.shape))
        one_axis = np.exp(-(distance**2) / (2 * radius**2)) if radius else (distance <= 1).astype(float)
        one_axis[one_axis < FAINT] = 0
        self.kernel = one_axis[np.abs(distance[:, None] - distance)]  # weight between rows, or between columns
        rows, columns = self.places.T
        near = self.kernel[rows[:, None], rows[self.partners]] * self.kernel[columns[:, None], columns[self.partners]]
        self.gains = (self.weights * near).sum(1)

    def sweep(self, order: np.ndarray) -> int:
        return sum(self._exchange(unit) for unit in order)

    def _near(self, place: np.ndarray, units: np.ndarray | slice) -> np.ndarray:
        """The kernel between a place (2,) and the places of units."""
        rows, columns = self.places[units].T
        return self.kernel[place[0]][rows] * self.kernel[place[1]][columns]

    def _exchange(self, unit: int) -> bool:
        """Swap the unit with the one that increases the sum of all gains most; return False if none does."""
        rows, columns = self.places.T
        number, (height, width) = len(self.places), self.shape
        shared = np.bincount(self.partners[unit], self.weights[unit], number)  # patches shared with each other unit
        partner_rows, partner_columns = self.places[self.partners[unit]].T
        by_row = self.kernel[:height, partner_rows] * self.weights[unit]
        gain_there = (by_row @ self.kernel[partner_columns, :width])[rows, columns]
        near = self._near(self.places[unit], slice(None))
        around = np.flatnonzero(near)
        shared_here = self.weights[around] * near[around, None]
        gain_here = np.bincount(self.partners[around].ravel(), shared_here.ravel(), number)
        # Both gains assume that the other unit does not move; the last term corrects that.
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
        for moved in (unit, other):
            self.gains[moved] = self.weights[moved] @ self._near(self.places[moved], self.partners[moved])
        return True
