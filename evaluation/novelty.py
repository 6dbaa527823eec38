"""Novelty: how near samples come to training images, compared with how near held-out images come to them."""

from dataclasses import dataclass

import torch

from evaluation.results import Match, Novelty

PERCENTILE = 0.01  # of held-out images are nearer to a training image than the threshold of a near copy
BLOCK = 256  # images that are compared with all training images at once


@dataclass(frozen=True)
class Nearest:
    """Distance and index (N,) of each image's nearest training image, and whether mirroring brought it nearer."""

    distance: torch.Tensor
    index: torch.Tensor
    mirrored: torch.Tensor

    @classmethod
    def among(cls, training: torch.Tensor, features: torch.Tensor, mirrored: torch.Tensor | None = None) -> "Nearest":
        """The nearest of the training features (M, D) to these (N, D), or to those of their mirror images."""
        looks = [features] if mirrored is None else [features, mirrored]
        found = [nearest(look, training) for look in looks]
        distances, indices = (torch.stack(parts) for parts in zip(*found, strict=True))  # (looks, N)
        distance, look = distances.min(0)
        return cls(distance, indices.gather(0, look[None])[0], look == 1)

    def share_below(self, threshold: float) -> float:
        """The share of images that are nearer than a distance."""
        return float((self.distance < threshold).double().mean())

    @property
    def threshold(self) -> float:
        """The distance below which 1 % of these images lie."""
        return float(self.distance.quantile(PERCENTILE))


def nearest(features: torch.Tensor, training: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance and index of the nearest of `training` (M, D) to each of `features` (N, D)."""
    training = training.double()  # the distance of a copy is then 0 up to 1e-6
    found = [torch.cdist(block.double(), training).min(1) for block in features.split(BLOCK)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def summarize(samples: Nearest, held_out: Nearest, paths: list[str], pairs: str) -> Novelty:
    """The novelty of samples; `paths` are those of the training images, `pairs` is the name of the picture."""
    threshold, shown = held_out.threshold, (samples, held_out)
    order = samples.distance.argsort(stable=True).tolist()
    return Novelty(
        threshold,
        *(part.share_below(threshold) for part in shown),
        *(float(part.distance.median()) for part in shown),
        pairs,
        tuple(Match(row, paths[int(samples.index[row])], float(samples.distance[row])) for row in order),
    )


def in_pairs(copies: torch.Tensor, originals: torch.Tensor, columns: int) -> torch.Tensor:
    """Samples (N, 3, H, W), each below its training image, `columns` pairs in a row: images row by row for a grid."""
    rows = zip(originals.split(columns), copies.split(columns), strict=True)
    return torch.cat([part for row in rows for part in row])
