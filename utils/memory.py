"""How much memory a training step needs: counted by the tensors that it makes, batch by larger batch."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GROWTH = 4  # the next batch that is counted is as many times as large


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made in this block: those alive `now`, and the most at once, `peak`.

    It sees what PyTorch's operators return. What they need inside, and what the allocator cannot use, come on top.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}  # of the storages that are alive, 0 of those from before the block

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        """Run an operator, and count what it makes."""
        self._see((args, kwargs), is_new=False)
        made = func(*args, **(kwargs or {}))
        self._see(made, is_new=True)
        return made

    def _see(self, tensors: object, *, is_new: bool) -> None:
        storages = (tensor.untyped_storage() for tensor in tree_leaves(tensors) if isinstance(tensor, Tensor))
        for storage in storages:
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes() if is_new else 0
                self.now += self.sizes[storage._cdata]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, storage._cdata).atexit = False

    def _forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


@dataclass(frozen=True)
class Footprint:
    """The bytes that a training needs: what stays between its steps, and what batches need beside it, by their size."""

    standing: int
    batches: dict[int, int]  # 0: the gradients, which need the same for every batch

    @property
    def largest(self) -> int:
        """Items of the largest batch that was counted."""
        return max(self.batches)

    @property
    def per_item(self) -> float:
        """What one more item needs, by the two largest batches that were counted."""
        *_, (small, low), (large, high) = sorted(self.batches.items())
        return (high - low) / (large - small)

    def of(self, size: int) -> int:
        """All that batches of `size` items need."""
        return self.standing + round(self.batches[self.largest] + (size - self.largest) * self.per_item)

    def largest_part(self, size: int, memory: float) -> int:
        """The largest number that divides `size` and of which as many items fit into `memory` bytes, or 0."""
        parts = (part for part in range(1, size) if size % part == 0)
        return max((part for part in parts if self.of(part) <= memory), default=0)


def count_footprint(
    step: Callable[[int], object], batch_size: int, standing: int, gradients: int, memory: float
) -> Footprint:
    """Count what `step(size)` needs for larger and larger batches: up to `batch_size`, or to where `memory` would end.

    Two small ones do not tell of a large one, which may need most at another moment of the step.
    """
    found, size = Footprint(standing, {0: gradients}), 1
    while len(found.batches) == 1 or found.of(size) <= memory:
        with PeakMemory() as counter:
            step(size)
        found.batches[size] = counter.peak
        if size == batch_size:
            break
        size = min(batch_size, size * GROWTH)
    return found


def readable(size: float) -> str:
    """A number of bytes to read: 15.0 MiB, 1.5 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
