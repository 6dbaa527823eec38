"""The pictures of held-out images that the trainers of codebooks and transformers draw."""

import torch

from models.autoencoder import Autoencoder
from models.codebook import Codebook
from utils.images import grid, save_grid
from utils.run_folder import StepFolder


@torch.no_grad()
def save_decoded(autoencoder: Autoencoder, fmaps: dict[str, torch.Tensor], folder: StepFolder, step: int) -> None:
    """Write feature maps (N, C, H, W), decoded, a picture for each name."""
    for name, fmap in fmaps.items():
        save_grid(autoencoder.decode(fmap).cpu(), folder.picture(name, step))


@torch.no_grad()
def compare(
    autoencoder: Autoencoder, codebook: Codebook, fmaps: torch.Tensor, originals: list[torch.Tensor]
) -> torch.Tensor:
    """A grid (3, H, W) of rows: `originals` (N, 3, H, W) if there are any, reconstructions, and after quantization."""
    rows = [autoencoder.decode(given).cpu() for given in (fmaps, codebook.lookup(codebook.find_bmu(fmaps)))]
    return grid(torch.cat([*originals, *rows]), columns=len(fmaps))
