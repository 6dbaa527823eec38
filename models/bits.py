"""What an image costs in bits: its condition and label, which a base stage is given, and its tokens in each stage."""

import logging
from pathlib import Path

import torch

from models.codebook import Codebook
from models.stage import KIND, StageConfig
from utils.core.provenance import check_origin
from utils.runs.checkpoint import load_checkpoint, measured

log = logging.getLogger(__name__)


def code_bits(counts: torch.Tensor, symbols: torch.Tensor) -> float:
    """Mean bits of symbols (N,) below K, if each costs what its share in `counts` (K,) of the training maps says.

    Half of one is added to each count (Krichevsky and Trofimov 1981): a symbol that no training map has costs much,
    but not infinitely much.
    """
    smoothed = counts.double() + 0.5
    return float((smoothed.sum() / smoothed).log2()[symbols].mean())


def given_bits(coarse: Codebook, given: torch.Tensor, label_counts: torch.Tensor | None) -> dict[str, float]:
    """Bits of what a base stage is given of held-out images: `condition`, and `label` if it uses labels.

    `given` (N, 1 + L) are the condition of each image, a unit of `coarse`, and its labels; `label_counts` says how many
    training maps have each label first, and how many have none. Empty if nothing was counted, or nothing is held out.
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
    """Bits that an image costs before a cascade stage that reads `coarse`, None if unknown.

    They are among what was measured of the stage before, beside its checkpoint `previous`. Raises `UserError` if that
    stage writes another codebook.
    """
    if previous is None:
        return None
    content = load_checkpoint(previous, KIND, memory_map=True)
    check_origin(previous, {"codebook": content["trained_from"]["hr_codebook"]}, {"codebook": coarse.fingerprint})
    bits = measured(previous, content["fingerprint"]).get("image_bits")
    if bits is None:
        log.warning("%s: nothing was measured of it; the bits of an image over all stages are not reported", previous)
    return bits
