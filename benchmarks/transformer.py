"""The transformers of the demo: speed of a training step and its matrix products, optimizers, memory.

    python -m benchmarks.transformer out/demo-avatars

Reads a folder that scripts/demo.py has written. Prints tables in Markdown. Memory is the peak of a training step beyond
what the process held before the step; each size runs in a new process.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import CPU, DEMO, in_new_process, options, peak, print_head, print_row, seconds, timed
from benchmarks.stages import demo_task
from models.cascade import Stage, StageConfig
from models.transformer import Grid, TransformerConfig
from utils import cli
from utils.device import autocast, keep_memory
from utils.muon import Muon
from utils.options import parse_options

STEPS = 20  # in one measurement of the time of a step
TIMES = 3  # measurements; their median counts
LENGTHS = ((32, 32), (32, 64), (64, 64), (64, 128))  # grids of 1,024 to 8,192 tokens
WINDOW = 256
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
        batch, learner = tokens[np.arange(task.options.batch_size)], task.learner

        def train(steps: int, update: Callable = task.update, batch: tuple = batch) -> None:
            for step in range(steps):
                update(batch, step)

        steps, bare = [], []
        for _ in range(TIMES):
            train(1)
            steps.append(timed(train, STEPS)[1] / STEPS)
            with BareProducts() as products:
                learner.backward(learner.model, batch)
            bare.append(products.seconds)
        whole, part = median(steps), median(bare)
        print_row(number, precision, f"{whole * 1e3:.0f}", f"{part * 1e3:.0f}", f"{part / whole:.2f}")


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


def memory() -> None:
    """Print the memory of a training step by the number of tokens, each measured in its own process."""
    print(f"\nMemory of a training step on one sequence, a window of {WINDOW}, 3 + 4 layers of width 256.\n")
    print_head("tokens", "MiB", "with activation checkpoints")
    for size in LENGTHS:
        held = [in_new_process(memory_of_step, *size, checkpointed) for checkpointed in (False, True)]
        print_row(f"{np.prod(size):,}", *(f"{part:.0f}" for part in held))


def memory_of_step(height: int, width: int, use_activation_checkpoint: bool) -> float:
    """Peak memory, in MiB, of a step on a grid of this size, beyond the model and its gradients."""
    keep_memory()
    config = TransformerConfig(1e-3, True, WINDOW, 3, 4, 4, 4, 256, 512, "silu")
    stage = Stage(StageConfig(config, Grid(8, 8, 512), Grid(height, width, 512), is_base=False))
    stage.transformer.use_activation_checkpoint = use_activation_checkpoint

    def step(length: int) -> None:
        fine = torch.randint(512, (1, length))
        with autocast(CPU, "auto"):
            stage(torch.zeros(1, 64, dtype=torch.int64), fine)["loss"].backward()

    step(8)  # allocates the gradients and everything else that only a first step allocates
    before = peak()
    step(height * width)
    return peak() - before


def main(argv: list[str] | None = None) -> None:
    """Print all tables."""
    folder = parse_options(Options, __doc__, argv).folder
    utilization(folder)
    optimizers(folder)
    memory()


if __name__ == "__main__":
    cli.run(main)
