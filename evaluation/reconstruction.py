"""How well images are reconstructed by the autoencoder, alone and with each codebook."""

from collections.abc import Iterable

import torch
from torchmetrics.image import StructuralSimilarityIndexMeasure

from models.autoencoder import Autoencoder, psnr
from models.codebook import Codebook
from utils.runtime import distributed


@torch.no_grad()
def reconstruct(images: torch.Tensor, autoencoder: Autoencoder, codebook: Codebook | None = None) -> torch.Tensor:
    """Images (B, 3, H, W), encoded and decoded; if there is a codebook, quantized in between."""
    return autoencoder(images, codebook).clamp(-1, 1)


def quality(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """PSNR in dB, of the mean error over all images, and mean SSIM (Wang et al. 2004) of batches in [−1, 1].

    SSIM is computed on images in [0, 1], as it is defined; it depends on where the scale has its zero. Each process has
    some of the batches, and gets the result of all.
    """
    error, number, similarity = 0.0, 0, None
    for images, pictures in pairs:
        if similarity is None:
            similarity = StructuralSimilarityIndexMeasure(data_range=1.0, sync_on_compute=False).to(images.device)
        similarity.update((pictures + 1) / 2, (images + 1) / 2)
        error += float((pictures - images).square().mean(dim=(1, 2, 3)).sum())
        number += len(images)
    similar = number * float(similarity.compute()) if number else 0.0
    error, similar, number = map(sum, zip(*distributed.gather((error, similar, number)), strict=True))
    return {"psnr": psnr(error / number), "ssim": similar / number}
