"""Bits that the tokens of an image cost, stage by stage."""

import numpy as np
import torch

from models.cascade import Stage
from models.codebook import Codebook
from utils.dataset import FeatureMapDataset, chunks
from utils.device import autocast
from utils.files import UserError
from utils.progress import progress


@torch.no_grad()
def stage_bits(
    stage: Stage, coarse: Codebook, fine: Codebook, dataset: FeatureMapDataset, indices: np.ndarray, batch_size: int
) -> float:
    """Mean bits of the tokens of these feature maps in a stage, given the true coarse tokens and the true ones before.

    As a trainer measures it. A base stage with labels is told those of the images.
    """
    device = coarse.units.device
    labels = labels_for(stage, dataset)
    total = 0.0
    for part in progress(chunks(indices, batch_size), unit="batch", desc="bits"):
        fmap = dataset[part].to(device)
        # Outside of autocast, in which another unit would often seem the nearest.
        given, targets = torch.cat((coarse.find_bmu(fmap), labels[part].to(device)), dim=1), fine.find_bmu(fmap)
        with autocast(device, "auto"):
            total += float(stage(given, targets)["bits"]) * len(part)
    return total / len(indices) * stage.config.fine.length


def labels_for(stage: Stage, dataset: FeatureMapDataset) -> torch.Tensor:
    """The labels of each map as the stage's coarse tokens end with them, (N, L); L is 0 where it uses none."""
    if not stage.config.labels:
        return torch.empty(len(dataset), 0, dtype=torch.int64)
    names, labels = dataset.label_indices()
    if names != stage.config.labels:
        raise UserError(
            f"{dataset.folder}/dataset.json: its labels are not those that the base stage has learned; "
            "give the files of one run, or train the stage again"
        )
    return torch.from_numpy(labels)
