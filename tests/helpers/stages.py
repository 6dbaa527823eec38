"""Two small stages, their codebooks and tokens, for the tests of several files."""

import dataclasses
from pathlib import Path

import torch

from models.codebook import Codebook, CodebookConfig
from models.stage import Stage, StageConfig
from tests.helpers.transformers import config, generator

TRANSFORMER = config(window=3)


def codebook(patch, units, seed=0):
    """A codebook of feature maps (2, 4, 4), with counts 1, 2, 3, …"""
    built = Codebook(CodebookConfig(0.1, 4, 4, 2, patch, patch, units, 10))
    built.units.normal_(generator=generator(seed + units))
    built.counts.copy_(torch.arange(1, units + 1))
    return built


CODEBOOKS = [codebook(4, 5), codebook(2, 6), codebook(1, 7)]


def build(number, seed=0, labels=(), **changes):
    """Stage 0 writes 2×2 tokens of 6 from a condition of 5; stage 1 writes 4×4 tokens of 7 from those."""
    config = dataclasses.replace(TRANSFORMER, **changes)
    labels = (labels, len(labels), 20) if labels else ()
    stage = Stage(StageConfig.between(config, *CODEBOOKS[number : number + 2], Path("c.pt"), number == 0, *labels))
    with torch.no_grad():
        for parameter in stage.parameters():
            noise = torch.randn(parameter.shape, generator=generator(seed)) * parameter.shape[-1] ** -0.5
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 1.5 * noise)
            seed += 1
    return stage.eval()


def zeros(config, number):
    """Coarse and fine tokens of so many images, all 0, as training reads them."""
    lengths = config.coarse.length + (config.most_labels or 0), config.fine.length
    return tuple(torch.zeros(number, length, dtype=torch.int64) for length in lengths)


def tokens_for(number, images, seed=1):
    """Coarse and fine tokens of some images for a stage."""
    lengths = [1, 4, 16][number : number + 2]
    units = [5, 6, 7][number : number + 2]
    draw = generator(seed)
    return [torch.randint(k, (images, length), generator=draw) for k, length in zip(units, lengths, strict=True)]
