"""Distances between two sets of images, told by their features (N, D), and how far each could be off."""

from collections.abc import Callable

import torch
from torchmetrics.image.kid import poly_mmd

RESAMPLES = 50
NEIGHBOURS = 3  # whose distance is the radius of a manifold's balls, as in the paper

Distance = Callable[[torch.Tensor, torch.Tensor], float]


def kernel_distance(features: torch.Tensor, others: torch.Tensor) -> float:
    """The kernel distance (Bińkowski et al. 2018) of two sets of one size: unbiased, so it can fall below 0.

    The square of the maximum mean discrepancy with the kernel (x·y / D + 1)³, over all images at once.
    """
    return float(poly_mmd(others.double(), features.double()))


def frechet_distance(features: torch.Tensor, others: torch.Tensor) -> float:
    """The Fréchet distance |μ − ν|² + tr(Σ + T − 2 (ΣT)^½) of two normal distributions (Heusel et al. 2017).

    With Σ = AᵀA and T = BᵀB the trace of the root is the sum of the singular values of ABᵀ, which has a row an image.
    torchmetrics, which gives the same number, takes the eigenvalues of a matrix with a row a feature: for some hundred
    images a hundred times as slow.
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

    That is its standard deviation over random halves of both, drawn without replacement: the delete-half jackknife
    (Shao and Wu 1989). A bootstrap would repeat images, which either distance takes for likeness.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(len(features), len(others)) // 2] * 2
    found = []
    for _ in range(resamples):
        drawn = [
            part[torch.randperm(len(part), generator=generator)[:size]]
            for part, size in zip((features, others), sizes, strict=True)
        ]
        found.append(distance(*drawn))
    return float(torch.tensor(found, dtype=torch.float64).std())


def interval(distance: Distance, features: torch.Tensor, others: torch.Tensor, seed: int) -> tuple[float, float, float]:
    """A distance and the 95 % interval around it."""
    value = distance(features, others)
    margin = 1.96 * deviation(distance, features, others, seed)
    return value, value - margin, value + margin


def precision_and_recall(features: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    Precision is the share of images that lie in the manifold of the real ones, recall the share of real ones that lie
    in theirs. A manifold is all that is as near to one of its images as the third nearest of its other images is.
    """
    return covered(features, real), covered(real, features)


def covered(points: torch.Tensor, manifold: torch.Tensor) -> float:
    """The share of `points` (N, D) that lie in the manifold of some other features (M, D)."""
    points, manifold = points.double(), manifold.double()
    nearest = torch.cdist(manifold, manifold).sort(1).values
    radii = nearest[:, NEIGHBOURS]  # the first is the image itself
    return float((torch.cdist(points, manifold) <= radii).any(1).double().mean())
