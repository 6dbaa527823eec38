"""The random draws of a training step: functions of (seed, step, row of the step's batch), in whichever process.

So they depend neither on the number of processes nor on how many items are computed at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from utils.runtime.distributed import Share

_total = 0  # items of the step
_places: torch.Tensor | None = None  # of those that are here among them; None where these are all


@contextmanager
def drawing(seed: int, step: int, share: Share, device: torch.device) -> Iterator[None]:
    """In this block draw for the items of `share`; each block of a step draws the same numbers from the first on."""
    global _total, _places
    before = _total, _places
    torch.manual_seed(int(np.random.SeedSequence([seed & 0xFFFFFFFF, step]).generate_state(1)[0]))
    _total, _places = share.total, None
    if share.number < share.total:
        last = share.first + max(1, share.number)  # an empty share may have the item of another
        # A tensor, since a compiled model is compiled anew for another number.
        _places = torch.arange(share.first, last, device=device).clamp(max=share.total - 1)
    try:
        yield
    finally:
        _total, _places = before


def draw(function: Callable[[int], torch.Tensor], number: int) -> torch.Tensor:
    """Random rows for `number` items, of those that `function(n)` draws for all n items of the step, (n, …)."""
    return function(number) if _places is None else function(_total).index_select(0, _places[:number])
