"""Novelty: how near samples come to a training image, beside how near held-out images come to one."""

from dataclasses import dataclass

import torch

PERCENTILE = 0.01  # of held-out images are nearer to a training image than what counts as a near copy
BLOCK = 256  # images compared with all training images at once


@dataclass(frozen=True)
class Nearest:
    """Of each image its nearest training image: distance (N,), index (N,), and whether that of its mirror image."""

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
        """The distance below which a hundredth of these images lies."""
        return float(self.distance.quantile(PERCENTILE))


def nearest(features: torch.Tensor, training: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance and index of the nearest of `training` (M, D) to each of `features` (N, D)."""
    training = training.double()  # in which a copy's distance is 0 up to 1e-6
    found = [torch.cdist(block.double(), training).min(1) for block in features.split(BLOCK)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def summary(samples: Nearest, held_out: Nearest, paths: list[str], pairs: str) -> dict:
    """What is told of novelty; `paths` are those of the training images, `pairs` the name of the picture."""
    threshold = held_out.threshold
    order = samples.distance.argsort(stable=True).tolist()
    return {
        "threshold": threshold,
        "share_of_samples": samples.share_below(threshold),
        "share_of_held_out": held_out.share_below(threshold),
        "median_distance_of_samples": float(samples.distance.median()),
        "median_distance_of_held_out": float(held_out.distance.median()),
        "pairs": pairs,
        "nearest": [
            {
                "sample": sample,
                "image_path": paths[int(samples.index[sample])],
                "distance": float(samples.distance[sample]),
            }
            for sample in order
        ],
    }


def picture(copies: torch.Tensor, originals: torch.Tensor, columns: int) -> torch.Tensor:
    """Samples (N, 3, H, W), above each its training image, `columns` pairs a row: images row by row for a grid."""
    rows = zip(originals.split(columns), copies.split(columns), strict=True)
    return torch.cat([part for row in rows for part in row])
