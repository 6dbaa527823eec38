"""A walk over the condition map: pictures that turn into one another, from one unit to another."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from models.codebook import Codebook
from models.generation import Cascade, Count
from models.requests import Request
from utils.beam_search import Kept

Made = tuple[list[torch.Tensor], torch.Tensor]  # tokens and scores of pictures, as `Cascade.generate` returns them


@dataclass(frozen=True)
class Place:
    """A place on the way: at a unit, or a share (below 1) of the way from it to the next one."""

    unit: int
    following: int
    share: float = 0.0

    @property
    def nearest(self) -> int:
        """The unit that this place belongs to."""
        return self.unit if self.share < 0.5 else self.following


def way(codebook: Codebook, start: int, end: int, steps: int) -> list[Place]:
    """`steps` places at equal distances from one unit to another, in a line over the map.

    Where the line leaves the map, or a unit was pruned, the way leads over the units nearest to it.
    """
    coordinates = codebook.coordinates.cpu().double()
    first, last = coordinates[start], coordinates[end]
    number = int((last - first).abs().max()) + 1  # as many units as the line has rows or columns
    line = torch.lerp(first, last, torch.linspace(0, 1, number, dtype=torch.float64)[:, None])
    found = torch.cdist(line, coordinates).argmin(1).tolist()
    units = [start, *found[1:-1], end] if number > 1 else [start]
    units = [unit for index, unit in enumerate(units) if index == 0 or unit != units[index - 1]]
    places = []
    for step in range(steps):
        done = step * (len(units) - 1) / max(1, steps - 1)
        index = min(math.floor(done), len(units) - 1)
        places.append(Place(units[index], units[min(index + 1, len(units) - 1)], done - index))
    return places


@torch.no_grad()
def walk(cascade: Cascade, request: Request, places: list[Place], count: Count = lambda num: None) -> Iterator[Made]:
    """Yield a picture for each place, in order.

    Between two units the base stage starts from a vector between theirs. All pictures have the draws of image 0, and in
    the finer stages a picture keeps the tokens of the one before wherever the coarser tokens agree, so it changes only
    where its plan does. `count` is called with the number of positions done.
    """
    made = None
    for place in places:
        made = _picture(cascade, request, place, made, count)
        yield made


def _picture(cascade: Cascade, request: Request, place: Place, before: Made | None, count: Count) -> Made:
    """One picture, given the one before."""
    device, one = cascade.device, range(1)
    tokens = [torch.tensor([[place.nearest]], device=device)]
    towards = torch.tensor([[place.following]], device=device), torch.tensor([place.share], device=device)
    start = torch.tensor([[place.unit]], device=device)
    fine, score = cascade.write(0, request, one, start, towards=towards if place.share else None, count=count)
    tokens, scores = [*tokens, fine], [score.cpu()]
    for number in range(1, len(cascade.stages)):
        if before is not None and torch.equal(before[0][number], tokens[-1]):
            fine, score = before[0][number + 1], before[1][:, number]
            count(fine.shape[1])
        else:
            kept = None if before is None else kept_tokens(cascade, number, before[0], tokens[-1])
            fine, score = cascade.write(number, request, one, tokens[-1], kept=kept, count=count)
        tokens.append(fine)
        scores.append(score.cpu())
    return tokens, torch.stack(scores, dim=1)


def kept_tokens(cascade: Cascade, number: int, before: list[torch.Tensor], coarse: torch.Tensor) -> Kept:
    """The tokens of stage `number` in the picture `before`, but for those over coarse tokens (1, S) that are others."""
    stage = cascade.stages[number].config
    agree = (before[number] == coarse).view(stage.coarse.height, stage.coarse.width)
    cells = cascade.on_cells(agree)  # (H, W)
    height, width = cells.shape[0] // stage.fine.height, cells.shape[1] // stage.fine.width
    whole = cells.unfold(0, height, height).unfold(1, width, width).flatten(2).all(-1)  # all cells of a fine token
    return {index: before[number + 1][:, index] for index in whole.flatten().nonzero().flatten().tolist()}
