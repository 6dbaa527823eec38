"""Distances between two sets of images, computed from their features (N, D), and how uncertain they are."""

import math
from collections.abc import Callable, Iterator

import torch
from torchmetrics.image.kid import poly_kernel, poly_mmd

SPLITS = 3  # of both sets into halves
NEIGHBOURS = 3  # the distance to the third nearest image is the radius of its ball, as in the paper
Z = 1.96  # standard deviations to each side that hold 95 % of a normal distribution
BLOCK = 1024  # images that are compared with as many others at once

Distance = Callable[[torch.Tensor, torch.Tensor], float]


def kernel_distance(features: torch.Tensor, others: torch.Tensor) -> float:
    """The kernel distance (Bińkowski et al. 2018) between two sets of equal size.

    It is the squared maximum mean discrepancy with the kernel (x·y / D + 1)³, over all images at once. This estimate
    is unbiased, so it can be negative.
    """
    return float(poly_mmd(others.double(), features.double()))


def frechet_distance(features: torch.Tensor, others: torch.Tensor) -> float:
    """The Fréchet distance |μ − ν|² + tr(Σ + T − 2 (ΣT)^½) between two normal distributions (Heusel et al. 2017).

    With Σ = AᵀA and T = BᵀB, the trace of the root is the sum of the singular values of ABᵀ, which has one row per
    image. torchmetrics gives the same number from the eigenvalues of a matrix with one row per feature, which for a few
    hundred images takes a hundred times as long.
    """
    means, roots = zip(*(mean_and_root(part) for part in (features, others)), strict=True)
    roots = [torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root for root in roots]
    spread = sum(root.square().sum() for root in roots)
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float((means[0] - means[1]).square().sum() + spread - 2 * shared)


def mean_and_root(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D) → their mean (D,) and a root A (N, D) of their covariance AᵀA."""
    features = features.double()
    mean = features.mean(0)
    return mean, (features - mean) / (len(features) - 1) ** 0.5


def kernel_influences(features: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How much each image of both sets, (N,) and (N,), changes the kernel distance: the derivative by its weight × N.

    Constants are left out, since only the variance matters.
    """
    first, second = features.double(), others.double()
    between, influences = poly_kernel(first, second), []
    for part, across in ((first, between), (second, between.T)):
        within = poly_kernel(part, part).fill_diagonal_(0)
        influences.append(2 * (within.sum(1) / (len(part) - 1) - across.mean(1)))
    return tuple(influences)


def frechet_influences(features: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for the Fréchet distance.

    With ABᵀ = USVᵀ it is 2 (μ − ν)·(xᵢ − μ) + N (|Aᵢ|² − (USUᵀ)ᵢᵢ) for image i of the first set, since the derivative
    of the sum of singular values is UVᵀ.
    """
    means, roots = zip(*(mean_and_root(part) for part in (features, others)), strict=True)
    (basis, small), (other_basis, other_small) = (torch.linalg.qr(root) for root in roots)
    left, shared, right = torch.linalg.svd(small @ other_small.T, full_matrices=False)
    gap, influences = means[0] - means[1], []
    for root, vectors, way in ((roots[0], basis @ left, gap), (roots[1], other_basis @ right.T, -gap)):
        along = 2 * (len(root) - 1) ** 0.5 * root @ way
        influences.append(along + len(root) * (root.square().sum(1) - vectors.square() @ shared))
    return tuple(influences)


INFLUENCES = {kernel_distance: kernel_influences, frechet_distance: frechet_influences}


def jackknife(distance: Distance, features: torch.Tensor, others: torch.Tensor) -> float:
    """The variance of a distance by the infinitesimal jackknife (Jaeckel 1972): as if it were a mean over images."""
    return sum(float(part.var()) / len(part) for part in INFLUENCES[distance](features, others))


def deviation(
    distance: Distance, features: torch.Tensor, others: torch.Tensor, seed: int, splits: int = SPLITS
) -> float:
    """The standard error of a distance between two sets that were drawn independently.

    The variance of a mean over N images falls as 1/N; that of a distance between sets of one distribution falls as
    1/N², since only pairs of images matter. The jackknife counts each pair twice, once for each of its images (Efron
    and Stein 1981): if the variance falls as 1/Nᵖ, the jackknife gives p times the variance. On halves of the sets it
    gives 2ᵖ times as much as on whole ones, which reveals p. `benchmarks/intervals.py` compares the result with the
    truth. A bootstrap would repeat images, which both distances mistake for similarity.
    """
    generator, halves = torch.Generator().manual_seed(seed), []
    for _ in range(splits):
        orders = [torch.randperm(len(part), generator=generator) for part in (features, others)]
        for first, second in zip(*(order.split(len(order) // 2)[:2] for order in orders), strict=True):
            halves.append(jackknife(distance, features[first], others[second]))
    whole = jackknife(distance, features, others)
    growth = sum(halves) / len(halves) / whole if whole else 2.0
    return (whole / math.log2(min(max(growth, 2.0), 4.0))) ** 0.5


def interval(distance: Distance, features: torch.Tensor, others: torch.Tensor, seed: int) -> tuple[float, float, float]:
    """A distance and the 95 % interval around it."""
    value = distance(features, others)
    margin = Z * deviation(distance, features, others, seed)
    return value, value - margin, value + margin


def precision_and_recall(features: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    Precision is the share of images that lie in the manifold of the real images; recall is the share of real images
    that lie in the manifold of the others. The manifold of a set is a union of balls, one around each image, which
    reaches as far as the third nearest other image of the set.
    """
    return covered(features, real), covered(real, features)


def covered(points: torch.Tensor, manifold: torch.Tensor) -> float:
    """The share of `points` (N, D) that lie in the manifold of other features (M, D)."""
    few, parts, inside = 1 + NEIGHBOURS, [], 0  # the nearest is the image itself
    for row in in_blocks(manifold, manifold):
        least = [block.topk(min(few, block.shape[1]), largest=False).values for block in row]
        parts.append(torch.cat(least, 1).topk(few, largest=False).values[:, -1])
    radii = torch.cat(parts)
    for row in in_blocks(points, manifold):
        balls = zip(row, radii.split(BLOCK), strict=True)
        inside += int(torch.stack([(block <= reach).any(1) for block, reach in balls]).any(0).sum())
    return inside / len(points)


def nearest(features: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance and index (N,) of the nearest of others (M, D) to each of the features (N, D); of equals the first."""
    pairs = []
    for row in in_blocks(features, others):
        least = [block.min(1) for block in row]
        distance, number = torch.stack([part.values for part in least]).min(0)  # of its block
        place = torch.stack([part.indices for part in least]).gather(0, number[None])[0]
        pairs.append((distance, number * BLOCK + place))
    return tuple(map(torch.cat, zip(*pairs, strict=True)))


def in_blocks(points: torch.Tensor, others: torch.Tensor) -> Iterator[Iterator[torch.Tensor]]:
    """The distances of features (N, D) to others (M, D): for each block of `points`, those to each block of `others`.

    Features stay float32 and become double only within a block. The distance of a copy is then 0 up to 1e-6, and
    what is held in double grows with neither set.
    """
    for block in map(torch.Tensor.double, points.split(BLOCK)):
        yield (torch.cdist(block, part.double()) for part in others.split(BLOCK))
