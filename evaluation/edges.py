"""How sharp a set of images is: the distribution of its gradient magnitudes, which needs no network."""

import torch

BINS = 512
LARGEST = 8**0.5  # that a magnitude can be, of grey values in [−1, 1]
LEVELS = 127.5  # grey levels of 8 bits for a difference of 1


def edge_histogram(images: torch.Tensor) -> torch.Tensor:
    """How often each magnitude occurs in images (N, 3, H, W) in [−1, 1], (BINS,) from 0 to `LARGEST`."""
    grey = images.float().clamp(-1, 1).mean(1)
    across, down = (grey[:, :-1, 1:] - grey[:, :-1, :-1]), (grey[:, 1:, :-1] - grey[:, :-1, :-1])
    return torch.histc(torch.hypot(across, down).cpu(), BINS, 0, LARGEST)


def edge_distance(counts: torch.Tensor, others: torch.Tensor) -> float:
    """The Wasserstein distance between two distributions of magnitudes, in grey levels of 8 bits.

    It is the mean by which the magnitudes of one would have to change to become those of the other.
    """
    shares = [(part.double() / part.sum()).cumsum(0) for part in (counts, others)]
    return float((shares[0] - shares[1]).abs().sum() * LARGEST / BINS * LEVELS)
