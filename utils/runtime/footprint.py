"""What a training step needs, counted on fake tensors: bytes of memory, and floating-point operations."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

# PyTorch's counter knows the fused attention of a GPU; that of the CPU takes the same arguments.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that operators return in this block: those alive `now`, and the most, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}  # of the storages that are alive, 0 of those from before the block

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self._count((args, kwargs), is_new=False)
        result = func(*args, **(kwargs or {}))
        self._count(result, is_new=True)
        return result

    def _count(self, tensors: object, *, is_new: bool) -> None:
        def forget(key: int) -> None:
            self.now -= self.sizes.pop(key)

        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes() if is_new else 0
                self.now += self.sizes[storage._cdata]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, forget, storage._cdata).atexit = False


@dataclass(frozen=True)
class Footprint:
    """What a training needs: bytes that stay between its steps, and those of a step on top."""

    standing: int
    size: int  # items of the batch that was counted
    batch: int  # bytes that it needs
    per_item: float  # bytes that one more item needs
    flops_per_item: float  # floating-point operations of a step

    def of(self, size: int) -> int:
        """All bytes that batches of `size` items need."""
        return self.standing + round(self.batch + (size - self.size) * self.per_item)

    def largest_part(self, memory: float) -> int:
        """The largest number of items that divides the batch and fits into `memory` bytes, or 0."""
        parts = (part for part in range(1, self.size) if self.size % part == 0)
        return max((part for part in parts if self.of(part) <= memory), default=0)


def count_flops(step: Callable[[], object]) -> int:
    """Run `step()` and count the floating-point operations of its matrix products and convolutions, two for each term.

    Attention counts without regard to a causal mask, and what a fused kernel or a checkpoint recomputes counts again.
    """
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        step()
    return counter.get_total_flops()


def count_step(model: nn.Module, compute: Callable, batch: object, cast: torch.autocast) -> tuple[int, int]:
    """The most bytes at once, and the floating-point operations, of the gradient of `compute(model, batch)["loss"]`."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        state = {name: mode.from_tensor(buffer) for name, buffer in model.named_buffers()}
        for name, weight in model.named_parameters():
            state[name] = nn.Parameter(mode.from_tensor(weight.detach()), requires_grad=weight.requires_grad)
        batch = tree_map_only(Tensor, mode.from_tensor, batch)

        def step() -> None:
            with cast:
                loss = compute(lambda *inputs: torch.func.functional_call(model, state, inputs), batch)["loss"]
            loss.backward()

        with PeakMemory() as memory:
            operations = count_flops(step)
    return memory.peak, operations


def count_footprint(
    model: nn.Module, compute: Callable, batch: object, cast: torch.autocast, standing: int, gradients: int
) -> Footprint:
    """What steps with such batches need on top of `standing` bytes: those of `gradients`, and a part for each item."""
    size = len(tree_leaves(batch)[0])
    memory, operations = count_step(model, compute, batch, cast)
    return Footprint(standing, size, memory, (memory - gradients) / size, operations / size)


def readable(size: float) -> str:
    """A number of bytes to read: 15.0 MiB, 1.5 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
