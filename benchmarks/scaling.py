"""What a recipe would take on a GPU, counted without one: operations, hours and memory of each of its trainings.

    python -m benchmarks.scaling gpu-128 gpu-256

Builds every model of a recipe at its full width, with codebooks of as many units as their configs ask for, and counts
the operations and the tensors of training steps of one and of a few images. Prints a table in Markdown. Hours are those
operations at a share of a GPU's peak in bfloat16.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.common import CPU, options, print_head, print_row
from benchmarks.stages import num_parameters
from models.autoencoder import Autoencoder, AutoencoderConfig
from models.stage import NEAR, Stage, StageConfig
from models.transformer import Grid, TransformerConfig
from scripts.recipe import load_configs, options_of
from train_autoencoder import reconstruction_loss
from utils.core.config import load_config
from utils.core.options import option, parse_options
from utils.data.batches import Batch
from utils.runs.chain import Recipe, Step, steps_of
from utils.runs.folders import RunFolder
from utils.runtime import cli
from utils.runtime.footprint import readable
from utils.training.gradient import GradientLearner

COUNTED = 4  # images whose tensors are counted, at least; more follow in proportion
TOKENS = 4096  # that a stage is counted with: with fewer, its gradients need more than what its steps keep
GPUS = {"RTX 4090": 165e12, "A100": 312e12, "H100": 989e12}  # dense bfloat16 products a second, by data sheets
Options = options(
    recipes=(tuple[str, ...], option("folders of configs/", positional=True)),
    share=(float, option("share of its peak that a GPU reaches", 0.25, above=0, high=1)),
)


class Training(NamedTuple):
    """One training of a recipe, counted."""

    name: str
    parameters: str
    steps: int | str
    step_size: int | str
    flops: float  # of all steps
    memory: int  # bytes of a step


def trainings(recipe: Recipe) -> Iterator[Training]:
    """All trainings of a recipe by gradients, in bfloat16, wherever they are counted."""
    recipe = recipe.change(("autoencoder", "decoder", *recipe.stages), precision="bf16")
    run = RunFolder(Path("unread"), len(recipe.stages))
    steps = steps_of(run, recipe, Path("unread"))
    configs = load_configs(recipe, steps)
    books = [configs[book.name] for book in run.codebooks]
    grids = [Grid(*book.grid, book.num_embeddings) for book in books]  # before pruning
    for step in steps:
        if step.script == "train_autoencoder":
            learner, example = autoencoder(recipe, step)
        elif step.script == "train_quantized_transformer":
            learner, example = stage(recipe, step, *grids[int(step.folder.level) :][:2])
        else:
            continue
        options, footprint = learner.options, learner.footprint(example)
        number, size, parameters = options.max_step, options.step_size, f"{num_parameters(learner.model) / 1e6:.1f} M"
        flops, memory = footprint.flops_per_item * size * number, footprint.of(options.batch_size)
        yield Training(step.name, parameters, number, size, flops, memory)


def autoencoder(recipe: Recipe, step: Step) -> tuple[GradientLearner, Batch]:
    """The learner of an autoencoder, or of its decoder alone, and a batch to count."""
    config, size = load_config(step.inputs["config_path"], AutoencoderConfig), recipe.image_size
    model = Autoencoder(config).to(memory_format=torch.channels_last)
    images = torch.zeros(COUNTED, 3, size.height, size.width)
    model.encoder.requires_grad_(step.name != "decoder")
    cells, compute = math.prod(model.fmap_shape(images.shape[1:])[1:]), partial(reconstruction_loss, measure=model.loss)
    return GradientLearner(model, compute, config, options_of(recipe, step), 1, CPU, model.kernels, cells), images


def stage(recipe: Recipe, step: Step, coarse: Grid, fine: Grid) -> tuple[GradientLearner, Batch]:
    """The learner of a stage, and a batch to count."""
    transformer = load_config(step.inputs["config_path"], TransformerConfig)
    config = StageConfig(transformer, coarse, fine, step.folder.level == "0")
    model, options = Stage(config), options_of(recipe, step)
    model.near = torch.zeros(coarse.num_units, NEAR, dtype=torch.long)
    model.transformer.use_activation_checkpoint = options.use_activation_checkpoint
    weights, compute = model.transformer.block_weights, lambda stage, batch: stage(*batch)
    learner = GradientLearner(model, compute, transformer, options, 1, CPU, weights, fine.length)
    return learner, config.example(max(COUNTED, TOKENS // fine.length))


def main(argv: list[str] | None = None) -> None:
    """Print a table of all trainings of the recipes."""
    args = parse_options(Options, __doc__, argv)
    print_head("", "parameters", "training steps", "images a step", "PFLOP", "memory", *GPUS)
    for name in args.recipes:
        rows = list(trainings(Recipe.find(name)))
        rows.append(Training("all", "", "", "", sum(row.flops for row in rows), max(row.memory for row in rows)))
        for part, *sizes, flops, memory in rows:
            hours = (f"{flops / (args.share * peak) / 3600:.1f} h" for peak in GPUS.values())
            print_row(f"{name}, {part}", *sizes, f"{flops / 1e15:.1f}", readable(memory), *hours)


if __name__ == "__main__":
    cli.run(main)
