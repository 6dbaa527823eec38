"""How much of a training step is matrix products: those of the step itself, timed bare.

What a step computes is recorded as it is dispatched, so nothing here knows a model. The share that the products take,
run alone in the same precision, sizes and layouts, is the most that faster code around them could still win.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer


class Operand(NamedTuple):
    """What a matrix product's time depends on."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Operand":
        """The layout of a tensor."""
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)

    def make(self) -> torch.Tensor:
        """A tensor of this layout, of random numbers."""
        extent = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return torch.randn(extent, dtype=self.dtype, device=self.device).as_strided(self.shape, self.stride)


class MatrixProducts(TorchDispatchMode):
    """Within it, `counts` gathers how often each pair of operands is multiplied.

    Of a fused attention the products that it needs count: two forward, four backward, and half of each where it is
    causal; what is multiplied by parts counts as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Operand, Operand]] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001
        """Run an operation, and note it if it is a product."""
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            self._add(*args[-2:])
        elif "scaled_dot_product" in name:
            self._add_attention(function, args, name.endswith("backward"))
        return function(*args, **(kwargs or {}))

    def _add(self, left: torch.Tensor, right: torch.Tensor, times: float = 1) -> None:
        self.counts[Operand.of(left), Operand.of(right)] += times

    def _add_attention(self, function: torch._ops.OpOverload, args: tuple, is_backward: bool) -> None:
        q, k, v = (x.detach().flatten(0, 1) for x in args[is_backward : 3 + is_backward])
        scores = q.new_empty(len(q), q.shape[1], k.shape[1])
        causal = [argument.name for argument in function._schema.arguments].index("is_causal")
        share = 0.5 if len(args) > causal and args[causal] else 1
        if is_backward:
            self._add(q, v.mT, share)  # of the gradient of the scores, whose shape this product has
            self._add(scores.mT, q, 2 * share)
            self._add(scores, k, share)
        else:
            self._add(q, k.mT, share)
            self._add(scores, v, share)

    def seconds(self) -> float:
        """How long all these products take, one after another, with nothing between them."""
        return sum(times * self._time(*operands) for operands, times in self.counts.items())

    @staticmethod
    def _time(left: Operand, right: Operand) -> float:
        operands = {"a": left.make(), "b": right.make()}
        timer = Timer("a @ b", globals=operands, num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=0.02).median


def bare_seconds(step: Callable[[], object]) -> float:
    """Seconds that the matrix products of `step()` take by themselves."""
    with MatrixProducts() as products:
        step()
    return products.seconds()
