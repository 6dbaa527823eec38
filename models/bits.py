"""The bits of an image: of its condition and labels, which a base stage is given, and of its tokens in each stage."""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F

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


def label_bits(counted: torch.Tensor, labels: torch.Tensor, number: int) -> float:
    """Mean bits of label sets (M, L), rows of indices below `number`, by those of the training maps (N, L).

    A set costs the logarithm of its share among the training maps, to which each distinct set adds one for new sets
    (method C of Moffat 1990). A new set costs that share, and for each label a yes or a no by the label's share.
    """
    rows, inverse = torch.cat((counted, labels)).unique(dim=0, return_inverse=True)
    before, own = inverse.split([len(counted), len(labels)])
    counts = before.bincount(minlength=len(rows)).double()
    distinct = (counts > 0).sum().double()
    shares = (counted.flatten().bincount(minlength=number + 1)[:number].double() + 0.5) / (len(counted) + 1)
    extra_bits = F.pad((1 / shares - 1).log2(), (0, 1))[labels].sum(1)  # by which a yes costs more than a no
    new = extra_bits - (1 - shares).log2().sum() - distinct.log2()
    seen = counts[own]
    return float(((len(counted) + distinct).log2() + torch.where(seen > 0, -seen.log2(), new)).mean())


def given_bits(
    coarse: Codebook, given: torch.Tensor, counted: torch.Tensor | None = None, number: int = 0
) -> dict[str, float]:
    """Bits of the `condition` of held-out images, and of their labels, as `label`, if the base stage uses labels.

    `given` (M, 1 + L) are the condition of each image, a unit of `coarse`, and its labels, `counted` (N, L) the labels
    of the training maps, `number` how many labels there are. Empty without counts, or if nothing is held out.
    """
    if coarse.counts.sum() == 0 or len(given) == 0:
        return {}
    given = given.cpu().long()
    bits = {"condition": code_bits(coarse.counts.cpu(), given[:, 0])}
    return bits if counted is None else bits | {"label": label_bits(counted.cpu().long(), given[:, 1:], number)}


def with_bits(numbers: dict[str, float], config: StageConfig, earlier: float | None) -> dict[str, float]:
    """The losses of a stage, with the bits that an image costs in it and, if known, in all stages up to it."""
    if not numbers:
        return numbers
    stage_bits = numbers["val_bits"] * config.fine.length
    image_bits = {} if earlier is None else {"image_bits": earlier + stage_bits}
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
