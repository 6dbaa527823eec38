"""What a recipe would take on GPUs, counted without one: operations, hours and memory of each of its trainings.

    python -m benchmarks.scaling gpu-128 gpu-256
    python -m benchmarks.scaling gpu-128 --cluster --images 4900000

Builds every model of a recipe at its full width, with codebooks of as many units as their configs ask for, and counts
the operations and the tensors of training steps of one and of a few images. Prints a table in Markdown. Hours are those
operations at a share of a GPU's peak in bfloat16.

`--cluster` prints instead what the whole chain would take for millions of images on several GPUs and machines. All but
operations and memory is arithmetic with the assumptions that the options hold: how many times each training sees an
image, what share of its peak a GPU reaches, how fast images are decoded and feature maps are read. Gradients travel
while they are computed, in a ring; what is not hidden by that counts, as do Muon's products, which every process does
on its own.
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
from models.codebook import CodebookConfig
from models.stage import NEAR, Stage, StageConfig
from models.transformer import Grid, TransformerConfig
from scripts.recipe import options_of
from train_autoencoder import reconstruction_loss
from utils.core.config import load_config
from utils.core.options import option, parse_options
from utils.data.batches import Batch
from utils.runs.chain import Recipe, Step, steps_of
from utils.runs.folders import CONDITION, RunFolder
from utils.runtime import cli
from utils.runtime.footprint import count_flops, readable
from utils.training.gradient import GradientLearner

COUNTED = 4  # images whose tensors are counted, at least; more follow in proportion
TOKENS = 4096  # that a stage is counted with: with fewer, its gradients need more than what its steps keep
NUMBERS = (1, 8, 64)  # GPUs of a cluster
MACHINE = 8  # GPUs in one machine
MUON = 5 * 2 * 2 * 800  # operations a parameter: 5 rounds of 2 products with a Gram matrix, some 800 wide
Options = options(
    recipes=(tuple[str, ...], option("folders of configs/", positional=True)),
    share=(float, option("of its peak that a GPU reaches", 0.25, above=0, high=1)),
    cluster=(bool, option("count the whole chain on several GPUs, with the options below", False)),
    images=(float, option("images of the data set", 4.9e6, above=0)),
    epochs=(float, option("times that a stage sees each feature map", 3.0, above=0)),
    cores=(int, option("that decode images for each GPU", 16, low=1)),
    decoded=(float, option("images that a core decodes a second", 1000.0, above=0)),
    read=(float, option("bytes that a machine reads a second", 2e9, above=0)),
)


class Gpu(NamedTuple):
    """A kind of GPU, by its maker's data sheets: dense bfloat16 products, and bytes a second that it can send."""

    name: str
    peak: float  # operations a second
    near: float = 0.0  # to GPUs of its machine
    far: float = 0.0  # to those of others: one network card for each GPU


GPUS = (Gpu("RTX 4090", 165e12), Gpu("A100", 312e12, 300e9, 25e9), Gpu("H100", 989e12, 450e9, 50e9))
KINDS = GPUS[1:]  # those of clusters


class Training(NamedTuple):
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


class Cost(NamedTuple):
    """What one part of the chain takes."""

    name: str
    hours: list[float]  # of each kind, of each number of GPUs
    sent: str = ""  # by each process, and when
    disk: float = 0.0  # bytes
    memory: float = 0.0  # bytes of a GPU


def of_training(row: Training, images: float, share: float) -> Cost:
    """A training by gradients that sees so many images."""
    hours, size = [], 4 * row.parameters
    for kind in KINDS:
        for number in NUMBERS:
            compute = (row.flops + MUON * row.parameters) / (share * kind.peak)
            speed = kind.far if number > MACHINE else kind.near
            exchange = 2 * (number - 1) / number * size / speed
            exposed = max(0.0, exchange - 2 / 3 * compute)  # a backward pass takes two thirds of a step
            hours.append(images / (row.step_size * number) * (compute + exposed) / 3600)
    return Cost(row.name, hours, f"{readable(2 * size)} a step, hidden by the backward pass", memory=row.memory)


def of_maps(flops: float, images: float, size: float, args: Options) -> Cost:
    """Feature maps: the encoder, or the decoding of images if that takes longer."""
    rates = [(args.share * kind.peak / flops, args.cores * args.decoded) for kind in KINDS]
    hours = [images / (min(rate) * number) / 3600 for rate in rates for number in NUMBERS]
    return Cost("feature maps", hours, "nothing: each writes its files", images * size)


def of_reading(name: str, maps: float, size: float, passes: int, sent: str, disk: float, args: Options) -> Cost:
    """Passes over all feature maps, as fast as a machine can read them."""
    machines = [max(1, number // MACHINE) for number in NUMBERS]
    seconds = [passes * maps * size / args.read / number for number in machines]
    return Cost(name, [each / 3600 for _ in KINDS for each in seconds], sent, disk)


def costs(recipe: Recipe, args: Options) -> list[Cost]:
    """What each part of the chain takes, in its order."""
    folder, rows = recipe.folder, {row.name: row for row in trainings(recipe)}
    model = Autoencoder(load_config(folder / "autoencoder.json", AutoencoderConfig))
    pixels = torch.zeros(1, 3, recipe.image_size, recipe.image_size)
    with torch.no_grad():
        flops, size = count_flops(lambda: model.encode(pixels)), 2.0 * model.encode(pixels).numel()
    levels = [CONDITION, *range(len(recipe.stages))]
    books = [load_config(folder / f"codebook_{level}.json", CodebookConfig) for level in levels]
    sums = max(4 * book.num_embeddings * (book.dim + 1) for book in books)
    flips, tokens = recipe.settings["feature_maps"].get("flip", False), sum(grid(book).length for book in books)
    maps = args.images * (1 + flips)
    seen = {"autoencoder": 2, "decoder": 1}
    first, *decoder = (of_training(rows[name], args.images * seen[name], args.share) for name in seen if name in rows)
    stages = [row for name, row in rows.items() if name not in seen]
    return [
        first,
        of_maps(flops, maps, size, args),
        of_reading("codebooks", maps, size, 3 * len(books), f"up to {readable(2 * sums)} a step", 0.0, args),
        *decoder,
        of_reading("tokens", maps, size, len(stages), "tokens to process 0, once", 2.0 * maps * tokens, args),
        *(of_training(row, maps * args.epochs, args.share) for row in stages),
    ]


def print_trainings(names: tuple[str, ...], share: float) -> None:
    """Print a table of all trainings of the recipes on one GPU."""
    print_head("", "parameters", "training steps", "images a step", "PFLOP", "memory", *(gpu.name for gpu in GPUS))
    for name in names:
        rows = list(trainings(Recipe.find(name)))
        for row in rows:
            sizes = f"{row.parameters / 1e6:.1f} M", row.steps, row.step_size
            print_row(f"{name}, {row.name}", *sizes, *cells(row.flops * row.steps, row.memory, share))
        total, memory = sum(row.flops * row.steps for row in rows), max(row.memory for row in rows)
        print_row(f"{name}, all", "", "", "", *cells(total, memory, share))


def cells(flops: float, memory: float, share: float) -> list[str]:
    """So many operations, the memory, and how long they take on each GPU."""
    hours = (flops / (share * gpu.peak) / 3600 for gpu in GPUS)
    return [f"{flops / 1e15:.1f}", readable(memory), *(f"{number:.1f} h" for number in hours)]


def print_costs(name: str, args: Options) -> None:
    """Print a table of what a recipe takes on clusters."""
    titles = [f"{number} {kind.name}" for kind in KINDS for number in NUMBERS]
    print_head(name, *titles, "sent by a process", "disk", "memory of a GPU")
    parts = costs(Recipe.find(name), args)
    hours = [sum(column) for column in zip(*(cost.hours for cost in parts), strict=True)]
    whole = Cost("all, hours", hours, "", sum(cost.disk for cost in parts), max(cost.memory for cost in parts))
    for cost in (*parts, whole):
        sizes = [readable(value) if value else "" for value in (cost.disk, cost.memory)]
        print_row(cost.name, *(f"{value:.2f}" for value in cost.hours), cost.sent, *sizes)
    spent = [value * number for value, number in zip(hours, NUMBERS * len(KINDS), strict=True)]
    print_row("all, GPU-hours", *(f"{value:.0f}" for value in spent), "", "", "")


def main(argv: list[str] | None = None) -> None:
    """Count, and print a table of all recipes, or one for each on clusters."""
    args = parse_options(Options, __doc__, argv)
    if not args.cluster:
        return print_trainings(args.recipes, args.share)
    for name in args.recipes:
        print_costs(name, args)


if __name__ == "__main__":
    cli.run(main)
