"""The pictures of held-out images that the trainers of codebooks and transformers draw."""

import torch

from models.autoencoder import Autoencoder
from models.cascade import Stage
from models.codebook import Codebook
from utils.images import save_grid
from utils.run_folder import StepFolder
from utils.sampling import SamplingConfig, uniform_draws

COMPARED = 10  # images in the picture of truth, reconstruction and quantization


@torch.no_grad()
def save_quantized(
    codebook: Codebook,
    autoencoder: Autoencoder,
    fmaps: torch.Tensor,
    images: torch.Tensor | None,
    folder: StepFolder,
    step: int,
) -> None:
    """Write feature maps (N, C, H, W) decoded as they are and after quantization, apart and one above the other.

    `images` are the originals of the first `COMPARED` maps, which come on top, if all are still there.
    """
    decoded = [autoencoder.decode(given).cpu() for given in (fmaps, codebook.lookup(codebook.find_bmu(fmaps)))]
    save_grid(decoded[0], folder.picture("image_plot", step))
    save_grid(decoded[1], folder.picture("quant_image_plot", step))
    rows = [] if images is None else [images]
    rows += [part[:COMPARED] for part in decoded]
    save_grid(torch.cat(rows), folder.picture("comparison", step), columns=len(rows[0]))


@torch.no_grad()
def save_samples(
    stage: Stage,
    codebooks: tuple[Codebook, Codebook],
    autoencoder: Autoencoder,
    fmaps: torch.Tensor,
    tokens: tuple[torch.Tensor, torch.Tensor],
    sampling: SamplingConfig,
    seed: int,
    folder: StepFolder,
    step: int,
) -> None:
    """Write feature maps (N, C, H, W), decoded: as they are, by their coarse and fine tokens, as the stage writes them.

    `codebooks` and `tokens`, (N, S) and (N, T), are those that the stage reads and writes.
    """
    (coarse, fine), (given, true) = codebooks, tokens
    uniform = uniform_draws(seed, 0, range(len(true)), stage.config.fine.length, sampling.num_beam)
    sampled, _ = stage.sample(given, sampling, uniform)
    pictures = {
        "ground_truth": fmaps,
        "low_res_cond": coarse.lookup(given[:, : stage.config.coarse.length]),
        "high_res_example": fine.lookup(true),
        "high_res_recon": fine.lookup(sampled),
    }
    for name, fmap in pictures.items():
        save_grid(autoencoder.decode(fmap).cpu(), folder.picture(name, step))
