"""Distances between two sets of images, computed from their features (N, D), and how uncertain they are."""

from collections.abc import Iterator

import torch
from torchmetrics.image.kid import poly_kernel, poly_mmd

NEIGHBOURS = 3  # the distance to the third nearest image is the radius of its ball, as in the paper
Z = 1.96  # standard deviations to each side that hold 95 % of a normal distribution
BLOCK = 1024  # images that are compared with as many others at once


def kernel_distance(features: torch.Tensor, others: torch.Tensor) -> float:
    """The kernel distance (Bińkowski et al. 2018) between two sets of equal size.

    It is the squared maximum mean discrepancy with the kernel (x·y / D + 1)³, over all images at once. This estimate
    is unbiased, so it can be negative.
    """
    return float(poly_mmd(others.double(), features.double()))


def kernel_variances(features: torch.Tensor, others: torch.Tensor) -> tuple[float, float]:
    """The variance of the kernel distance between sets of at least 4 images: the parts of images and of pairs of them.

    By Hoeffding's decomposition the distance is a sum over images plus one over pairs, which are uncorrelated. If both
    sets are of one distribution, only pairs are left. The variance of a pair is that of a centred kernel: within a set
    as Székely and Rizzo (2014) centre it, between sets as in an analysis of variance. That of an image is the variance
    of its mean kernel without what pairs add to it, or 0 if this is negative by chance. Without this 0, the sum of both
    is the unbiased estimate of Sutherland and Deka (2019).
    """
    first, second = features.double(), others.double()
    between = poly_kernel(first, second)
    centred = between - between.mean(1, keepdim=True) - between.mean(0) + between.mean()
    shared = centred.square().sum() / ((len(first) - 1) * (len(second) - 1))
    of_images, of_pairs = 0.0, 4 * shared / between.numel()
    for part, across in ((first, between), (second, between.T)):
        number, other = across.shape
        within = poly_kernel(part, part).fill_diagonal_(0)
        rows = within.sum(1) / (number - 2)
        centred = (within - rows[:, None] - rows + rows.sum() / (number - 1)).fill_diagonal_(0)
        own = centred.square().sum() / (number * (number - 3))
        of_images += 4 / number * ((rows - across.mean(1)).var() - own / (number - 2) - shared / other)
        of_pairs += 2 * own / (number * (number - 1))
    return max(float(of_images), 0.0), float(of_pairs)


def kernel_interval(features: torch.Tensor, others: torch.Tensor) -> tuple[float, float, float]:
    """The kernel distance and the 95 % interval around it.

    The interval holds all distances θ from which the measured one is within `Z` standard errors. The part of images in
    its variance grows in proportion to θ, because it is a squared distance: one that is too small by chance also has
    too small a standard error. Solving for θ, as Wilson (1927) does for a share, takes the standard error at each end.
    A distance below the deviation of pairs is too uncertain to be divided by.
    """
    value = kernel_distance(features, others)
    of_images, of_pairs = kernel_variances(features, others)
    least = max(value, of_pairs**0.5)
    slope = of_images / least if least > 0 else 0.0
    middle = value + Z**2 * slope / 2
    margin = Z * (of_pairs + slope * max(value, 0.0) + (Z * slope / 2) ** 2) ** 0.5
    return value, middle - margin, middle + margin


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


def nearest(features: torch.Tensor, others: torch.Tensor, norm: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance and index (N,) of the nearest of others (M, D) to each of the features (N, D); of equals the first.

    By the norm 0, the distance is the number of features that differ.
    """
    pairs = []
    for row in in_blocks(features, others, norm):
        least = [block.min(1) for block in row]
        distance, number = torch.stack([part.values for part in least]).min(0)  # of its block
        place = torch.stack([part.indices for part in least]).gather(0, number[None])[0]
        pairs.append((distance, number * BLOCK + place))
    return tuple(map(torch.cat, zip(*pairs, strict=True)))


def in_blocks(points: torch.Tensor, others: torch.Tensor, norm: float = 2.0) -> Iterator[Iterator[torch.Tensor]]:
    """The distances of features (N, D) to others (M, D): for each block of `points`, those to each block of `others`.

    Features stay as they are and become double only within a block. The distance of a copy is then 0 up to 1e-6, and
    what is held in double grows with neither set.
    """
    for block in map(torch.Tensor.double, points.split(BLOCK)):
        yield (torch.cdist(block, part.double(), norm) for part in others.split(BLOCK))
