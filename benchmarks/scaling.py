"""What a recipe would take on a GPU, counted without one: operations, hours and memory of each of its trainings.

    python -m benchmarks.scaling gpu-128 gpu-256

Builds every model of a recipe at its full width, with codebooks of as many units as their configs ask for, and counts
the operations and the tensors of training steps of one and of a few images. Prints a table in Markdown. Hours are those
operations at a share of a GPU's peak in bfloat16.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import CPU, options, print_head, print_row
from benchmarks.stages import num_parameters
from models.autoencoder import Autoencoder, AutoencoderConfig
from models.cascade import NEAR, Stage, StageConfig
from models.codebook import CodebookConfig
from models.transformer import Grid, TransformerConfig
from scripts.recipe import options_of
from train_autoencoder import reconstruction_loss
from utils import cli
from utils.chain import Recipe, Step, steps_of
from utils.config import load_config
from utils.dataset import Batch
from utils.footprint import readable
from utils.gradient import GradientLearner
from utils.options import option, parse_options
from utils.run_folder import CONDITION, RunFolder

PEAKS = {"RTX 4090": 165, "A100": 312, "H100": 989}  # TFLOP/s of dense bfloat16 products, by their makers' data sheets
COUNTED = 4  # images whose tensors are counted, at least; more follow in proportion
TOKENS = 4096  # that a stage is counted with: with fewer, its gradients need more than what its steps keep
Options = options(
    recipes=(tuple[str, ...], option("folders of configs/", positional=True)),
    share=(float, option("of its peak that a GPU reaches", 0.25, above=0, high=1)),
)


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
    flops, memory = footprint.flops_per_item * options.step_size, footprint.of(options.batch_size)
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


def main(argv: list[str] | None = None) -> None:
    """Count all trainings of the recipes and print a table."""
    args = parse_options(Options, __doc__, argv)
    print_head("", "parameters", "training steps", "images a step", "PFLOP", "memory", *PEAKS)
    for recipe in args.recipes:
        found = list(trainings(Recipe.find(recipe)))
        for row in found:
            sizes = f"{row.parameters / 1e6:.1f} M", row.steps, row.step_size
            print_row(f"{recipe}, {row.name}", *sizes, *cells(row.flops * row.steps, row.memory, args.share))
        total, memory = sum(row.flops * row.steps for row in found), max(row.memory for row in found)
        print_row(f"{recipe}, all", "", "", "", *cells(total, memory, args.share))


def cells(flops: float, memory: float, share: float) -> list[str]:
    """So many operations, the memory, and how long they take on each GPU."""
    hours = (flops / (share * peak * 1e12) / 3600 for peak in PEAKS.values())
    return [f"{flops / 1e15:.1f}", readable(memory), *(f"{number:.1f} h" for number in hours)]


if __name__ == "__main__":
    cli.run(main)
