"""Novelty: how near samples come to training images, compared with how near held-out images come to them."""

from dataclasses import dataclass

import torch

from evaluation.results import Match, Nearness, Novelty

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

    def nearness(self, threshold: float) -> Nearness:
        """The median distance, and the share of images that are nearer than a distance, with its interval."""
        count, number = int((self.distance < threshold).sum()), len(self.distance)
        return Nearness(float(self.distance.median()), count / number, *share_interval(count, number))

    @property
    def threshold(self) -> float:
        """The distance below which 1 % of these images lie."""
        return float(self.distance.quantile(PERCENTILE))


def nearest(features: torch.Tensor, training: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance and index of the nearest of `training` (M, D) to each of `features` (N, D)."""
    training = training.double()  # the distance of a copy is then 0 up to 1e-6
    found = [torch.cdist(block.double(), training).min(1) for block in features.split(BLOCK)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def share_interval(count: int, number: int) -> tuple[float, float]:
    """The 95 % interval of a share, `count` of `number` (Wilson 1927)."""
    share, spread = count / number, 1.96**2 / number
    centre, margin = share + spread / 2, (spread * share * (1 - share) + spread**2 / 4) ** 0.5
    return max(0.0, (centre - margin) / (1 + spread)), min(1.0, (centre + margin) / (1 + spread))


def summarize(samples: Nearest, held_out: Nearest, paths: list[str], pairs: str) -> Novelty:
    """The novelty of samples; `paths` are those of the training images, `pairs` is the name of the picture."""
    threshold = held_out.threshold
    order = samples.distance.argsort(stable=True).tolist()
    matches = tuple(Match(row, paths[int(samples.index[row])], float(samples.distance[row])) for row in order)
    return Novelty(threshold, samples.nearness(threshold), held_out.nearness(threshold), pairs, matches)


def in_pairs(copies: torch.Tensor, originals: torch.Tensor, columns: int) -> torch.Tensor:
    """Samples (N, 3, H, W), each below its training image, `columns` pairs in a row: images row by row for a grid."""
    rows = zip(originals.split(columns), copies.split(columns), strict=True)
    return torch.cat([part for row in rows for part in row])
