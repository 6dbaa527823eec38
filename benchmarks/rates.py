"""At which learning rate each size of a model learns best.

    python -m benchmarks.rates out/demo-avatars autoencoder
    python -m benchmarks.rates out/demo-avatars stage --widths 128 --batch-sizes 4 16

Reads a folder that scripts/demo.py has written. Trains its autoencoder or its finest stage with the demo's recipe but a
fixed number of steps, at several sizes or batch sizes, each at several multiples of the demo's rate, which falls to 0.
Prints a table in Markdown: the loss on validation images, a mean over seeds; and the best rate as a multiple of the
demo's, from a parabola through the logarithms of the best three.
"""

import math
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.common import DEMO, WORKERS, at_once, best_of, options, print_head, print_row
from benchmarks.stages import demo_task
from utils.core.options import option, parse_options
from utils.data.batches import EpochSampler
from utils.runs.folders import RunFolder
from utils.runtime import cli

HEAD_DIM = 64  # channels of a head
Options = options(
    folder=DEMO,
    model=(str, option("what to train: stage or autoencoder", positional=True, choices=("stage", "autoencoder"))),
    widths=(tuple[int, ...], option("widths", (64, 128, 256))),
    batch_sizes=(tuple[int, ...], option("images in a training step", (8,))),
    rates=(tuple[float, ...], option("multiples of the demo's rate", (0.25, 0.5, 1.0, 2.0, 4.0))),
    steps=(int, option("training steps of a run", 200, low=1)),
    seeds=(int, option("runs of each size and rate", 2, low=1)),
    workers=WORKERS,
)


def size_of(model: str, width: int) -> dict[str, int]:
    """The config of a model so wide at its widest."""
    if model == "autoencoder":
        return {"min_channel": width // 2, "max_channel": width}
    heads = max(1, width // HEAD_DIM)
    return {"in_dim": width, "hidden_dim": 2 * width, "self_attn_heads": heads, "cross_attn_heads": heads}


def run(width: int, batch_size: int, rate: float, seed: int, *, model: str, folder: Path, steps: int) -> float:
    """Train a model; return its loss on validation images."""
    name = f"transformer_{RunFolder(folder).num_stages - 1}" if model == "stage" else model
    task, data = demo_task(folder, name, size_of(model, width), rate, seed=seed, batch_size=batch_size, max_step=steps)
    for step, batch in enumerate(EpochSampler(task.training, batch_size, seed, 0, steps)):
        task.update(data[batch], step)
    return task.validate()["val_loss"]


def best_rate(losses: dict[float, float]) -> float:
    """The multiple at which a parabola through the logarithms of the best one and its neighbours is least."""
    rates, (best, is_end) = sorted(losses), best_of(losses)
    index = rates.index(best)
    near = rates[index - 1 : index + 2]
    if is_end or len(rates) < 3 or any(math.isnan(losses[rate]) for rate in near):
        return math.nan
    square, slope, _ = np.polyfit(np.log2(near), np.log([losses[rate] for rate in near]), 2)
    return float(2 ** (-slope / (2 * square)))


def main(argv: list[str] | None = None) -> None:
    """Train each size at each rate; print the losses and the best rates."""
    args = parse_options(Options, __doc__, argv)
    sizes = list(product(sorted(args.widths, reverse=True), args.batch_sizes))  # the slowest first
    jobs = [(*size, *job) for size in sizes for job in product(args.rates, range(args.seeds))]
    train = partial(run, model=args.model, folder=args.folder, steps=args.steps)
    losses = dict(at_once(train, jobs, args.workers, "loss"))
    rates = (f"rate {rate:g}" for rate in args.rates)
    print_head("width", "batch size", *rates, "best rate", "of each seed")
    for size in sorted(sizes):
        rows = [{rate: losses[*size, rate, seed] for rate in args.rates} for seed in range(args.seeds)]
        means = {rate: float(np.mean([row[rate] for row in rows])) for rate in args.rates}
        best, *each = (f"{best_rate(row):.2f}" for row in (means, *rows))
        print_row(*size, *(f"{loss:.4f}" for loss in means.values()), best, ", ".join(each))


if __name__ == "__main__":
    cli.run(main)
