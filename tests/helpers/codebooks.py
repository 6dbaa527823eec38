"""Small codebooks for tests, and their patches cut and measured slowly."""

import torch

from models.codebook import Codebook, CodebookConfig
from tests.helpers.transformers import generator

DEFAULTS = {"model_lr": 0.05, "image_H": 4, "image_W": 6, "image_C": 2, "patch_H": 2, "patch_W": 3}
DEFAULTS |= {"num_embeddings": 7, "neighbourhood_step": 5}
# Feature maps of 1 × columns numbers, each number a patch, or each pair of channels.
LINE = {"image_H": 1, "image_C": 1, "patch_H": 1, "patch_W": 1}
PAIRS = {**LINE, "image_C": 2}


def config(**changes):
    return CodebookConfig(**DEFAULTS | changes)


def build(units=None, seed=0, **changes):
    """A codebook with these units, or with random ones of whole numbers, so that distances are exact in float32."""
    if units is not None:
        changes["num_embeddings"] = len(units)
    built = Codebook(config(**changes))
    if units is None:
        units = torch.randint(-8, 9, built.units.shape, generator=generator(seed))
    built.units.copy_(torch.as_tensor(units))
    return built


def whole_maps(number, codebook, seed=1):
    return torch.randint(-8, 9, (number, *codebook.fmap_shape), generator=generator(seed)).float()


def slow_patches(fmap, settings):
    """Every patch of the maps in raster order, cut out one by one, in float64."""
    cells = []
    for one in fmap.double():
        for top in range(0, settings.image_H, settings.patch_H):
            for left in range(0, settings.image_W, settings.patch_W):
                cells.append(one[:, top : top + settings.patch_H, left : left + settings.patch_W].flatten())
    return torch.stack(cells)


def slow_distances(patches, units):
    """Squared distances (N, K) in float64."""
    return (patches[:, None].double() - units[None].double()).square().sum(2)
