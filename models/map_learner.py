"""How a map learns: the radius of a step, the update from a batch, and new places for units that nothing needs."""

import math
from pathlib import Path

import torch

from models.codebook import Codebook, CodebookConfig
from utils.checkpoint import load_weights


def neighbourhood_radius(step: int, total_steps: int, config: CodebookConfig) -> int:
    """The radius at a step: half the map's longest side, one less every `neighbourhood_step` steps, down to 0.

    A run too short for that shrinks faster, so that the last 40 % of its steps are at radius 0.
    """
    start = max(config.map_shape) // 2
    # In whole numbers, since a rounded quotient could reach into the last 40 %: 5·step·start / 3·total is the count
    # of equal parts of the first 60 % that have passed.
    shrunk = max(step // config.neighbourhood_step, 5 * step * start // (3 * total_steps))
    return max(0, start - shrunk)


def smooth(grid: torch.Tensor, radius: float) -> torch.Tensor:
    """Smooth (rows, columns, D) by a Gaussian of the map distance with this radius: along rows, then columns."""
    for axis in (0, 1):
        place = torch.arange(grid.shape[axis], device=grid.device, dtype=grid.dtype)
        kernel = torch.exp(-((place[:, None] - place) ** 2) / (2 * radius**2))
        grid = torch.tensordot(kernel, grid, dims=([1], [axis])).movedim(0, axis)
    return grid


class MapLearner:
    """The update of a map in training, one batch a step, without gradients.

    A batch gives per-unit sums and counts n, smoothed by the neighbourhood; unit k moves a share of the way to their
    quotient: max(1 − (1 − rate)^n, n / (N + n)), where N is what it has gathered since the radius last changed and the
    rate is `model_lr`, halved every `lr_step` steps.
    At radius 0, units that won nothing over a whole epoch are drawn anew from the epoch's patches, in proportion to
    their squared error: a weighted reservoir (Efraimidis and Spirakis 2006) holds the candidates.
    """

    def __init__(
        self,
        codebook: Codebook,
        steps_per_epoch: int,
        total_steps: int,
        continued: bool = False,
        lr_step: int = 100_000,
    ) -> None:
        self.codebook, self.lr_step = codebook, lr_step
        self.steps_per_epoch, self.total_steps, self.continued = steps_per_epoch, total_steps, continued
        units = codebook.units
        self.gathered = units.new_zeros(len(units))
        self.wins = units.new_zeros(len(units))
        self.candidates = torch.zeros_like(units)
        self.candidate_keys = units.new_full((len(units),), -math.inf)

    def radius(self, step: int) -> int:
        """The radius at a step; a codebook that is continued has its order already."""
        return 0 if self.continued else neighbourhood_radius(step, self.total_steps, self.codebook.config)

    @torch.no_grad()
    def update(self, fmap: torch.Tensor, step: int) -> dict[str, torch.Tensor | float]:
        """Learn from feature maps (B, C, H, W); returns the error before the update, the radius and the rate."""
        radius = self.radius(step)
        self.codebook.counts.zero_()  # they were of other units
        if step > 0 and radius != self.radius(step - 1):
            self.gathered.zero_()
        patches = self.codebook.patchify(fmap)
        errors, indices = (column.squeeze(1) for column in self.codebook.nearest(patches))
        rate = self.codebook.config.model_lr * 0.5 ** (step // self.lr_step)
        self._move(patches, indices, radius, rate)
        if radius == 0:
            self._reseed(patches, errors, indices, step)
        return {"loss": errors.mean() / self.codebook.config.dim, "radius": radius, "learning_rate": rate}

    def _move(self, patches: torch.Tensor, indices: torch.Tensor, radius: int, rate: float) -> None:
        units = self.codebook.units
        sums = torch.zeros_like(units).index_add_(0, indices, patches)
        numbers = torch.bincount(indices, minlength=len(units)).to(units.dtype)
        if radius > 0:
            rows, columns = self.codebook.coordinates.T
            grid = units.new_zeros(*self.codebook.config.map_shape, units.shape[1] + 1)
            grid[rows, columns] = torch.cat((sums, numbers[:, None]), dim=1)
            smoothed = smooth(grid, radius)[rows, columns]
            sums, numbers = smoothed[:, :-1], smoothed[:, -1]
        self.gathered += numbers
        share = torch.maximum(1 - (1 - rate) ** numbers, numbers / self.gathered)
        moved = units + share[:, None] * (sums / numbers[:, None] - units)
        # Where the kernel has all but vanished, the quotient of denormal numbers would be noise.
        units.copy_(torch.where(numbers[:, None] > 1e-30, moved, units))

    def _reseed(self, patches: torch.Tensor, errors: torch.Tensor, indices: torch.Tensor, step: int) -> None:
        position = step % self.steps_per_epoch
        if position == 0:
            self.wins.zero_()
            self.candidate_keys.fill_(-math.inf)
        self.wins += torch.bincount(indices, minlength=len(self.wins))
        keys = torch.rand(len(errors)).to(errors).log() / errors.clamp(min=1e-12)
        keys = torch.cat((self.candidate_keys, keys))
        self.candidate_keys, kept = keys.topk(len(self.candidate_keys))
        self.candidates = torch.cat((self.candidates, patches))[kept]
        whole_epoch = step + 1 >= self.steps_per_epoch and self.radius(step + 1 - self.steps_per_epoch) == 0
        if position == self.steps_per_epoch - 1 and whole_epoch and step + 1 < self.total_steps:
            dead = (self.wins == 0).nonzero().squeeze(1)[: int((self.candidate_keys > -math.inf).sum())]
            self.codebook.units[dead] = self.candidates[: len(dead)]
            self.gathered[dead] = 0

    def checkpoint(self) -> dict:
        """The codebook, and what an exact resume needs beside it."""
        state = {name: getattr(self, name) for name in ("gathered", "wins", "candidates", "candidate_keys")}
        return {"model": self.codebook.state_dict(), "learner": state}

    def restore(self, content: dict, path: Path) -> None:
        """Take up what `checkpoint` gave."""
        load_weights(self.codebook, content, path)
        for name, value in content["learner"].items():
            setattr(self, name, value.to(self.codebook.units.device))
