"""The random draws of a training step: functions of (seed, step, place in the step's batch), whoever draws them.

So they depend neither on the number of processes nor on how many items are computed at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from utils.distributed import Share

_share: Share | None = None


@contextmanager
def drawing(seed: int, step: int, share: Share) -> Iterator[None]:
    """In this block draw for the items of `share`; each block of a step draws the same numbers from the first on."""
    global _share
    before, _share = _share, share
    torch.manual_seed(int(np.random.SeedSequence([seed & 0xFFFFFFFF, step]).generate_state(1)[0]))
    try:
        yield
    finally:
        _share = before


def draw(function: Callable[[int], torch.Tensor], number: int) -> torch.Tensor:
    """Random rows for `number` items, of those that `function(n)` draws for all n items of the step, (n, …)."""
    if _share is None or _share.total == number:
        return function(number)
    return function(_share.total).narrow(0, min(_share.first, _share.total - number), number)
