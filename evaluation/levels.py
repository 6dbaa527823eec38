"""Each stage at its own level: what it writes beside true tokens that are decoded alike, and how sure it is of it.

Distances to real images do not add up, so they do not show which stage loses what. At a level all sets are decoded by
the same codebook and decoder: the samples' tokens, the true tokens of test images, which both others are compared with,
and those of training images, whose distance is the floor of the level.
"""

import torch

from evaluation.distances import Z, kernel_interval, precision_and_recall
from evaluation.results import Level

Sets = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # features (N, D)
DRAWN = 128  # samples at temperature 1 whose bits are measured, at most


def level(name: str, sets: Sets, own_bits: torch.Tensor, test_bits: float | None) -> Level:
    """The numbers of a stage: `sets` are the features of its samples, of training and of test images.

    `own_bits` (M,) are the bits of samples at temperature 1 under the stage itself, given their own coarser tokens, and
    `test_bits` the mean of those of test images.
    """
    samples, training, real = sets
    mean, margin = float(own_bits.mean()), Z * float(own_bits.std()) / len(own_bits) ** 0.5
    return Level(
        name,
        *kernel_interval(samples, real),
        *precision_and_recall(samples, real),
        *kernel_interval(training, real),
        *precision_and_recall(training, real),
        num_drawn=len(own_bits),
        bits=mean,
        bits_low=mean - margin,
        bits_high=mean + margin,
        test_bits=test_bits,
    )
