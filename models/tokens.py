"""The tokens of a data set of feature maps, computed once for each codebook and kept in a memory-mapped file."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from models.codebook import Codebook
from utils.core.files import UserError
from utils.core.lock import lock
from utils.core.provenance import Origin, same_key
from utils.data.batches import BatchLoader, TokenDataset, chunks
from utils.data.dataset import FeatureMapDataset
from utils.runs.checkpoint import load_checkpoint, save_checkpoint
from utils.runtime import distributed
from utils.runtime.device import choose_workers
from utils.runtime.progress import progress

log = logging.getLogger(__name__)

KIND = "tokens"
BATCH = 64  # feature maps quantized at once


def load_tokens(dataset: FeatureMapDataset, coarse: Codebook, fine: Codebook, device: torch.device) -> TokenDataset:
    """The tokens of all feature maps of a data set, by two codebooks.

    Each codebook has a file of uint16 in `tokens/`, whose name and content hold the fingerprints of the codebook and of
    the data. If one is missing or does not match, the feature maps are read, once for both, and quantized.
    """
    codebooks = (coarse, fine)
    if _missing(dataset, codebooks):  # else no lock, so that the data set may be read-only
        with lock(dataset.folder / "tokens", wait=True) if distributed.is_main() else nullcontext():
            missing = _missing(dataset, codebooks)  # another job may have written them meanwhile
            for codebook, tokens in zip(missing, quantize(dataset, missing, device) if missing else (), strict=True):
                if distributed.is_main():
                    path = token_path(dataset, codebook)
                    save_checkpoint(path, KIND, codebook.config, {"tokens": tokens}, origin_of(dataset, codebook))
        distributed.barrier()
    log.info("tokens %s", " ".join(str(token_path(dataset, codebook)) for codebook in codebooks))
    return TokenDataset(*(read_tokens(dataset, codebook) for codebook in codebooks))


def _missing(dataset: FeatureMapDataset, codebooks: Sequence[Codebook]) -> list[Codebook]:
    is_main = distributed.is_main()
    missing = [number for number, each in enumerate(codebooks) if is_main and read_tokens(dataset, each) is None]
    return [codebooks[number] for number in distributed.gather(missing)[0]]


def origin_of(dataset: FeatureMapDataset, codebook: Codebook) -> Origin:
    data = dataset.fingerprint
    return {"data": data["index"] + data["files"], "codebook": codebook.fingerprint}


def token_path(dataset: FeatureMapDataset, codebook: Codebook) -> Path:
    return dataset.folder / "tokens" / f"{'_'.join(origin_of(dataset, codebook).values())}.pt"


@torch.no_grad()
def quantize(dataset: FeatureMapDataset, codebooks: list[Codebook], device: torch.device) -> list[torch.Tensor]:
    """The tokens of all feature maps, (N, T) uint16 for each codebook, in process 0; each process quantizes a share."""
    batches = distributed.my_items(chunks(np.arange(len(dataset)), BATCH))
    shapes = [(sum(map(len, batches)), *codebook.config.grid) for codebook in codebooks]
    tokens = [np.empty((number, height * width), dtype=np.uint16) for number, height, width in shapes]
    loader = BatchLoader(dataset, batches, choose_workers(None, device))
    for number, fmap in enumerate(progress(loader, unit="batch", desc="quantizing")):
        for codebook, rows in zip(codebooks, tokens, strict=True):
            rows[number * BATCH :][: len(fmap)] = codebook.find_bmu(fmap.to(device)).cpu().numpy()
    return [distributed.gather_rows(torch.from_numpy(rows)) for rows in tokens]


def read_tokens(dataset: FeatureMapDataset, codebook: Codebook) -> np.ndarray | None:
    """The memory-mapped tokens (N, T) in the file of `token_path`, or None if it is missing or does not match."""
    path = token_path(dataset, codebook)
    if not path.exists():
        return None
    try:
        content = load_checkpoint(path, KIND, memory_map=True)
    except UserError as error:
        log.warning("%s; computing its tokens again", error)
        return None
    tokens = content["model"]["tokens"]
    return tokens.numpy() if same_key(content["trained_from"], origin_of(dataset, codebook)) else None
