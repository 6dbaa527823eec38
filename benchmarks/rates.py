"""At which learning rate each width learns best: whether one `model_lr` is right for all of them.

    python -m benchmarks.rates out/demo-avatars autoencoder
    python -m benchmarks.rates out/demo-avatars stage --widths 128 --batch-sizes 4 16
    python -m benchmarks.rates out/demo-avatars stage --widths 128 --depths 2 8

Reads a folder that scripts/demo.sh has written. Trains its autoencoder or its finest stage with the demo's recipe but a
fixed number of steps, at several sizes or batch sizes, each at several multiples of the demo's rate, which falls to 0.
Prints a table in Markdown: the loss on validation images, a mean over seeds; and the best rate as a multiple of the
demo's, from a parabola through the logarithms of the best three.
"""

import math
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import DEMO, WORKERS, at_once, options, print_head, print_row
from benchmarks.stages import DemoStage, autoencoder_learner
from utils import cli
from utils.dataset import EpochSampler, ImageDataset
from utils.options import option, parse_options
from utils.run_folder import RunFolder
from utils.training import mean_over

HEAD_DIM = 64  # channels of a head
Options = options(
    folder=DEMO,
    model=(str, option("what to train: stage or autoencoder", positional=True, choices=("stage", "autoencoder"))),
    widths=(tuple[int, ...], option("widths", (64, 128, 256))),
    depths=(tuple[int, ...], option("layers of the decoder, or blocks a resolution; if none is given, 4 or 2", ())),
    batch_sizes=(tuple[int, ...], option("images in a training step", (8,))),
    rates=(tuple[float, ...], option("multiples of the demo's rate", (0.25, 0.5, 1.0, 2.0, 4.0))),
    steps=(int, option("training steps of a run", 200, low=1)),
    seeds=(int, option("runs of each width and rate", 2, low=1)),
    workers=WORKERS,
)


def stage(folder: Path, width: int, depth: int, batch_size: int, rate: float) -> tuple:
    """The demo's finest stage with `depth` layers in its decoder, one less in its encoder; its tokens; their split."""
    demo = DemoStage.read(folder, RunFolder(folder).num_stages - 1)
    heads = max(1, width // HEAD_DIM)
    size = {"in_dim": width, "hidden_dim": 2 * width, "num_enc_layers": max(1, depth - 1), "num_dec_layers": depth}
    model = demo.build(**size, self_attn_heads=heads, cross_attn_heads=heads)
    return demo.learner(model, rate=rate, batch_size=batch_size), demo.tokens, demo


def autoencoder(folder: Path, width: int, depth: int, batch_size: int, rate: float) -> tuple:
    """The same for the autoencoder, `width` wide at its narrowest resolution, with `depth` blocks a resolution."""
    dataset = ImageDataset(RunFolder(folder).images)
    size = {"min_channel": width // 2, "max_channel": width, "num_dec_res_blocks": depth}
    learner = autoencoder_learner(folder, dataset, size, {"batch_size": batch_size}, rate)
    return learner, dataset, dataset.split(learner.options.bounds)


MODELS = {"stage": stage, "autoencoder": autoencoder}
DEPTHS = {"stage": 4, "autoencoder": 2}  # of the demo


def run(
    width: int, depth: int, batch_size: int, rate: float, seed: int, *, model: str, folder: Path, steps: int
) -> float:
    """Train a model; return its loss on validation images."""
    torch.manual_seed(seed)
    learner, data, split = MODELS[model](folder, width, depth, batch_size, rate)
    learner.total_steps = steps
    batches = iter(EpochSampler(split.training, learner.options.batch_size, seed, 0, 10**9))
    for step in range(steps):
        learner.update(data[next(batches)], step)

    @torch.no_grad()
    def losses(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        with learner.autocast:
            return {"loss": learner.compute(learner.best_model, batch)["loss"]}

    return mean_over(data, split.validation, 64, losses)["loss"]


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


def main(argv: list[str] | None = None) -> None:
    """Train at all widths and rates, and print the results."""
    args = parse_options(Options, __doc__, argv)
    widths, depths = sorted(args.widths, reverse=True), args.depths or [DEPTHS[args.model]]
    jobs = list(product(widths, depths, args.batch_sizes, args.rates, range(args.seeds)))
    found: dict[tuple[int, ...], dict[float, dict[int, float]]] = {}  # losses of all seeds
    train = partial(run, model=args.model, folder=args.folder, steps=args.steps)
    for (*size, rate, seed), loss in at_once(train, jobs, args.workers, "loss"):
        found.setdefault(tuple(size), {}).setdefault(rate, {})[seed] = loss
    print_head("width", "depth", "batch size", *(f"rate {rate:g}" for rate in args.rates), "best rate", "of each seed")
    for size, losses in sorted(found.items()):
        means = {rate: float(np.mean([*losses[rate].values()])) for rate in args.rates}
        seeds = [best_rate({rate: losses[rate][seed] for rate in args.rates}) for seed in range(args.seeds)]
        best = f"{best_rate(means):.2f}", ", ".join(f"{rate:.2f}" for rate in seeds)
        print_row(*size, *(f"{means[rate]:.4f}" for rate in args.rates), *best)


if __name__ == "__main__":
    cli.run(main)
