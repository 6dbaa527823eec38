"""Whether the intervals of kernel distances are right: the standard errors that they claim beside the true ones.

    python -m benchmarks.intervals out/demo-avatars    # takes about half an hour on one thread

Reads a folder that scripts.train_cascade has written, with at least a thousand images. Deals its images at random
into disjoint sets, each of as many as there are validation images, and does so twenty times. Sets are compared in
pairs: real images with others (the floor), tilted ones with others, and quantized ones with others that are real. A
tilted set is of real images whose chance to be drawn grows along the first principal component of the features: a
little, which on the demo is a kernel distance of about 0.02, and much. The true standard error of a distance is its
standard deviation over the pairs of a deal, which share no image.

Prints a table in Markdown: the mean distance, the true standard error, the mean of the claimed ones divided by
the true one, and the share of 95 % intervals that hold the mean.
"""

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.common import CPU, IMAGES, RUN, options, print_head, print_row
from evaluation.distances import Z, kernel_interval
from evaluation.features import EfficientNetFeatures, features_of
from evaluation.reconstruction import reconstruct
from evaluation.run import TrainedRun
from utils.core.options import parse_options
from utils.data.batches import chunks
from utils.data.dataset import ImageDataset
from utils.runs.folders import RunFolder
from utils.runtime import cli

BATCH = 64
DEALS = 20
# By eᵗ the odds of an image for a tilted set grow with each standard deviation along the component.
TILTS = {"tilted a little": 0.6, "tilted much": 2.0}
Options = options(folder=RUN, dataset_path=IMAGES)


def read_features(run: TrainedRun, dataset: ImageDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D) of all images, and of what is decoded from their finest tokens."""
    extractor, number, parts = EfficientNetFeatures(), len(dataset), chunks(np.arange(len(dataset)), BATCH)
    *_, book = run.codebooks.values()
    quantized = (reconstruct(dataset[part], run.decoder, book) for part in parts)
    real = features_of(extractor, (dataset[part] for part in parts), number, "images")
    return real, features_of(extractor, quantized, number, "quantized images")


def deal(number: int, size: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of sets of `size` indices; no two sets share one."""
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
    sets = order[: number // (2 * size) * 2 * size].split(size)
    return zip(sets[::2], sets[1::2], strict=True)


def tilted_deal(scores: torch.Tensor, size: int, seed: int, tilt: float) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of a tilted set and of one that is not, as `deal`: of two in three images, those that `scores` draw."""
    generator = torch.Generator().manual_seed(seed)
    plain, others = torch.randperm(len(scores), generator=generator).tensor_split([len(scores) // 3])
    tilted = others[torch.rand(len(others), generator=generator) < (tilt * scores[others]).sigmoid()]
    number = min(len(plain), len(tilted)) // size * size
    return zip(tilted[:number].split(size), plain[:number].split(size), strict=True)


def along_first_component(features: torch.Tensor) -> torch.Tensor:
    """Where features (N, D) lie along their first principal component, (N,), in standard deviations from the mean."""
    centred = features.double() - features.double().mean(0)
    scores = centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    return scores / scores.std()


def cells(features: torch.Tensor, real: torch.Tensor, deals: list[list]) -> list[str]:
    """Mean, true standard error, claimed / true, and coverage, over the pairs of all deals."""
    intervals = [[kernel_interval(features[a], real[b]) for a, b in pairs] for pairs in deals]
    value, low, high = torch.tensor(intervals, dtype=torch.float64).unbind(-1)  # (deals, pairs)
    mean, true, claimed = value.mean(), value.var(1).mean().sqrt(), (high - low).mean() / (2 * Z)
    holds = ((low <= mean) & (mean <= high)).double().mean()
    return [f"{mean:.4g}", f"{true:.2g}", f"{claimed / true:.2f}", f"{holds:.0%}"]


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = parse_options(Options, __doc__, argv)
    run = TrainedRun(RunFolder.open(args.folder), CPU)
    dataset = run.images(args.dataset_path)
    real, quantized = read_features(run, dataset)
    size = len(dataset.split(run.bounds).validation)
    scores = along_first_component(real)
    deals = [list(deal(len(dataset), size, seed)) for seed in range(DEALS)]
    rows = {"floor": (real, deals)}
    for name, tilt in TILTS.items():
        tilted = [list(tilted_deal(scores, size, seed, tilt)) for seed in range(DEALS)]
        rows[name] = real, [pairs[: min(map(len, tilted))] for pairs in tilted]  # as many of each deal
    rows["quantized"] = quantized, deals
    print(f"{size} images in a set, {sum(map(len, deals))} pairs of sets; of tilted ones, fewer.\n")
    print_head("", "mean", "true standard error", "claimed / true", "intervals that hold the mean")
    for name, (features, pairs) in rows.items():
        print_row(name, *cells(features, real, pairs))


if __name__ == "__main__":
    cli.run(main)
