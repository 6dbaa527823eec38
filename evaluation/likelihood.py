"""The bits that the tokens of an image cost in each stage."""

import numpy as np
import torch

from models.cascade import Stage
from models.codebook import Codebook
from utils.dataset import FeatureMapDataset, chunks
from utils.device import autocast
from utils.files import UserError
from utils.progress import progress
from utils.run_folder import StepFolder


@torch.no_grad()
def stage_bits(
    stage: Stage, coarse: Codebook, fine: Codebook, dataset: FeatureMapDataset, indices: np.ndarray, batch_size: int
) -> float:
    """Mean bits per feature map of its tokens in a stage, given the true coarse tokens and the true earlier tokens.

    Training measures the same. A base stage with labels is given those of the images.
    """
    device = coarse.units.device
    labels = labels_for(stage, dataset)
    total = 0.0
    for part in progress(chunks(indices, batch_size), unit="batch", desc="bits"):
        fmap = dataset[part].to(device)
        # Outside of autocast, whose rounding would often change which unit is the nearest.
        given, targets = torch.cat((coarse.find_bmu(fmap), labels[part].to(device)), dim=1), fine.find_bmu(fmap)
        with autocast(device, "auto"):
            total += float(stage(given, targets)["bits"]) * len(part)
    return total / len(indices) * stage.config.fine.length


def labels_for(stage: Stage, dataset: FeatureMapDataset) -> torch.Tensor:
    """The labels (N, L) that follow the coarse tokens of each feature map; L is 0 if the stage uses none."""
    if not stage.config.labels:
        return torch.empty(len(dataset), 0, dtype=torch.int64)
    names, labels = dataset.label_indices()
    if names != stage.config.labels:
        raise UserError(
            f"{StepFolder(dataset.folder).dataset}: its labels are not those that the base stage was trained on; "
            "use the files of one run, or train the stage again"
        )
    return torch.from_numpy(labels)
