"""A walk over the condition map, whose pictures turn into one another: its way, and its animation."""

import math
from pathlib import Path

import torch

from models.codebook import Codebook
from models.requests import Place
from utils.images import save_animation

RATE = 8  # pictures a second


def way(codebook: Codebook, start: int, end: int, steps: int) -> tuple[Place, ...]:
    """`steps` places at equal distances from one unit to another, in a line over the map.

    Where a unit of the line was pruned, the way leads over the one nearest to it. The pictures of a walk are those of
    `Request(places=way(…), same_draws=True)`: the base stage starts from a vector between those of two units, and the
    same draws give the same tokens wherever the model's probabilities hardly change.
    """
    coordinates = codebook.coordinates.cpu().double()
    first, last = coordinates[start], coordinates[end]
    number = int((last - first).abs().max()) + 1  # as many units as the line has rows or columns
    line = torch.lerp(first, last, torch.linspace(0, 1, number, dtype=torch.float64)[:, None])
    found = torch.cdist(line, coordinates).argmin(1).tolist()
    units = [unit for index, unit in enumerate(found) if index == 0 or unit != found[index - 1]]
    places = []
    for step in range(steps):
        done = step * (len(units) - 1) / max(1, steps - 1)
        index = min(math.floor(done), len(units) - 1)
        places.append(Place(units[index], units[min(index + 1, len(units) - 1)], done - index))
    return tuple(places)


def save_walk(pictures: torch.Tensor, path: Path) -> None:
    """Write the pictures of a walk (N, 3, H, W) as an animation there and back; see `save_animation`."""
    frames = list(pictures)
    frames += frames[-2:0:-1]
    save_animation(frames, path, len(frames) / RATE)
