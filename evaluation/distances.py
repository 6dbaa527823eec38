"""Distances between two sets of images, computed from their features (N, D), and how uncertain they are."""

from collections.abc import Callable

import torch
from torchmetrics.image.kid import poly_mmd

RESAMPLES = 50
NEIGHBOURS = 3  # the distance to the third nearest image is the radius of its ball, as in the paper

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
    means, roots = [], []
    for part in (features.double(), others.double()):
        means.append(part.mean(0))
        root = (part - means[-1]) / (len(part) - 1) ** 0.5
        if len(root) > root.shape[1]:
            root = torch.linalg.qr(root, mode="r").R
        roots.append(root)
    spread = sum(root.square().sum() for root in roots)
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float((means[0] - means[1]).square().sum() + spread - 2 * shared)


def deviation(
    distance: Distance, features: torch.Tensor, others: torch.Tensor, seed: int, resamples: int = RESAMPLES
) -> float:
    """The standard error of a distance between two sets.

    It is the standard deviation of the distance over random halves of both, drawn without replacement: the delete-half
    jackknife (Shao and Wu 1989). A bootstrap would repeat images, which both distances mistake for similarity.
    """
    generator = torch.Generator().manual_seed(seed)
    size, found = min(len(features), len(others)) // 2, []
    for _ in range(resamples):
        halves = [part[torch.randperm(len(part), generator=generator)[:size]] for part in (features, others)]
        found.append(distance(*halves))
    return float(torch.tensor(found, dtype=torch.float64).std())


def interval(distance: Distance, features: torch.Tensor, others: torch.Tensor, seed: int) -> tuple[float, float, float]:
    """A distance and the 95 % interval around it."""
    value = distance(features, others)
    margin = 1.96 * deviation(distance, features, others, seed)
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
    points, manifold = points.double(), manifold.double()
    nearest = torch.cdist(manifold, manifold).sort(1).values
    radii = nearest[:, NEIGHBOURS]  # the first is the image itself
    return float((torch.cdist(points, manifold) <= radii).any(1).double().mean())
