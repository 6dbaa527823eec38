"""The views of an image that a data set of feature maps holds: as it is, mirrored, moved by a few pixels."""

from typing import NamedTuple

import numpy as np
import torch

FARTHEST = 0.05  # of a side of the image, that a view is moved


class View(NamedTuple):
    """Whether an image is mirrored, and then by how many pixels it is moved."""

    flipped: bool = False
    right: int = 0
    down: int = 0

    def of(self, image: torch.Tensor) -> torch.Tensor:
        """An image (3, H, W) in this view; the pixels at the border that it leaves are repeated."""
        image = image.flip(-1) if self.flipped else image
        if not (self.right or self.down):
            return image
        rows, columns = (torch.arange(size) for size in image.shape[-2:])
        rows = (rows - self.down).clamp(0, len(rows) - 1)
        columns = (columns - self.right).clamp(0, len(columns) - 1)
        return image[..., rows[:, None], columns]


def views(number: int, sides: tuple[bool, ...], copies: int, size: tuple[int, int]) -> list[View]:
    """The views of image `number`, of height and width `size`: all sides of it, then those of its moved copies."""
    draw = np.random.default_rng([0, number])
    height, width = (max(1, round(FARTHEST * length)) for length in size)
    moves = [(x, y) for x in range(-width, width + 1) for y in range(-height, height + 1) if x or y]
    found = [View(flipped) for flipped in sides]
    for _ in range(copies):
        found += [View(flipped, *moves[draw.integers(len(moves))]) for flipped in sides]
    return found
