"""How the loss of the finest stage falls with compute, and what that predicts for a larger stage.

    python -m benchmarks.compute out/demo-avatars --most 0.1 --predict 128 3600 512 40000
    python -m benchmarks.compute out/demo-128-avatars --batch-size 4 --predict 512 40000

Reads a folder that scripts/demo.sh has written. Trains its finest stage at several widths, each for several numbers of
training steps, but not beyond `--most` operations, and fits loss = E + A / parameters^a + B / steps^b to the losses on
validation images (after Hoffmann et al. 2022, "Training compute-optimal large language models"). Prints a table in
Markdown with what the fit says of each run, what a fit to all other runs says of the costliest one, and the losses of
the widths and steps to `--predict`.
"""

import math
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import rates
from benchmarks.common import DEMO, WORKERS, at_once, options, print_head, print_row
from benchmarks.stages import num_parameters
from utils import cli
from utils.files import UserError
from utils.options import option, parse_options

DEPTH = 4  # of the demo
# The best rate is lower for longer runs: 2.9 times that of the demo at 150 training steps, that of the demo at 2,400.
LONG, FALL = 2400, 0.38
Options = options(
    folder=DEMO,
    widths=(tuple[int, ...], option("widths", (64, 128, 256))),
    steps=(tuple[int, ...], option("training steps", (540, 1080, 2160))),
    most=(float, option("PFLOP of a run, above which it is left out", math.inf, shown="none is")),
    batch_size=(int, option("images in a training step", 8, low=1)),
    predict=(tuple[int, ...], option("width and training steps of a stage, or several such pairs", ())),
    workers=WORKERS,
)


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


def train(width: int, steps: int, *, folder: Path, batch_size: int) -> Run:
    """Train the stage with a width for so many steps."""
    rate = (LONG / steps) ** FALL
    loss = rates.run(width, DEPTH, batch_size, rate, 0, model="stage", folder=folder, steps=steps)
    parameters, flops = sizes(width, folder, batch_size)
    return Run(width, steps, parameters, steps * flops, loss)


def sizes(width: int, folder: Path, batch_size: int) -> tuple[int, int]:
    """The parameters of the stage with a width, and the operations of its training step."""
    learner, data, split = rates.stage(folder, width, DEPTH, batch_size, 1.0)
    return num_parameters(learner), batch_size * learner.footprint(data[split.training[:batch_size]]).flops_per_item


def main(argv: list[str] | None = None) -> None:
    """Train all sizes, fit, and print what the fit says."""
    args = parse_options(Options, __doc__, argv)
    if len(args.predict) % 2:
        raise UserError("--predict: the last width has no training steps; give pairs of numbers")
    flops = {width: sizes(width, args.folder, args.batch_size)[1] for width in args.widths}
    jobs = [job for job in product(args.widths, args.steps) if flops[job[0]] * job[1] <= args.most * 1e15]
    jobs.sort(key=lambda job: -flops[job[0]] * job[1])
    train_one = partial(train, folder=args.folder, batch_size=args.batch_size)
    runs = sorted((run for _, run in at_once(train_one, jobs, args.workers, "")), key=lambda run: run.flops)
    law = fit(runs)
    print_head("width", "training steps", "parameters", "PFLOP", "loss", "fit")
    for width, steps, parameters, flops, loss in runs:
        cells = f"{parameters / 1e6:.1f} M", f"{flops / 1e15:.3g}", f"{loss:.3f}"
        print_row(width, steps, *cells, f"{predict(law, parameters, steps):.3f}")
    least, by_parameters, by_steps, a, b = law
    print(f"\nloss = {least:.3f} + {by_parameters:.3g} / parameters^{a:.2f} + {by_steps:.3g} / steps^{b:.2f}")
    last = runs[-1]
    foretold = predict(fit(runs[:-1]), last.parameters, last.steps)
    print(f"the last row by a fit to the others: {foretold:.3f}, measured {last.loss:.3f}")
    for width, steps in zip(args.predict[::2], args.predict[1::2], strict=True):
        parameters, _ = sizes(width, args.folder, args.batch_size)
        loss = predict(law, parameters, steps)
        print(f"{width} wide, {parameters / 1e6:.1f} M parameters, {steps} training steps: {loss:.3f}")


if __name__ == "__main__":
    cli.run(main)
