"""The bits that the tokens of an image cost in each stage."""

import itertools

import numpy as np
import torch

from models.bits import given_bits
from models.codebook import Codebook
from models.stage import Stage
from utils.core.files import UserError
from utils.data.batches import chunks
from utils.data.dataset import FeatureMapDataset
from utils.runs.folders import OutputFolder
from utils.runtime import distributed
from utils.runtime.device import autocast
from utils.runtime.progress import progress


@torch.no_grad()
def stage_bits(
    stage: Stage, coarse: Codebook, fine: Codebook, maps: FeatureMapDataset, indices: np.ndarray, batch_size: int
) -> float:
    """Mean bits per feature map of its tokens in a stage, given the true coarse tokens and the true earlier tokens.

    Training measures the same. A base stage is given labels as well. Each process measures some of the maps.
    """
    device, labels, sums = coarse.units.device, labels_for(stage, maps), []
    for part in progress(distributed.my_items(chunks(indices, batch_size)), unit="batch", desc="bits"):
        fmap = maps[part].to(device)
        # Outside of autocast, whose rounding would often change which unit is the nearest.
        given, targets = torch.cat((coarse.find_bmu(fmap), labels[part].to(device)), dim=1), fine.find_bmu(fmap)
        with autocast(device, "auto"):
            sums.append(float(stage(given, targets)["bits"]) * len(part))
    total = sum(itertools.chain.from_iterable(distributed.gather(sums)))
    return total / len(indices) * stage.config.fine.length


@torch.no_grad()
def start_bits(
    stage: Stage, coarse: Codebook, maps: FeatureMapDataset, indices: np.ndarray, training: np.ndarray, batch_size: int
) -> dict[str, float]:
    """Mean bits of what a base stage is given of these feature maps: the condition, and its labels if it uses any."""
    device, number, labels = coarse.units.device, len(stage.config.labels), labels_for(stage, maps)
    conditions = [coarse.find_bmu(maps[part].to(device)).cpu() for part in chunks(indices, batch_size)]
    given = torch.cat((torch.cat(conditions), labels[indices]), dim=1)
    return given_bits(coarse, given, labels[training] if number else None, number)


def labels_for(stage: Stage, maps: FeatureMapDataset) -> torch.Tensor:
    """The label sets (N, L) that follow the coarse tokens of each feature map; L is 0 if the stage uses none.

    A label that the stage does not know, since no training image has it, is left out. Raises `UserError` if the maps
    lack one that it knows.
    """
    names = stage.config.labels
    if not names:
        return torch.empty(len(maps), 0, dtype=torch.int64)
    if not set(names) <= set(maps.label_names(np.arange(len(maps)))):
        raise UserError(
            f"{OutputFolder(maps.folder).dataset}: its labels are not those that the base stage was trained on; "
            "use the files of one run, or train the stage again"
        )
    return torch.from_numpy(maps.label_sets(names).astype(np.int64))
