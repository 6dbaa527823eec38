"""Novelty: how near samples come to training images, compared with how near held-out images come to them.

Two measures: the distance of features sees copies of whole images, and the share of other coarse tokens sees layouts
that are learned by heart, even if the finest stage fills them in another way.
"""

from dataclasses import dataclass

import torch

from evaluation.distances import Z, nearest
from evaluation.results import Match, Nearness, Novelty

PERCENTILE = 0.01  # of held-out images are nearer to a training image than the threshold of a near copy


@dataclass(frozen=True)
class Nearest:
    """Distance and index (N,) of each image's nearest training image, and whether mirroring brought it nearer."""

    distance: torch.Tensor
    index: torch.Tensor
    mirrored: torch.Tensor

    @classmethod
    def among(cls, training: torch.Tensor, features: torch.Tensor, mirrored: torch.Tensor | None = None) -> "Nearest":
        """The nearest of the training features (M, D) to these (N, D), or to those of their mirror images."""
        pairs = [nearest(look, training) for look in (features, mirrored) if look is not None]
        distances, indices = (torch.stack(parts) for parts in zip(*pairs, strict=True))  # (looks, N)
        distance, look = distances.min(0)
        return cls(distance, indices.gather(0, look[None])[0], look == 1)

    @classmethod
    def by_tokens(cls, training: torch.Tensor, tokens: torch.Tensor) -> "Nearest":
        """The nearest of training tokens (M, T) to these (N, T): the distance is the share of tokens that differ."""
        number, index = nearest(tokens, training, 0.0)
        return cls(number / tokens.shape[1], index, torch.zeros_like(index, dtype=torch.bool))

    @property
    def threshold(self) -> float:
        return float(self.distance.quantile(PERCENTILE))

    def nearness(self, threshold: float) -> Nearness:
        """The median distance, and the share of images at most `threshold` away.

        Distances of tokens are counts, so many are equal, and the share of held-out images can exceed 1 %.
        """
        return Nearness(float(self.distance.median()), int((self.distance <= threshold).sum()) / len(self.distance))


def share_interval(count: int, number: int) -> tuple[float, float]:
    """The 95 % interval of a share that was estimated as `count` out of `number` (Wilson 1927).

    It lies within 0 and 1 and holds the true share in about 95 % of all cases even where the count is small or 0.
    """
    share, extra = count / number, Z**2 / number
    middle = (share + extra / 2) / (1 + extra)
    half = (share * (1 - share) * extra + extra**2 / 4) ** 0.5 / (1 + extra)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def summarize(samples: Nearest, held_out: Nearest, paths: list[str], originals: list[str], pairs: str = "") -> Novelty:
    """The novelty of samples; `paths` are those of the training images, `pairs` is the name of the picture.

    `originals` are the paths of the files that the training images were made from, "" where that is not recorded.
    """
    threshold, number = held_out.threshold, len(samples.distance)
    order = samples.distance.argsort(stable=True).tolist()
    rows = [(row, int(samples.index[row]), float(samples.distance[row])) for row in order]
    matches = tuple(Match(row, paths[index], distance, originals[index]) for row, index, distance in rows)
    near, others = samples.nearness(threshold), held_out.nearness(threshold)
    return Novelty(threshold, near, *share_interval(round(near.share * number), number), others, pairs, matches)
