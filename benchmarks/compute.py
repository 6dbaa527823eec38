"""How the loss of the finest stage falls with compute, and what that predicts for a larger stage.

    python -m benchmarks.compute out/demo-avatars --most 0.1 --predict 128 3600
    python -m benchmarks.compute out/demo-128-avatars --batch-size 4 --predict 512 40000

Reads a folder that scripts/demo.sh has written. Trains its finest stage at several widths, each for several numbers of
training steps, but not beyond `--most` operations, and fits loss = E + A / parameters^a + B / steps^b to the losses on
validation images (after Hoffmann et al. 2022, "Training compute-optimal large language models"). Prints a table in
Markdown with what the fit says of each run, what a fit to all other runs says of the costliest one, and the losses of
the widths and steps to `--predict`.
"""

import argparse
import math
import sys
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.rates import run, stage
from benchmarks.stages import num_parameters

DEPTH = 4  # of the demo
# The best rate is lower for longer runs: 2.9 times that of the demo at 150 training steps, that of the demo at 2,400.
LONG, FALL = 2400, 0.38


class Run(NamedTuple):
    """What was trained, and what came of it."""

    width: int
    steps: int
    parameters: float
    flops: float  # of all training steps
    loss: float


def fit(runs: list[Run]) -> tuple[float, ...]:
    """E, A, B, a and b with the least squared relative error: exponents from a grid, the rest by least squares."""
    names = ("parameters", "steps", "loss")
    parameters, steps, losses = (np.array([getattr(run, name) for run in runs]) for name in names)
    best = (np.inf, ())
    for a, b in product(np.arange(0.05, 1.55, 0.05), repeat=2):
        terms = np.stack([np.ones(len(runs)), parameters**-a, steps**-b], axis=1) / losses[:, None]
        for used in ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]):  # the others are 0, since none is negative
            found = np.zeros(3)
            found[used] = np.linalg.lstsq(terms[:, used], np.ones(len(runs)), rcond=None)[0]
            error = float(np.square(terms @ found - 1).sum())
            if (found >= 0).all() and error < best[0] * (1 - 1e-9):
                best = (error, (*found, a, b))
    return best[1]


def predict(law: tuple[float, ...], parameters: float, steps: float) -> float:
    """The loss that a fit expects."""
    least, by_parameters, by_steps, a, b = law
    return least + by_parameters * parameters**-a + by_steps * steps**-b


def train(size: tuple[int, int], folder: Path, batch_size: int) -> Run:
    """Train the stage with a width for so many steps."""
    width, steps = size
    rate = (LONG / steps) ** FALL
    _, loss = run((width, DEPTH, batch_size, rate, 0), "stage", folder, steps)
    learner, *_ = stage(folder, width, DEPTH, batch_size, rate)
    return Run(width, steps, num_parameters(learner), steps * step_flops(width, folder, batch_size), loss)


def step_flops(width: int, folder: Path, batch_size: int) -> int:
    """The operations of a training step of the stage with a width."""
    learner, data, split = stage(folder, width, DEPTH, batch_size, 1.0)
    return learner.flops(data[split.training[:batch_size]])


def main() -> None:
    """Train all sizes, fit, and print what the fit says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of scripts/demo.sh, such as out/demo-avatars")
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 128, 256], help="widths [64 128 256]")
    parser.add_argument(
        "--steps", nargs="+", type=int, default=[540, 1080, 2160], help="training steps [540 1080 2160]"
    )
    parser.add_argument("--most", type=float, default=math.inf, help="PFLOP of a run, above which it is left out")
    parser.add_argument("--batch-size", type=int, default=8, help="images in a training step [8]")
    parser.add_argument("--predict", nargs=2, type=int, action="append", default=[], metavar=("WIDTH", "STEPS"))
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one thread each [2]")
    args = parser.parse_args()
    flops = {width: step_flops(width, args.folder, args.batch_size) for width in args.widths}
    sizes = [size for size in product(args.widths, args.steps) if flops[size[0]] * size[1] <= args.most * 1e15]
    sizes.sort(key=lambda size: -flops[size[0]] * size[1])
    train_one = partial(train, folder=args.folder, batch_size=args.batch_size)
    runs: list[Run] = []
    with get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
        for found in tqdm(pool.imap_unordered(train_one, sizes), total=len(sizes), unit="run"):
            runs.append(found)
            tqdm.write(str(found), file=sys.stderr)
    runs.sort(key=lambda run: run.flops)
    law = fit(runs)
    print("| width | training steps | parameters | PFLOP | loss | fit |\n|---|---|---|---|---|---|")
    for each in runs:
        numbers = f"{each.parameters / 1e6:.1f} M | {each.flops / 1e15:.3g} | {each.loss:.3f}"
        print(f"| {each.width} | {each.steps} | {numbers} | {predict(law, each.parameters, each.steps):.3f} |")
    least, by_parameters, by_steps, a, b = law
    print(f"\nloss = {least:.3f} + {by_parameters:.3g} / parameters^{a:.2f} + {by_steps:.3g} / steps^{b:.2f}")
    last = runs[-1]
    foretold = predict(fit(runs[:-1]), last.parameters, last.steps)
    print(f"the last row by a fit to the others: {foretold:.3f}, measured {last.loss:.3f}")
    for width, steps in args.predict:
        parameters = num_parameters(stage(args.folder, width, DEPTH, args.batch_size, 1.0)[0])
        loss = predict(law, parameters, steps)
        print(f"{width} wide, {parameters / 1e6:.1f} M parameters, {steps} training steps: {loss:.3f}")


if __name__ == "__main__":
    main()
