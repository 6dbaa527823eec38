"""The transformers of the demo: speed of a training step, of its matrix products, and of optimizers.

    python -m benchmarks.transformer out/demo-avatars

Reads a folder that scripts/demo.py has written. Prints tables in Markdown.
"""

from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import DEMO, options, print_head, print_row, seconds, timed
from benchmarks.stages import demo_task
from utils.core.options import parse_options
from utils.data.batches import Batch
from utils.runtime import cli
from utils.training.gradient import GradientTask
from utils.training.muon import Muon

STEPS = 20  # in one measurement of the time of a step
TIMES = 3  # measurements; their median counts
Options = options(folder=DEMO)
aten = torch.ops.aten


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


def utilization(folder: Path) -> None:
    """Print the time of a training step, and of its matrix products alone, forward and backward."""
    print("\nA training step, and its matrix products alone. Causal attention multiplies the whole square.\n")
    print_head("stage", "precision", "step, ms", "products, ms", "share")
    for number, precision in product(range(3), ("bf16", "fp32")):
        task, tokens = demo_task(folder, f"transformer_{number}", precision=precision)
        step, part = time_step(task, tokens[np.arange(task.options.batch_size)])
        print_row(number, precision, f"{step * 1e3:.0f}", f"{part * 1e3:.0f}", f"{part / step:.2f}")


def time_step(task: GradientTask, batch: Batch) -> tuple[float, float]:
    """The seconds of a training step, and of its matrix products alone."""
    steps, bare, learner = [], [], task.learner
    for _ in range(TIMES):
        task.update(batch, 0)
        steps.append(timed(lambda: [task.update(batch, step) for step in range(STEPS)])[1] / STEPS)
        with BareProducts() as products:
            learner.backward(learner.model, batch)
        bare.append(products.seconds)
    return median(steps), median(bare)


def optimizers(folder: Path) -> None:
    """Print the time of a step of each optimizer on the weights of the finest stage's blocks."""
    weights = demo_task(folder, "transformer_2")[0].learner.model.transformer.block_weights
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    kinds = {"AdamW": torch.optim.AdamW(weights, fused=True)}
    kinds |= {f"Muon in {name}": Muon(weights, 1e-3, getattr(torch, name)) for name in ("bfloat16", "float32")}
    kinds["torch.optim.Muon"] = torch.optim.Muon(weights, lr=1e-3)
    print("\nA step of each optimizer on the weights of the finest stage's blocks.\n")
    print_head("", "ms")
    for name, optimizer in kinds.items():
        print_row(name, f"{seconds(optimizer.step, 1) * 1e3:.1f}")


def main(argv: list[str] | None = None) -> None:
    """Print all tables."""
    folder = parse_options(Options, __doc__, argv).folder
    utilization(folder)
    optimizers(folder)


if __name__ == "__main__":
    cli.run(main)
