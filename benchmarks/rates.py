"""At which learning rate each size of a model learns best, and how the loss falls with compute.

    python -m benchmarks.rates out/demo-avatars autoencoder
    python -m benchmarks.rates out/demo-avatars stage --widths 128 --batch-sizes 4 16
    python -m benchmarks.rates out/demo-avatars stage --widths 128 --depths 2 8
    python -m benchmarks.rates out/demo-avatars stage --law --steps 540 1080 2160 --seeds 1 --predict 512 40000

Reads a folder that scripts/demo.py has written. Trains its autoencoder or its finest stage with the demo's recipe but a
fixed number of steps, at several sizes or batch sizes, each at several multiples of the demo's rate, which falls to 0.
Prints a table in Markdown: the loss on validation images, a mean over seeds; and the best rate as a multiple of the
demo's, from a parabola through the logarithms of the best three.

`--law` trains each size at one rate instead, which is lower for longer runs, but none beyond `--most` operations, and
fits loss = E + A / parameters^a + B / steps^b to the losses (after Hoffmann et al. 2022, "Training compute-optimal
large language models"). The table has what the fit says of each run. Below it are what a fit to all other runs says of
the costliest one, and the losses of the widths and steps to `--predict`.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.common import DEMO, WORKERS, at_once, options, print_head, print_row
from benchmarks.stages import DemoStage, autoencoder_learner, loss_of, num_parameters
from utils.core.files import UserError
from utils.core.options import option, parse_options
from utils.data.batches import EpochSampler
from utils.data.dataset import ImageDataset
from utils.runs.folders import RunFolder
from utils.runtime import cli
from utils.training.loop import MAX_VALIDATION

HEAD_DIM = 64  # channels of a head
# The best rate is lower for longer runs: 2.9 times that of the demo at 150 training steps, that of the demo at 2,400.
LONG, FALL = 2400, 0.38
Options = options(
    folder=DEMO,
    model=(str, option("what to train: stage or autoencoder", positional=True, choices=("stage", "autoencoder"))),
    widths=(tuple[int, ...], option("widths", (64, 128, 256))),
    depths=(tuple[int, ...], option("layers of the decoder, or blocks a resolution; if none is given, 4 or 2", ())),
    batch_sizes=(tuple[int, ...], option("images in a training step", (8,))),
    rates=(tuple[float, ...], option("multiples of the demo's rate", (0.25, 0.5, 1.0, 2.0, 4.0))),
    steps=(tuple[int, ...], option("training steps of a run", (200,))),
    seeds=(int, option("runs of each size and rate", 2, low=1)),
    law=(bool, option("fit a law to the losses, each at a rate for its number of steps", False)),
    most=(float, option("PFLOP of a run for the law, above which it is left out", math.inf, shown="none is")),
    predict=(tuple[int, ...], option("width and training steps of which the law gives the loss, or more pairs", ())),
    workers=WORKERS,
)


def stage(folder: Path, width: int, depth: int, batch_size: int, rate: float = 1.0) -> tuple:
    """The demo's finest stage with `depth` layers in its decoder, one less in its encoder; its tokens; their split."""
    demo = DemoStage.read(folder, RunFolder(folder).num_stages - 1)
    heads = max(1, width // HEAD_DIM)
    size = {"in_dim": width, "hidden_dim": 2 * width, "num_enc_layers": max(1, depth - 1), "num_dec_layers": depth}
    model = demo.build(**size, self_attn_heads=heads, cross_attn_heads=heads)
    return demo.learner(model, rate=rate, batch_size=batch_size), demo.tokens, demo


def autoencoder(folder: Path, width: int, depth: int, batch_size: int, rate: float = 1.0) -> tuple:
    """The same for the autoencoder, `width` wide at its narrowest resolution, with `depth` blocks a resolution."""
    dataset = ImageDataset(RunFolder(folder).images)
    size = {"min_channel": width // 2, "max_channel": width, "num_dec_res_blocks": depth}
    learner = autoencoder_learner(folder, dataset, size, {"batch_size": batch_size}, rate)
    return learner, dataset, dataset.split(learner.options.bounds)


MODELS = {"stage": stage, "autoencoder": autoencoder}
DEPTHS = {"stage": 4, "autoencoder": 2}  # of the demo


def run(
    width: int, depth: int, batch_size: int, steps: int, rate: float, seed: int, *, model: str, folder: Path
) -> float:
    """Train a model; return its loss on validation images."""
    torch.manual_seed(seed)
    learner, data, split = MODELS[model](folder, width, depth, batch_size, rate)
    learner.total_steps = steps
    for step, batch in enumerate(EpochSampler(split.training, batch_size, seed, 0, steps)):
        learner.update(data[batch], step)
    return loss_of(learner, data, split.validation[:MAX_VALIDATION])


def best_rate(losses: dict[float, float]) -> float:
    """The multiple at which a parabola through the logarithms of the best one and its neighbours is least."""
    rates = sorted(losses)
    middle = min(rates, key=losses.get)
    index = rates.index(middle)
    if index in (0, len(rates) - 1):
        return math.nan  # at an end of the grid
    x, y = np.log2(rates[index - 1 : index + 2]), np.log([losses[rate] for rate in rates[index - 1 : index + 2]])
    square, slope, _ = np.polyfit(x, y, 2)
    return float(2 ** (-slope / (2 * square)))


class Run(NamedTuple):
    """A size that was trained, and its loss."""

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
            factors = np.zeros(3)
            factors[used] = np.linalg.lstsq(terms[:, used], np.ones(len(runs)), rcond=None)[0]
            error = float(np.square(terms @ factors - 1).sum())
            if (factors >= 0).all() and error < best[0] * (1 - 1e-9):
                best = (error, (*factors, a, b))
    return best[1]


def predict(law: tuple[float, ...], parameters: float, steps: float) -> float:
    """The loss that a fit expects."""
    least, by_parameters, by_steps, a, b = law
    return least + by_parameters * parameters**-a + by_steps * steps**-b


def cost(width: int, depth: int, batch_size: int, *, model: str, folder: Path) -> tuple[int, int]:
    """The parameters of a model, and the operations of its training step."""
    learner, data, split = MODELS[model](folder, width, depth, batch_size)
    return num_parameters(learner), batch_size * learner.footprint(data[split.training[:batch_size]]).flops_per_item


def compare_rates(args: Options, sizes: list[tuple[int, ...]], train: Callable) -> None:
    """Train each size at each rate; print the losses and the best rates."""
    jobs = [(*size, *job) for size in sizes for job in product(args.rates, range(args.seeds))]
    losses = dict(at_once(train, jobs, args.workers, "loss"))
    heads = (f"rate {rate:g}" for rate in args.rates)
    print_head("width", "depth", "batch size", "steps", *heads, "best rate", "of each seed")
    for size in sorted(sizes):
        rows = [{rate: losses[*size, rate, seed] for rate in args.rates} for seed in range(args.seeds)]
        means = {rate: float(np.mean([row[rate] for row in rows])) for rate in args.rates}
        best = f"{best_rate(means):.2f}", ", ".join(f"{best_rate(row):.2f}" for row in rows)
        print_row(*size, *(f"{loss:.4f}" for loss in means.values()), *best)


def fit_law(args: Options, sizes: list[tuple[int, ...]], train: Callable) -> None:
    """Train each size at one rate, fit the law, and print what it says of the runs and of what is to be predicted."""
    (_, depth, batch_size, _), named = sizes[0], {"model": args.model, "folder": args.folder}
    if {size[1:3] for size in sizes} != {(depth, batch_size)}:
        raise UserError("--law: give one depth and one batch size")
    costs = {width: cost(width, depth, batch_size, **named) for width in (*args.widths, *args.predict[::2])}
    flops = {size: costs[size[0]][1] * size[-1] for size in sizes}  # of a run
    kept = sorted((size for size in sizes if flops[size] <= args.most * 1e15), key=flops.get)
    jobs = [(*size, (LONG / size[-1]) ** FALL, seed) for size in reversed(kept) for seed in range(args.seeds)]
    losses = {size: [] for size in kept}
    for (*size, _, _), loss in at_once(train, jobs, args.workers, "loss"):
        losses[tuple(size)].append(loss)
    runs = [Run(size[-1], costs[size[0]][0], flops[size], float(np.mean(losses[size]))) for size in kept]
    law = fit(runs)
    print_head("width", "training steps", "parameters", "PFLOP", "loss", "fit")
    for (width, *_), (steps, parameters, operations, loss) in zip(kept, runs, strict=True):
        cells = f"{parameters / 1e6:.1f} M", f"{operations / 1e15:.3g}", f"{loss:.3f}"
        print_row(width, steps, *cells, f"{predict(law, parameters, steps):.3f}")
    least, by_parameters, by_steps, a, b = law
    print(f"\nloss = {least:.3f} + {by_parameters:.3g} / parameters^{a:.2f} + {by_steps:.3g} / steps^{b:.2f}")
    last = runs[-1]
    foretold = predict(fit(runs[:-1]), last.parameters, last.steps)
    print(f"the last row by a fit to the others: {foretold:.3f}, measured {last.loss:.3f}")
    for width, steps in zip(args.predict[::2], args.predict[1::2], strict=True):
        loss = predict(law, parameters := costs[width][0], steps)
        print(f"{width} wide, {parameters / 1e6:.1f} M parameters, {steps} training steps: {loss:.3f}")


def main(argv: list[str] | None = None) -> None:
    """Train all sizes, and print how their losses depend on the rate or on compute."""
    args = parse_options(Options, __doc__, argv)
    if len(args.predict) % 2:
        raise UserError("--predict: the last width has no training steps; give pairs of numbers")
    widths, depths = sorted(args.widths, reverse=True), args.depths or (DEPTHS[args.model],)
    sizes = list(product(widths, depths, args.batch_sizes, args.steps))
    (fit_law if args.law else compare_rates)(args, sizes, partial(run, model=args.model, folder=args.folder))


if __name__ == "__main__":
    cli.run(main)
