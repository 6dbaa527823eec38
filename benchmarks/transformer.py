"""The transformers of the demo: speed of the loader, a training step and its matrix products, optimizers, memory.

    python -m benchmarks.transformer out/demo-avatars

Reads a folder that scripts/demo.py has written. Prints tables in Markdown. Memory is the peak of a training step beyond
what the process held before the step; each size runs in a new process.
"""

import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import CPU, DEMO, in_new_process, options, peak, print_head, print_row, seconds, timed
from benchmarks.stages import DemoStage
from models.stage import Stage, StageConfig
from models.transformer import Grid, TransformerConfig
from utils.core.options import parse_options
from utils.data.batches import BatchLoader, EpochSampler
from utils.runtime import cli
from utils.runtime.device import autocast, keep_memory
from utils.training.muon import Muon

STEPS = 20  # in one measurement of the time of a step
TIMES = 3  # measurements; their median counts
BATCHES = (8, 64)  # batch sizes of the loader
SEQUENCES = 200_000
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


def data_path(stage: DemoStage) -> None:
    """Print how many sequences a second the trainer's loader reads."""
    print(f"\nSequences of {stage.tokens.fine.shape[1]} tokens read per second, with their coarse tokens.\n")
    print_head("batch size", "sequences per second")
    for batch_size in BATCHES:
        loader = BatchLoader(stage.tokens, EpochSampler(stage.training, batch_size, 0, 0, SEQUENCES // batch_size))
        served, taken = timed(sum, (len(fine) for _, fine in loader))
        print_row(batch_size, f"{served / taken:,.0f}")


def utilization(folder: Path) -> None:
    """Print the time of a training step, and of its matrix products alone, forward and backward."""
    print("\nA training step, and its matrix products alone. Causal attention multiplies the whole square.\n")
    print_head("stage", "precision", "step, ms", "products, ms", "share")
    for number in range(3):
        stage = DemoStage.read(folder, number)
        batch = stage.tokens[np.arange(stage.batch_size)]
        for precision in ("bf16", "fp32"):
            torch.manual_seed(0)
            learner = stage.learner(stage.build(), precision=precision)
            steps, bare = [], []
            for index in range(TIMES):
                learner.update(batch, index)
                start = time.perf_counter()
                for step in range(STEPS):
                    learner.update(batch, step)
                steps.append((time.perf_counter() - start) / STEPS)
                with BareProducts() as products:
                    learner.backward(learner.model, batch)
                bare.append(products.seconds)
            whole, part = statistics.median(steps), statistics.median(bare)
            print_row(number, precision, f"{whole * 1e3:.0f}", f"{part * 1e3:.0f}", f"{part / whole:.2f}")


def optimizers(folder: Path) -> None:
    """Print the time of a step of each optimizer on the weights of the finest stage's blocks."""
    weights = DemoStage.read(folder, 2).build().transformer.block_weights
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
    for height, width in LENGTHS:
        held = [in_new_process(memory_of_step, height, width, checkpointed) for checkpointed in (False, True)]
        print_row(f"{height * width:,}", *(f"{size:.0f}" for size in held))


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
    data_path(DemoStage.read(folder, 2))
    utilization(folder)
    optimizers(folder)
    memory()


if __name__ == "__main__":
    cli.run(main)
