"""How the benchmarks measure: the time of a call, of matrix products alone, and the peak memory of a new process."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer

from utils.device import peak_memory

aten = torch.ops.aten


def seconds(call: Callable[[], object], at_least: float = 0.2) -> float:
    """The median time of a call, which is repeated for at least this many seconds."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=at_least).median


def in_new_process(function: Callable, *arguments: object) -> object:
    """The result of a function that a new process calls, whose peak memory is that of this call."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # its process may have children
        return pool.submit(function, *arguments).result()


def peak() -> float:
    """Peak memory of this process, in MiB."""
    return peak_memory(torch.device("cpu")) / 2**20


class BareProducts(TorchDispatchMode):
    """Times each matrix product that runs within it alone, on its own operands; `seconds` is their sum.

    Products whose operands have equal shapes, strides and types are timed once. Fused attention is not included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self.timed = 0.0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001
        call = partial(function, *args, **(kwargs or {}))
        if function.overloadpacket in (aten.mm, aten.bmm, aten.addmm, aten.baddbmm):
            key = (function, *((operand.shape, operand.stride(), operand.dtype) for operand in args))
            if key not in self.timed:
                self.timed[key] = seconds(call, 0.02)
            self.seconds += self.timed[key]
        return call()
