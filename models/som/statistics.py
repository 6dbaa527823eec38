"""How well a codebook represents a data set of feature maps: counts, errors, and the PSNR of decoded images."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from models.autoencoder import Autoencoder, psnr
from models.codebook import Codebook
from models.som.order import PairCounts
from utils.data.batches import BatchLoader, chunks
from utils.data.dataset import FeatureMapDataset
from utils.runtime import distributed
from utils.runtime.device import choose_workers
from utils.runtime.progress import progress

log = logging.getLogger(__name__)

BATCH = 32  # images decoded at once
EXTREMES = 3  # number of units listed as most used and as least used
FEW_KEPT = 0.5  # share of the units that pruning has left; a smaller one says that there were too many for the patches
FEW_KEPT_ADVICE = (
    "Give it about as many units ('num_embeddings') as are left, more images or also their mirror images (--flip of "
    "train_autoencoder.py and of generate_fmap_dataset.py), or a lower --prune-threshold."
)
Statistics = dict[str, float | int | list[list[int]]]


@dataclass(frozen=True)
class Census:
    counts: torch.Tensor  # (K,) int64, patches for which each unit is the nearest
    pairs: PairCounts  # the same for the two nearest units
    error: float  # mean squared distance of a patch to its nearest unit
    variance: float  # mean squared distance of a patch to the mean patch

    def statistics(self, codebook: Codebook) -> Statistics:
        """The numbers to report of the codebook that was counted; its units may have new places by now.

        - `quantization_error`: mean squared error per number of the feature map;
        - `share_of_variance`: that error as a share of the variance of the patches;
        - `topographic_error`: share of patches whose two nearest units are not neighbours on the map (Kiviluoto 1996);
        - `units`, `units_used`;
        - `entropy_bits`: entropy of the units' use; `perplexity`: the number of equally used units with this entropy;
        - `most_used`, `least_used`: pairs of a unit and its count.
        """
        use = self.counts[self.counts > 0].double() / self.counts.sum()
        entropy = float(-(use * use.log2()).sum())
        ranked = self.counts.sort(descending=True, stable=True).indices
        return {
            "quantization_error": self.error / codebook.config.dim,
            "share_of_variance": self.error / max(self.variance, 1e-12),
            "topographic_error": self.pairs.topographic_error(codebook.coordinates),
            "units": len(codebook),
            "units_used": len(use),
            "entropy_bits": entropy,
            "perplexity": 2**entropy,
            "most_used": [[int(unit), int(self.counts[unit])] for unit in ranked[:EXTREMES]],
            "least_used": [[int(unit), int(self.counts[unit])] for unit in ranked.flip(0)[:EXTREMES]],
        }


@torch.no_grad()
def take_census(codebook: Codebook, batches: Iterable[torch.Tensor]) -> Census:
    """Count the patches of feature maps (B, C, H, W) of all processes in one pass; process 0 alone gets the pairs."""
    counts, pairs = torch.zeros(len(codebook), dtype=torch.int64), PairCounts(len(codebook))
    sums = torch.zeros(2, dtype=torch.float64)  # of errors, and of squares
    total = torch.zeros(codebook.config.dim, dtype=torch.float64)
    centre = codebook.centre  # a large mean would cost precision
    for fmap in batches:
        patches = codebook.patchify(fmap.to(codebook.units.device))
        errors, indices = codebook.nearest(patches, k=2)
        counts += indices[:, 0].bincount(minlength=len(codebook)).cpu()
        pairs.add(indices)
        patches = patches - centre
        sums += torch.stack((errors[:, 0].sum(), patches.square().sum())).cpu()
        total += patches.sum(0).cpu()
    distributed.all_reduce(counts)
    distributed.all_reduce(sums, total)
    pairs.pool()
    error, squares = (sums / counts.sum()).tolist()
    return Census(counts, pairs, error, squares - (total / counts.sum()).square().sum().item())


def count_maps(
    codebook: Codebook, dataset: FeatureMapDataset, indices: np.ndarray, batch_size: int, title: str
) -> Census:
    """Take the census of these feature maps, in all processes together, and keep its counts in the codebook."""
    parts = distributed.my_items(chunks(indices, batch_size))
    batches = BatchLoader(dataset, parts, choose_workers(None, codebook.units.device))
    census = take_census(codebook, progress(batches, unit="batch", desc=title))
    codebook.counts.copy_(census.counts)
    return census


@torch.no_grad()
def decoded_psnr(
    autoencoder: Autoencoder, codebook: Codebook, dataset: FeatureMapDataset, indices: np.ndarray
) -> dict[str, float]:
    """Peak signal-to-noise ratio, in dB, of images decoded from feature maps before and after quantization.

    Compares with the images of the feature maps `indices`, but for mirrored ones. Returns {} if there are none. Raises
    `UserError` naming an image whose size has changed.
    """
    if len(indices) == 0:  # nothing is held out
        return {}
    indices = dataset.with_image(dataset.unflipped(indices))
    if len(indices) == 0:
        log.warning("the images of the held-out feature maps are missing: their PSNR is not measured")
        return {}
    errors = torch.zeros(2, dtype=torch.float64)
    for batch in chunks(indices, BATCH):
        fmap = dataset[batch].to(codebook.units.device)
        images = dataset.images(batch, autoencoder.scale).to(fmap.device)
        for kind, given in enumerate((fmap, codebook.quantize(fmap))):
            error = (autoencoder.decode(given) - images).square().mean(dim=(1, 2, 3))
            errors[kind] += error.sum().cpu()
    before, after = (psnr(float(error)) for error in errors / len(indices))
    return {"psnr_before_quantization": before, "psnr_after_quantization": after}


def table(**columns: Statistics) -> str:
    rows = [["", *(name.replace("_", " ") for name in columns)]]
    for key in next(iter(columns.values())):
        rows.append([key.replace("_", " "), *(_cell(column[key]) for column in columns.values())])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join((name.ljust(widths[0]), *map(str.rjust, cells, widths[1:]))) for name, *cells in rows)


def _cell(value: float | int | list[list[int]]) -> str:
    if isinstance(value, list):
        return " ".join(f"{unit}:{count}" for unit, count in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
