"""What a recipe would take for millions of images on several GPUs and machines, counted without any of them.

    python -m benchmarks.cluster gpu-128 --images 4900000

Operations and memory are counted as `benchmarks.scaling` does; everything else is arithmetic with the assumptions that
the options hold: how many times each training sees an image, what share of its peak a GPU reaches, how fast images are
decoded and feature maps are read. Gradients travel while they are computed, in a ring; what is not hidden by that
counts, as do Muon's products, which every process does on its own.
"""

from dataclasses import dataclass

import torch

from benchmarks.common import options, print_head, print_row
from benchmarks.scaling import Training, grid, trainings
from models.autoencoder import Autoencoder, AutoencoderConfig
from models.codebook import CodebookConfig
from utils import cli
from utils.chain import Recipe
from utils.config import load_config
from utils.footprint import count_flops, readable
from utils.options import option, parse_options
from utils.run_folder import CONDITION

NUMBERS = (1, 8, 64)  # GPUs
MACHINE = 8  # GPUs in one machine
Options = options(
    recipes=(tuple[str, ...], option("folders of configs/", positional=True)),
    images=(float, option("images of the data set", 4.9e6, above=0)),
    epochs=(float, option("times that a stage sees each feature map", 3.0, above=0)),
    share=(float, option("of its peak that a GPU reaches", 0.25, above=0, high=1)),
    cores=(int, option("that decode images for each GPU", 16, low=1)),
    decoded=(float, option("images that a core decodes a second", 1000.0, above=0)),
    read=(float, option("bytes that a machine reads a second", 2e9, above=0)),
)


@dataclass(frozen=True)
class Kind:
    """A kind of GPU, by its maker's data sheets: dense bfloat16 products, and bytes a second that it can send."""

    name: str
    peak: float  # operations a second
    near: float  # to GPUs of its machine
    far: float  # to those of others: one network card for each GPU


KINDS = (Kind("A100", 312e12, 300e9, 25e9), Kind("H100", 989e12, 450e9, 50e9))


@dataclass(frozen=True)
class Cost:
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
            compute = (row.flops + muon(row.parameters)) / (share * kind.peak)
            speed = kind.far if number > MACHINE else kind.near
            exchange = 2 * (number - 1) / number * size / speed
            exposed = max(0.0, exchange - 2 / 3 * compute)  # a backward pass takes two thirds of a step
            hours.append(images / (row.step_size * number) * (compute + exposed) / 3600)
    return Cost(row.name, hours, f"{readable(2 * size)} a step, hidden by the backward pass", memory=row.memory)


def muon(parameters: int) -> float:
    """About the operations of Muon: 5 rounds of two products of each matrix with its Gram matrix, some 800 wide."""
    return 5 * 2 * 2 * parameters * 800


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
    """The whole chain."""
    folder, found = recipe.folder, {row.name: row for row in trainings(recipe)}
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
    rows = [of_training(found[name], args.images * seen[name], args.share) for name in seen if name in found]
    stages = [row for name, row in found.items() if name not in seen]
    return [
        rows[0],
        of_maps(flops, maps, size, args),
        of_reading("codebooks", maps, size, 3 * len(books), f"up to {readable(2 * sums)} a step", 0.0, args),
        *rows[1:],
        of_reading("tokens", maps, size, len(stages), "tokens to process 0, once", 2.0 * maps * tokens, args),
        *(of_training(row, maps * args.epochs, args.share) for row in stages),
    ]


def main(argv: list[str] | None = None) -> None:
    """Print a table for each recipe."""
    args = parse_options(Options, __doc__, argv)
    titles = [f"{number} {kind.name}" for kind in KINDS for number in NUMBERS]
    for recipe in args.recipes:
        found = costs(Recipe.find(recipe), args)
        print_head(recipe, *titles, "sent by a process", "disk", "memory of a GPU")
        whole = [sum(cost.hours[column] for cost in found) for column in range(len(titles))]
        whole = Cost("all, hours", whole, "", sum(cost.disk for cost in found), max(cost.memory for cost in found))
        for cost in (*found, whole):
            sizes = [readable(value) if value else "" for value in (cost.disk, cost.memory)]
            print_row(cost.name, *(f"{value:.2f}" for value in cost.hours), cost.sent, *sizes)
        hours = [value * number for value, number in zip(whole.hours, NUMBERS * len(KINDS), strict=True)]
        print_row("all, GPU-hours", *(f"{value:.0f}" for value in hours), "", "", "")


if __name__ == "__main__":
    cli.run(main)
