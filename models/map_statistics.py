"""What a map is worth, measured over a data set."""

import logging
from collections.abc import Iterable

import numpy as np
import torch

from models.autoencoder import Autoencoder, psnr
from models.codebook import Codebook
from models.map_order import PairCounts
from utils.dataset import FeatureMapDataset, chunks

log = logging.getLogger(__name__)

BATCH = 32  # images decoded at once
EXTREMES = 3  # units that are told as the most used, and as the least used
Statistics = dict[str, float | int | list[list[int]]]


class Census:
    """One pass over batches of feature maps (B, C, H, W): which units are nearest to the patches, and how near.

    Keeps in the codebook how often each unit was used.
    """

    @torch.no_grad()
    def __init__(self, codebook: Codebook, batches: Iterable[torch.Tensor]) -> None:
        self.codebook = codebook
        self.pairs = PairCounts(len(codebook))
        counts = torch.zeros_like(codebook.counts)
        self.error = torch.zeros((), dtype=torch.float64)  # sum of squared distances
        total, squares = torch.zeros(codebook.config.dim, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for fmap in batches:
            patches = codebook.patchify(fmap.to(codebook.units.device))
            errors, indices = codebook.nearest(patches, k=2)
            counts += torch.bincount(indices[:, 0], minlength=len(codebook))
            self.pairs.add(indices)
            self.error += errors[:, 0].sum().cpu()
            total += patches.sum(0).cpu()
            squares += patches.square().sum().cpu()
        codebook.counts.copy_(counts)
        self.counts = counts.cpu()
        self.number = int(counts.sum())  # of patches
        self.variance = squares / self.number - (total / self.number).square().sum()

    def statistics(self) -> Statistics:
        """The numbers of the codebook as it now lies on its map.

        - `quantization_error`: mean squared error of a number of the feature map;
        - `share_of_variance`: the same as a share of the patches' variance;
        - `topographic_error`: share of patches whose two nearest units are no neighbours on the map (Kiviluoto 1996);
        - `units`, `units_used`; `entropy_bits`: of how they are used; `perplexity`: 2 to the power of that, the number
          of units in even use that would have this entropy;
        - `most_used`, `least_used`: pairs of a unit and its count.
        """
        counts = self.counts
        use = counts[counts > 0].double() / self.number
        entropy = float(-(use * use.log2()).sum())
        ranked = counts.sort(descending=True, stable=True).indices
        return {
            "quantization_error": float(self.error / (self.number * self.codebook.config.dim)),
            "share_of_variance": float(self.error / self.number / self.variance.clamp(min=1e-12)),
            "topographic_error": self.pairs.topographic_error(self.codebook.coordinates),
            "units": len(counts),
            "units_used": len(use),
            "entropy_bits": entropy,
            "perplexity": 2**entropy,
            "most_used": [[int(unit), int(counts[unit])] for unit in ranked[:EXTREMES]],
            "least_used": [[int(unit), int(counts[unit])] for unit in ranked.flip(0)[:EXTREMES]],
        }


@torch.no_grad()
def decoded_psnr(
    autoencoder: Autoencoder, codebook: Codebook, dataset: FeatureMapDataset, indices: np.ndarray
) -> dict[str, float]:
    """Peak signal-to-noise ratio, in dB, of images decoded from feature maps before and after quantization.

    Against the images that the maps `indices` of the data set were made of, mirror images left out; nothing where no
    image is there. Raises `UserError` naming an image that has changed its size.
    """
    if len(indices) == 0:  # nothing is held out
        return {}
    indices = dataset.with_image(dataset.unflipped(indices))
    if len(indices) == 0:
        log.warning("the images of the held-out feature maps are not there: their PSNR is not measured")
        return {}
    errors = torch.zeros(2, dtype=torch.float64)
    for batch in chunks(indices, BATCH):
        fmap = dataset[batch].to(codebook.units.device)
        images = dataset.images(batch, autoencoder.scale).to(fmap.device)
        for kind, given in enumerate((fmap, codebook.lookup(codebook.find_bmu(fmap)))):
            error = (autoencoder.decode(given) - images).square().mean(dim=(1, 2, 3))
            errors[kind] += error.sum().cpu()
    before, after = (psnr(float(error)) for error in errors / len(indices))
    return {"psnr_before_quantization": before, "psnr_after_quantization": after}


def table(**columns: Statistics) -> str:
    """Statistics as lines of text, one column each, under their names."""
    rows = [["", *(name.replace("_", " ") for name in columns)]]
    for key in next(iter(columns.values())):
        rows.append([key.replace("_", " "), *(_cell(column[key]) for column in columns.values())])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip


def _cell(value: float | int | list[list[int]]) -> str:
    if isinstance(value, list):
        return " ".join(f"{unit}:{count}" for unit, count in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
