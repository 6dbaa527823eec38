"""What a recipe would take on a GPU, counted without one: operations, hours and memory of each of its trainings.

    python -m benchmarks.scaling gpu-128 gpu-256

Builds every model of a recipe at its full width, with codebooks of as many units as their configs ask for, and counts
the operations and the tensors of training steps of one and of a few images. Prints a table in Markdown. Hours are those
operations at a share of a GPU's peak in bfloat16.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.stages import CPU, num_parameters
from models.autoencoder import Autoencoder, AutoencoderConfig
from models.cascade import NEAR, Stage, StageConfig
from models.codebook import CodebookConfig
from models.transformer import Grid, TransformerConfig
from scripts.recipe import options_of
from train_autoencoder import reconstruction_loss
from utils import cli
from utils.chain import Recipe, Step, steps_of
from utils.config import load_config
from utils.dataset import Batch, num_items
from utils.gradient import GradientLearner
from utils.memory import readable
from utils.run_folder import CONDITION, RunFolder

PEAKS = {"RTX 4090": 165, "A100": 312, "H100": 989}  # TFLOP/s of dense bfloat16 products, by their makers' data sheets
COUNTED = 4  # images whose tensors are counted, at least; more follow in proportion
TOKENS = 4096  # that a stage is counted with: with fewer, its gradients need more than what its steps keep


@dataclass(frozen=True)
class Training:
    """One training of a recipe, counted."""

    name: str
    parameters: int
    steps: int
    step_size: int
    flops: float  # of a step
    memory: int  # bytes of a step


def count(name: str, learner: GradientLearner, example: Batch) -> Training:
    """Count a step of a learner, with an example batch."""
    options, footprint = learner.options, learner.footprint(example)
    flops, memory = learner.flops(example) / num_items(example) * options.step_size, footprint.of(options.batch_size)
    return Training(name, num_parameters(learner), options.max_step, options.step_size, flops, memory)


def trainings(recipe: Recipe) -> Iterator[Training]:
    """All trainings of a recipe by gradients, in bfloat16, wherever they are counted."""
    recipe = recipe.change(("autoencoder", "decoder", *recipe.stages), precision="bf16")
    levels = (CONDITION, *range(len(recipe.stages)))
    grids = [grid(load_config(recipe.folder / f"codebook_{level}.json", CodebookConfig)) for level in levels]
    for step in steps_of(RunFolder(Path("unread"), len(recipe.stages)), recipe, Path("unread")):
        if step.script == "train_autoencoder":
            yield autoencoder(recipe, step)
        elif step.script == "train_quantized_transformer":
            number = int(step.folder.level)
            yield stage(recipe, step, *grids[number : number + 2])


def autoencoder(recipe: Recipe, step: Step) -> Training:
    """The training of an autoencoder, or that of its decoder alone."""
    config, size = load_config(step.inputs["config_path"], AutoencoderConfig), recipe.image_size
    model, images = Autoencoder(config).to(memory_format=torch.channels_last), torch.zeros(COUNTED, 3, size, size)
    model.encoder.requires_grad_(step.name != "decoder")
    options = options_of(recipe, step)
    cells = math.prod(model.fmap_shape(images.shape[1:])[1:])
    compute = partial(reconstruction_loss, measure=model.loss)
    learner = GradientLearner(model, compute, config, options, 1, CPU, model.kernels, cells)
    return count(step.name, learner, images)


def stage(recipe: Recipe, step: Step, coarse: Grid, fine: Grid) -> Training:
    """The training of a stage."""
    transformer = load_config(step.inputs["config_path"], TransformerConfig)
    config = StageConfig(transformer, coarse, fine, step.folder.level == "0")
    model, options = Stage(config), options_of(recipe, step)
    model.near = torch.zeros(coarse.num_units, NEAR, dtype=torch.long)
    model.transformer.use_activation_checkpoint = options.use_activation_checkpoint
    weights, compute = model.transformer.block_weights, lambda stage, batch: stage(*batch)
    learner = GradientLearner(model, compute, transformer, options, 1, CPU, weights, fine.length)
    return count(step.name, learner, config.example(max(COUNTED, TOKENS // fine.length)))


def grid(config: CodebookConfig) -> Grid:
    """The grid that a codebook of this config writes, before pruning."""
    return Grid(*config.grid, config.num_embeddings)


def main() -> None:
    """Count all trainings of the recipes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="folders of configs/")
    parser.add_argument("--share", type=float, default=0.25, help="of its peak that a GPU reaches [0.25]")
    args = parser.parse_args()
    print(f"| | parameters | training steps | images a step | PFLOP | memory | {' | '.join(PEAKS)} |")
    print("|---" * (6 + len(PEAKS)) + "|")
    for recipe in args.recipes:
        found = list(trainings(Recipe.find(recipe)))
        for row in found:
            total = row.flops * row.steps
            print(f"| {recipe}, {row.name} | {row.parameters / 1e6:.1f} M | {row.steps} | {row.step_size} "
                  f"| {total / 1e15:.1f} | {readable(row.memory)} | {hours(total, args.share)} |")  # fmt: skip
        total, memory = sum(row.flops * row.steps for row in found), max(row.memory for row in found)
        print(f"| {recipe}, all | | | | {total / 1e15:.1f} | {readable(memory)} | {hours(total, args.share)} |")


def hours(flops: float, share: float) -> str:
    """The cells of a row that say how long so many operations take on each GPU."""
    return " | ".join(f"{flops / (share * peak * 1e12) / 3600:.1f} h" for peak in PEAKS.values())


if __name__ == "__main__":
    cli.run(main)
