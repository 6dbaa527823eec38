"""What each part of a model is worth: the full model compared with variants without that part, in the same time.

    python -m benchmarks.ablation out/demo-avatars --stage 1
    python -m benchmarks.ablation out/demo-avatars --seeds 1 --only full "256 wide" --rates 0.25 0.5 1 2 4
    python -m benchmarks.ablation out/demo-avatars --autoencoder --seconds 240

Reads a folder that scripts/demo.py has written; a cascade stage also needs the trained stage before it. Each run trains
one stage, or the autoencoder, on one thread for a fixed time, while its learning rate falls to 0. Prints a table in
Markdown. Values are means over seeds; ± is half of the range.

- a stage: nats per token on validation images, once from their true coarse tokens and once from coarse tokens drawn by
  the stage before, each after the true ones before it (for the base stage both are the same). A variant without dropout
  or noise changes nothing where the config of the stage has none.
- the autoencoder: squared error and PSNR of validation images; the kernel distance between reconstructions of training
  images and other training images, which is 0 for a perfect autoencoder; and the sharpness, the mean square of the
  differences between neighbouring pixels as a share of that of the originals

`--rates` trains each variant at several multiples of the demo's learning rate and names the one with the lowest loss
from true coarse tokens, or the lowest squared error.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.common import CPU, at_once, best_of, options, print_head, print_row
from evaluation.distances import kernel_distance
from evaluation.features import EfficientNetFeatures, features_of
from models.autoencoder import psnr
from models.stage import Stage
from scripts.recipe import options_of
from train_autoencoder import AutoencoderTask
from train_quantized_transformer import StageTask
from utils.core.files import UserError
from utils.core.options import option, parse_options
from utils.data.batches import EpochSampler, TokenDataset, chunks
from utils.runs.chain import Recipe, steps_of
from utils.runs.folders import RunFolder
from utils.runtime import cli
from utils.training.gradient import GradientTask

# What a variant changes in the config and in the options.
STAGES = {
    "full": ({}, {}),
    "256 wide": ({"in_dim": 256, "hidden_dim": 512, "self_attn_heads": 4, "cross_attn_heads": 4}, {}),
    "2 + 3 layers": ({"num_enc_layers": 2, "num_dec_layers": 3}, {}),
    "cells of 4": ({"cell": 2}, {}),
    "head features": ({"head_features": 128}, {}),
    "cells and head features": ({"cell": 2, "head_features": 128}, {}),
    "no condition noise": ({"condition_noise": 0.0}, {}),
    "condition dropout 0.1": ({"condition_dropout": 0.1}, {}),
    "moving average": ({}, {"ema_decay": 0.999}),
    "no dropout": ({"dropout": 0.0}, {}),
    "dropout 0.1": ({"dropout": 0.1}, {}),
}
AUTOENCODERS = {
    "full": ({}, {}),
    **{f"edge weight {weight:g}": ({"edge_weight": weight}, {}) for weight in (0.0, 0.5, 1.0, 4.0)},
    "squared error": ({"loss": "mse"}, {}),
    "batch size 4": ({}, {"batch_size": 4}),
    "batch size 16": ({}, {"batch_size": 16}),
    "moving average": ({}, {"ema_decay": 0.99}),
    "32 and 64 wide": ({"min_channel": 32, "max_channel": 64}, {}),
    "48 and 96 wide": ({"min_channel": 48, "max_channel": 96}, {}),
    "1 block a resolution": ({"num_dec_res_blocks": 1}, {}),
    "3 blocks a resolution": ({"num_dec_res_blocks": 3}, {}),
    "latent noise 0.1": ({"latent_noise": 0.1}, {}),
}
NAMES = f"of a stage: {'; '.join(STAGES)}; of the autoencoder: {'; '.join(AUTOENCODERS)}"
RECIPE = Recipe.find("demo-64")
COMPARED = 1000  # reconstructions of an autoencoder, and as many other images
Options = options(
    folder=(Path, option("folder that scripts/demo.py wrote", positional=True)),
    stage=(int, option("stage to train", 1, low=0, high=2)),
    autoencoder=(bool, option("train the autoencoder instead", False)),
    only=(tuple[str, ...], option(f"all if none is given; {NAMES}", ())),
    rates=(tuple[float, ...], option("multiples of its learning rate that each variant has", (1.0,), above=0)),
    seeds=(int, option("runs of each variant and rate", 3, low=1)),
    seconds=(float, option("training time of a run", 100.0, above=0)),
    workers=(int, option("runs at once, one thread each", 2, low=1)),
)


class Row(NamedTuple):
    """A row of the table: a variant at a multiple of the demo's learning rate."""

    variant: str
    rate: float = 1.0

    def __str__(self) -> str:
        return self.variant if self.rate == 1 else f"{self.variant}, rate {self.rate:g}"


Results = dict[Row, list[tuple[float, ...]]]  # for each seed its training steps, parameters and what was measured


def demo_task(
    folder: Path, name: str, config: dict | None = None, rate: float = 1.0, **options: object
) -> tuple[GradientTask, Dataset]:
    """The task of a step of the demo, ready to train on the CPU, and what it learns from.

    `config` and `options` replace those of the recipe; the learning rate is `rate` times the recipe's.
    """
    run = RunFolder(folder)
    step = next(step for step in steps_of(run, RECIPE, run.images) if step.name == name)
    given = replace(options_of(RECIPE, step), resume=False, **options)
    task = (AutoencoderTask if step.script == "train_autoencoder" else StageTask)(given, CPU)
    usual = getattr(task.config, "transformer", task.config)
    changed = replace(usual, model_lr=usual.model_lr * rate, **config or {})
    task.config = changed if usual is task.config else replace(task.config, transformer=changed)
    torch.manual_seed(given.seed)
    task.build({})
    return task, task.prepare()


def run(row: Row, seed: int, *, folder: Path, name: str, seconds: float) -> tuple[float, ...]:
    """Train a row with a seed; return its training steps, parameters and what is measured."""
    config, given = (AUTOENCODERS if name == "autoencoder" else STAGES)[row.variant]
    task, data = demo_task(folder, name, config, row.rate, **{"seed": seed} | given)
    steps, parameters = train_for(seconds, task, data), sum(map(torch.numel, task.learner.model.parameters()))
    return steps, parameters, *(qualities if name == "autoencoder" else losses)(task)


def train_for(seconds: float, task: GradientTask, data: Dataset, clock: Callable[[], float] = time.process_time) -> int:
    """Train for a fixed time, in which the learning rate falls to 0; return the training steps.

    The time is that of this process on one thread, so that others at work on the machine do not count, or another.
    """
    batches = iter(EpochSampler(task.training, task.options.batch_size, task.options.seed, 0, 10**9))
    start, step = clock(), 0
    while (share := (clock() - start) / seconds) < 1:
        task.learner.total_steps = max(step + 1, round(step / max(share, 1e-9)))  # the schedule follows the time
        task.update(data[next(batches)], step)
        step += 1
    return step


def losses(task: StageTask) -> tuple[float, float]:
    """Nats per token from the true coarse tokens, and from drawn ones."""
    true = task.validate()["val_loss"]
    if task.options.train_base_model:
        return true, true
    coarse, (_, fine) = draw_coarse(task), task.tokens[task.validation]
    task.tokens, task.validation = TokenDataset(coarse.numpy(), fine.numpy()), np.arange(len(fine))
    return true, task.validate()["val_loss"]


@torch.no_grad()
def draw_coarse(task: StageTask) -> torch.Tensor:
    """Coarse tokens of its validation images drawn by the stage before, each after the true tokens before it."""
    path = task.options.previous_path
    before, tokens = demo_task(path.parents[2], path.parts[-3])
    stage = Stage.load(path, before.coarse, before.fine)
    given, written = tokens[task.validation]
    inputs = stage.inputs(given, written[:, stage.order])
    probabilities = stage.transformer(inputs, stage.source(given), stage.start(given)).softmax(-1).flatten(0, 1)
    drawn = probabilities.multinomial(1, generator=torch.Generator().manual_seed(0)).view(written.shape)
    return torch.empty_like(drawn).index_copy_(1, stage.order, drawn)


def qualities(task: AutoencoderTask) -> tuple[float, ...]:
    """Squared error, PSNR, kernel distance and sharpness."""

    def reconstruct(part: np.ndarray) -> torch.Tensor:
        return task.reconstruct(task.dataset[part]).clamp(-1, 1)

    images, outputs = task.dataset[task.validation], torch.cat([*map(reconstruct, chunks(task.validation, 64))])
    error, sharpness = (outputs - images).square().mean(), outputs.diff(dim=-1).square().mean()
    number, extractor = min(COMPARED, len(task.training) // 2), EfficientNetFeatures()
    parts = (reconstruct, task.training[:number]), (task.dataset.__getitem__, task.training[number : 2 * number])
    features = [features_of(extractor, map(read, chunks(part, 64)), number, "images") for read, part in parts]
    share = float(sharpness / images.diff(dim=-1).square().mean())
    return float(error), psnr(float(error)), kernel_distance(*features), share


def print_results(results: Results, *measured: str) -> None:
    """Print means over seeds and half of their range; losses are divided by that of the full model at its best rate.

    Below the table is at which rate each variant was best, where it had several.
    """
    means = {row: np.nan_to_num(np.mean(numbers, axis=0), nan=math.inf) for row, numbers in results.items()}
    full = min((mean[2] for row, mean in means.items() if row.variant == "full"), default=math.nan)
    print_head("", "steps", "parameters", *(head for name in measured for head in (name, "±")), "of the full model")
    for row, (steps, parameters, *values) in means.items():
        spreads = np.ptp(results[row], axis=0)[2:] / 2
        cells = (f"{value:.4g} | {spread:.2g}" for value, spread in zip(values, spreads, strict=True))
        share = "" if math.isnan(full) else f"{values[0] / full:.3f}"
        print_row(row, f"{steps:.0f}", f"{parameters / 1e6:.2f} M", *cells, share)
    for variant in dict.fromkeys(row.variant for row in means):
        losses = {row.rate: mean[2] for row, mean in means.items() if row.variant == variant}
        if len(losses) > 1:
            best, is_end = best_of(losses)
            advice = ", at an end of the grid: add rates beyond it" if is_end else ""
            print(f"\nBest rate of {variant}: {best:g}{advice}")


def main(argv: list[str] | None = None) -> None:
    args = parse_options(Options, __doc__, argv)
    variants = AUTOENCODERS if args.autoencoder else STAGES
    if args.stage == 0:  # a base stage has no coarse tokens to write cells of
        variants = {name: changes for name, changes in variants.items() if "cell" not in changes[0]}
    for variant in args.only:
        if variant not in variants:
            raise UserError(f"--only: {variant!r} is none of: {'; '.join(variants)}")
    rows = [Row(variant, rate) for variant in args.only or variants for rate in args.rates]
    name = "autoencoder" if args.autoencoder else f"transformer_{args.stage}"
    measured = ("squared error", "PSNR (dB)", "kernel distance", "sharpness") if args.autoencoder else ("loss", "drawn")
    train = partial(run, folder=args.folder, name=name, seconds=args.seconds)
    # Rows take turns, so that a machine that slows down slows all of them.
    jobs = [(row, seed) for seed in range(args.seeds) for row in rows]
    results: Results = {row: [] for row in rows}
    for (row, _), numbers in at_once(train, jobs, args.workers, f"steps, parameters, {', '.join(measured)}"):
        results[row].append(numbers)
    print_results(results, *measured)


if __name__ == "__main__":
    cli.run(main)
