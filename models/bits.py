"""The bits of an image: of its condition and label, which a base stage is given, and of its tokens in each stage."""

import logging
from pathlib import Path

import torch

from models.codebook import Codebook
from models.stage import KIND, StageConfig
from utils.core.provenance import check_origin
from utils.runs.checkpoint import load_checkpoint, measured

log = logging.getLogger(__name__)


def code_bits(counts: torch.Tensor, symbols: torch.Tensor) -> float:
    """Mean bits of symbols (N,) below K, by their shares in `counts` (K,) of the training maps."""
    # Krichevsky and Trofimov 1981: a symbol that no training map has costs finitely many bits.
    smoothed = counts.double() + 0.5
    return float((smoothed.sum() / smoothed).log2()[symbols].mean())


def given_bits(coarse: Codebook, given: torch.Tensor, label_counts: torch.Tensor | None) -> dict[str, float]:
    """Bits of the `condition` of held-out images, and of their `label` if the base stage uses labels.

    `given` (N, 1 + L) are the condition of each image, a unit of `coarse`, and its labels; `label_counts` is the number
    of training maps with each label first, and of those with none. Empty without counts, or if nothing is held out.
    """
    if coarse.counts.sum() == 0 or len(given) == 0:
        return {}
    given = given.cpu().long()
    bits = {"condition": code_bits(coarse.counts.cpu(), given[:, 0])}
    return bits if label_counts is None else bits | {"label": code_bits(label_counts, given[:, 1])}


def with_bits(numbers: dict[str, float], config: StageConfig, bits_before: float | None) -> dict[str, float]:
    """The losses of a stage, with the bits that an image costs in it and, if known, in all stages up to it."""
    if not numbers:
        return numbers
    stage_bits = numbers["val_bits"] * config.fine.length
    image_bits = {} if bits_before is None else {"image_bits": bits_before + stage_bits}
    return numbers | {"stage_bits": stage_bits} | image_bits


def bits_before(coarse: Codebook, previous: Path | None) -> float | None:
    """Bits of an image in all stages before the one that reads `coarse`, None if unknown.

    They were measured with the checkpoint `previous`. Raises `UserError` if its stage writes another codebook.
    """
    if previous is None:
        return None
    content = load_checkpoint(previous, KIND, memory_map=True)
    check_origin(previous, {"codebook": content["trained_from"]["hr_codebook"]}, {"codebook": coarse.fingerprint})
    bits = measured(previous, content["fingerprint"]).get("image_bits")
    if bits is None:
        log.warning("%s: nothing was measured of it; the bits of an image over all stages are not reported", previous)
    return bits
