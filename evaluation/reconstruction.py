"""How well images are reconstructed by the autoencoder, alone and with each codebook."""

from collections.abc import Iterable

import torch

from models.autoencoder import Autoencoder, psnr
from models.codebook import Codebook
from utils.runtime import distributed


@torch.no_grad()
def reconstruct(images: torch.Tensor, autoencoder: Autoencoder, codebook: Codebook | None = None) -> torch.Tensor:
    """Images (B, 3, H, W), encoded and decoded; if there is a codebook, quantized in between."""
    return autoencoder(images, codebook).clamp(-1, 1)


def mean_psnr(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """PSNR in dB, of the mean error over all images; batches are in [−1, 1].

    Each process has some of the batches, and gets the result of all.
    """
    error, number = 0.0, 0
    for images, pictures in pairs:
        error += float((pictures - images).square().mean(dim=(1, 2, 3)).sum())
        number += len(images)
    error, number = map(sum, zip(*distributed.gather((error, number)), strict=True))
    return psnr(error / number)
