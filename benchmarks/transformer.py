"""The transformers of the demo: speed of the loader, a training step and its matrix products, optimizers, memory.

    python -m benchmarks.transformer out/demo-avatars

Reads a folder that scripts/demo.sh has written. Prints tables in Markdown. Memory is the peak of a training step beyond
what the process held before the step; each size runs in a new process.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.stages import CPU, DemoStage
from benchmarks.timing import BareProducts, in_new_process, peak, seconds
from models.cascade import Stage, StageConfig
from models.transformer import Grid, TransformerConfig
from utils.dataset import BatchLoader, EpochSampler
from utils.device import autocast, keep_memory
from utils.muon import Muon

STEPS = 20  # in one measurement of the time of a step
TIMES = 3  # measurements; their median counts
BATCHES = (8, 64)  # batch sizes of the loader
SEQUENCES = 200_000
LENGTHS = ((32, 32), (32, 64), (64, 64), (64, 128))  # grids of 1,024 to 8,192 tokens
WINDOW = 256


def data_path(stage: DemoStage) -> None:
    """Print how many sequences a second the trainer's loader reads."""
    print(f"\nSequences of {stage.tokens.fine.shape[1]} tokens read per second, with their coarse tokens.\n")
    print("| batch size | sequences per second |\n|---|---|")
    for batch_size in BATCHES:
        loader = BatchLoader(stage.tokens, EpochSampler(stage.training, batch_size, 0, 0, SEQUENCES // batch_size))
        start = time.perf_counter()
        served = sum(len(fine) for _, fine in loader)
        print(f"| {batch_size} | {served / (time.perf_counter() - start):,.0f} |", flush=True)


def utilization(folder: Path) -> None:
    """Print the time of a training step, and of its matrix products alone, forward and backward."""
    print("\nA training step, and its matrix products alone. Causal attention multiplies the whole square.\n")
    print("| stage | precision | step, ms | products, ms | share |\n|---|---|---|---|---|")
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
            print(f"| {number} | {precision} | {whole * 1e3:.0f} | {part * 1e3:.0f} | {part / whole:.2f} |", flush=True)


def optimizers(folder: Path) -> None:
    """Print the time of a step of each optimizer on the weights of the finest stage's blocks."""
    weights = DemoStage.read(folder, 2).build().transformer.block_weights
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    kinds = {"AdamW": torch.optim.AdamW(weights, fused=True)}
    kinds |= {f"Muon in {name}": Muon(weights, 1e-3, getattr(torch, name)) for name in ("bfloat16", "float32")}
    kinds["torch.optim.Muon"] = torch.optim.Muon(weights, lr=1e-3)
    print("\nA step of each optimizer on the weights of the finest stage's blocks.\n\n| | ms |\n|---|---|")
    for name, optimizer in kinds.items():
        print(f"| {name} | {seconds(optimizer.step, 1) * 1e3:.1f} |", flush=True)


def memory() -> None:
    """Print the memory of a training step by the number of tokens, each measured in its own process."""
    print(f"\nMemory of a training step on one sequence, a window of {WINDOW}, 3 + 4 layers of width 256.\n")
    print("| tokens | MiB | with activation checkpoints |\n|---|---|---|", flush=True)
    for height, width in LENGTHS:
        held = [in_new_process(memory_of_step, height, width, checkpointed) for checkpointed in (False, True)]
        print(f"| {height * width:,} | {held[0]:.0f} | {held[1]:.0f} |", flush=True)


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


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of scripts/demo.sh, such as out/demo-avatars")
    folder = parser.parse_args().folder
    keep_memory()
    data_path(DemoStage.read(folder, 2))
    utilization(folder)
    optimizers(folder)
    memory()


if __name__ == "__main__":
    main()
