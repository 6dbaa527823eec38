"""What each part of a transformer is worth: the full model compared with variants without that part.

    python -m benchmarks.ablation out/demo-avatars --stage 1
    python -m benchmarks.ablation out/demo-avatars --stage 2 --seconds 120 --seeds 1 --only full "AdamW alone, rate 0.5"
    python -m benchmarks.ablation out/demo-avatars --seeds 1 --only full "plain block" --rates 0.25 0.5 1 2 4

Reads a folder that scripts/demo.sh has written; a cascade stage also needs the trained stage before it. Each run trains
one stage on one thread for a fixed time, while its learning rate falls to 0. Prints a table in Markdown: nats per token
on validation images, once from their true coarse tokens and once from coarse tokens drawn by the stage before, each
after the true ones before it (for the base stage both are the same). Values are means over seeds; ± is half of the
range. A variant without dropout or noise changes nothing where the config of the stage has none.

`--rates` trains each variant at several multiples of the demo's learning rate and names the one with the lowest loss
from true coarse tokens. `--test` measures variants, at rates that were chosen so, on test images instead.
"""

import argparse
import math
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from benchmarks.plain_block import make_plain
from benchmarks.stages import DemoStage, num_parameters, train_for
from models.cascade import Stage
from models.transformer import Attention, GatedMLP, GridEmbedding
from utils.device import keep_memory
from utils.gradient import GradientLearner

PLAIN = ({"dropout": 0.0, "condition_noise": 0.0}, {"use_muon": False})
# What a variant changes in the config and in the arguments of `DemoStage.learner`; `alter` changes the modules.
VARIANTS = {
    "full": ({}, {}),
    "random vectors of tokens": ({}, {}),
    "AdamW alone": ({}, {"use_muon": False}),
    "192 wide": ({"in_dim": 192, "hidden_dim": 384, "self_attn_heads": 3, "cross_attn_heads": 3}, {}),
    "256 wide": ({"in_dim": 256, "hidden_dim": 512, "self_attn_heads": 4, "cross_attn_heads": 4}, {}),
    "4 heads": ({"self_attn_heads": 4, "cross_attn_heads": 4}, {}),
    "2 + 3 layers": ({"num_enc_layers": 2, "num_dec_layers": 3}, {}),
    "no query-key norm": ({}, {}),
    "ungated MLP": ({}, {}),
    "no condition noise": ({"condition_noise": 0.0}, {}),
    "condition dropout 0.1": ({"condition_dropout": 0.1}, {}),
    "moving average": ({}, {"ema_decay": 0.999}),
    "no dropout": ({"dropout": 0.0}, {}),
    "dropout 0.1": ({"dropout": 0.1}, {}),
    "fp32": ({}, {"precision": "fp32"}),
    "plain block": PLAIN,
    "plain block, linear projections": PLAIN,
}


class Row(NamedTuple):
    """A row of the table: a variant at a multiple of the demo's learning rate."""

    variant: str
    rate: float = 1.0

    @classmethod
    def read(cls, text: str) -> "Row":
        """The row of "full", or of "full, rate 0.5"."""
        variant, _, rate = text.partition(", rate ")
        if variant not in VARIANTS:
            raise argparse.ArgumentTypeError(f"{variant!r} is none of: {'; '.join(VARIANTS)}")
        return cls(variant, float(rate or 1))

    def __str__(self) -> str:
        return self.variant if self.rate == 1 else f"{self.variant}, rate {self.rate:g}"


Results = dict[Row, list[tuple[float, ...]]]  # for each seed its training steps, parameters and both losses


def build(row: Row, demo: DemoStage) -> GradientLearner:
    """A new stage of a variant, ready to be trained."""
    config, training = VARIANTS[row.variant]
    stage = demo.build(**config)
    if row.variant.startswith("plain block"):
        make_plain(stage, has_linear_projections=row.variant.endswith("linear projections"))
    for module in stage.modules():
        alter(module, row.variant)
    return demo.learner(stage, **training, rate=row.rate)


def alter(module: nn.Module, name: str) -> None:
    """Change a module of a stage where the variant does."""
    if name == "random vectors of tokens" and isinstance(module, GridEmbedding):
        nn.init.normal_(module.token.weight, std=0.5)
    elif name == "no query-key norm" and isinstance(module, Attention):
        module.query_norm = module.key_norm = nn.Identity()
    elif name == "ungated MLP" and isinstance(getattr(module, "mlp", None), GatedMLP):
        dim, hidden = module.mlp.down.weight.shape
        hidden = hidden * 3 // 2  # as many parameters as with a gate
        module.mlp = nn.Sequential(nn.Linear(dim, hidden), module.mlp.activation, nn.Linear(hidden, dim))
        nn.init.zeros_(module.mlp[-1].weight)


def run(
    job: tuple[Row, int], folder: Path, number: int, seconds: float, test: bool = False
) -> tuple[tuple[Row, int], tuple[float, ...]]:
    """Train a row with a seed; return the job, and its training steps, parameters and both losses."""
    row, seed = job
    torch.set_num_threads(1)
    keep_memory()
    demo = DemoStage.read(folder, number)
    images = demo.test if test else demo.validation
    coarse, fine = demo.tokens[images]
    drawn = coarse if number == 0 else draw_coarse(DemoStage.read(folder, number - 1), images)
    torch.manual_seed(seed)
    learner = build(row, demo)
    step = train_for(seconds, learner, demo.tokens, demo.training, seed)
    return job, (step, num_parameters(learner), loss_of(learner, coarse, fine), loss_of(learner, drawn, fine))


@torch.no_grad()
def loss_of(learner: GradientLearner, coarse: torch.Tensor, fine: torch.Tensor) -> float:
    """Nats per token."""
    with learner.autocast:
        parts = zip(coarse.split(64), fine.split(64), strict=True)
        return sum(learner.best_model(*part)["loss"].item() * len(part[0]) for part in parts) / len(fine)


@torch.no_grad()
def draw_coarse(before: DemoStage, images: np.ndarray) -> torch.Tensor:
    """Tokens of images drawn by the stage before, each after the true tokens before it."""
    stage = Stage.load(before.run.transformers[before.number].best, before.coarse, before.fine)
    given, written = before.tokens[images]
    inputs, _ = stage.inputs_and_targets(given, written)
    probabilities = stage.transformer(inputs, stage.source(given)).softmax(-1).flatten(0, 1)
    return probabilities.multinomial(1, generator=torch.Generator().manual_seed(0)).view(written.shape)


def mean_loss(results: Results, row: Row) -> float:
    """Of all seeds, infinite where a training has diverged."""
    loss = np.mean(results[row], axis=0)[2]
    return math.inf if np.isnan(loss) else loss


def print_table(results: Results) -> None:
    """Print means over seeds and half of their range; losses are divided by that of the full model at its best rate."""
    full = min((mean_loss(results, row) for row in results if row.variant == "full"), default=None)
    print("| | steps | parameters | loss | ± | of the full model | drawn | ± |\n|---|---|---|---|---|---|---|---|")
    for row, numbers in results.items():
        steps, parameters, loss, drawn = np.mean(numbers, axis=0)
        *_, spread, drawn_spread = np.ptp(numbers, axis=0) / 2
        share = "" if full is None else f"{loss / full:.3f}"
        print(f"| {row} | {steps:.0f} | {parameters / 1e6:.1f} M | {loss:.4f} | {spread:.4f} | {share} "
              f"| {drawn:.4f} | {drawn_spread:.4f} |")  # fmt: skip


def print_best_rates(results: Results) -> None:
    """Print at which rate each variant was best, where it had several."""
    for variant in dict.fromkeys(row.variant for row in results):
        rows = sorted(row for row in results if row.variant == variant)
        if len(rows) > 1:
            best = min(rows, key=partial(mean_loss, results))
            is_end = best in (rows[0], rows[-1])
            advice = ", at an end of the grid: add rates beyond it" if is_end else ""
            print(f"\nBest rate of {variant}: {best.rate:g}{advice}")


def main() -> None:
    """Train the variants and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of scripts/demo.sh, such as out/demo-avatars")
    parser.add_argument("--stage", type=int, choices=[0, 1, 2], default=1, help="stage to train [1]")
    parser.add_argument(
        "--only", nargs="+", type=Row.read, metavar="VARIANT", default=[Row(name) for name in VARIANTS],
        help=f'variants to train, "VARIANT, rate 0.5" at half the rate [all]: {"; ".join(VARIANTS)}',
    )  # fmt: skip
    parser.add_argument(
        "--rates", nargs="+", type=float, metavar="FACTOR", default=[1.0],
        help="train each variant at each of these multiples of its learning rate [1.0]",
    )  # fmt: skip
    parser.add_argument("--test", action="store_true", help="measure test images, at one rate for each variant")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant and rate [3]")
    parser.add_argument("--seconds", type=float, default=100.0, help="training time of a run [100]")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one thread each [2]")
    args = parser.parse_args()
    rows = [Row(row.variant, row.rate * factor) for row in args.only for factor in args.rates]
    if args.test and len({row.variant for row in rows}) < len(rows):
        parser.error("--test takes one rate for each variant: choose it without --test")
    # Rows take turns, so that a machine that slows down slows all of them.
    jobs = [(row, seed) for seed in range(args.seeds) for row in rows]
    train = partial(run, folder=args.folder, number=args.stage, seconds=args.seconds, test=args.test)
    results: Results = {row: [] for row in rows}
    with get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
        for (row, seed), numbers in tqdm(pool.imap_unordered(train, jobs), total=len(jobs), unit="run"):
            results[row].append(numbers)
            tqdm.write(f"{row}, seed {seed}: steps, parameters, losses {numbers}", file=sys.stderr)
    print_table(results)
    print_best_rates(results)


if __name__ == "__main__":
    main()
