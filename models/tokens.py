"""The tokens of a data set of feature maps, by a codebook or drawn by a stage, computed once and kept in a file."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from models.codebook import Codebook
from models.stage import DRAWS, Stage
from utils.core.files import UserError
from utils.core.lock import lock
from utils.core.provenance import Origin, same
from utils.data.batches import BatchLoader, TokenDataset, chunks, to_device
from utils.data.dataset import FeatureMapDataset
from utils.runs.checkpoint import load_checkpoint, save_checkpoint
from utils.runtime import distributed
from utils.runtime.device import choose_workers
from utils.runtime.progress import progress
from utils.sampling import uniform_draws

log = logging.getLogger(__name__)

KIND = "tokens"
BATCH = 64  # feature maps quantized, or drawn over, at once
DRAWN = 2**17  # in place of the number of a stage: the draws of `load_drawn`


def load_tokens(dataset: FeatureMapDataset, coarse: Codebook, fine: Codebook, device: torch.device) -> TokenDataset:
    """The tokens of all feature maps of a data set, by two codebooks; the maps are read once for those not kept."""
    return TokenDataset(*keep(dataset, (coarse, fine), lambda missing: quantize(dataset, missing, device)))


def load_drawn(
    dataset: FeatureMapDataset, stage: Stage, coarse: Codebook, fine: Codebook, seed: int, device: torch.device
) -> np.ndarray:
    """The grids that a stage between two codebooks draws over the tokens of all maps (`Stage.redraw`): (N, M·T)."""
    tokens, length = load_tokens(dataset, coarse, fine, device), stage.config.fine.length
    if stage.config.labels:
        sets = dataset.label_sets(stage.config.labels)
        tokens = TokenDataset(np.concatenate((tokens.coarse, sets), axis=1), tokens.fine)

    def compute(_: list[Stage]) -> list[torch.Tensor]:
        batches = distributed.own(chunks(np.arange(len(tokens)), BATCH))
        drawn = torch.empty(sum(map(len, batches)), DRAWS * length, dtype=torch.uint16)
        for number, batch in enumerate(progress(batches, unit="batch", desc="drawing")):
            grids = stage.redraw(*to_device(tokens[batch], device), uniform_draws(seed, DRAWN, batch, length, DRAWS))
            drawn[number * BATCH :][: len(batch)] = grids.flatten(1).cpu()
        return [distributed.gather_rows(drawn)]

    return keep(dataset, [stage], compute, str(seed))[0]


def keep(
    dataset: FeatureMapDataset,
    models: Sequence[Codebook | Stage],
    compute: Callable[..., list[torch.Tensor]],
    *more: str,
) -> list[np.ndarray]:
    """Memory-mapped arrays (N, …) of uint16 that codebooks or stages give; `compute(missing)` gives those not kept.

    Each has a file in `tokens/`, whose name and content hold the key: the fingerprints of the data and of the model,
    and perhaps `more`.
    """
    keys = {model.fingerprint: key_of(dataset, model.fingerprint, *more) for model in models}

    def find_missing() -> list[Codebook | Stage]:  # as process 0 sees them
        missing = [model.fingerprint for model in models if read_tokens(dataset, keys[model.fingerprint]) is None]
        return [model for model in models if model.fingerprint in distributed.gather(missing)[0]]

    if find_missing():  # else no lock, so that the data set may be read-only
        with lock(dataset.folder / "tokens", wait=True) if distributed.is_main() else nullcontext():
            missing = find_missing()  # another job may have written them meanwhile
            for model, tokens in zip(missing, compute(missing) if missing else (), strict=True):
                if distributed.is_main():
                    key = keys[model.fingerprint]
                    save_checkpoint(token_path(dataset, key), KIND, model.config, {"tokens": tokens}, key)
        distributed.wait()
    log.info("tokens %s", " ".join(str(token_path(dataset, key)) for key in keys.values()))
    return [read_tokens(dataset, key) for key in keys.values()]


def key_of(dataset: FeatureMapDataset, fingerprint: str, *more: str) -> Origin:
    """The key of the tokens that a codebook or a stage with this fingerprint gives."""
    data = dataset.fingerprint
    return {"data": data["index"] + data["files"], "codebook": "_".join((fingerprint, *more))}


def token_path(dataset: FeatureMapDataset, key: Origin) -> Path:
    """The file of the tokens with a key."""
    return dataset.folder / "tokens" / f"{'_'.join(key.values())}.pt"


@torch.no_grad()
def quantize(dataset: FeatureMapDataset, codebooks: list[Codebook], device: torch.device) -> list[torch.Tensor]:
    """The tokens of all feature maps, (N, T) uint16 for each codebook, in process 0; each process quantizes a share."""
    batches = distributed.own(chunks(np.arange(len(dataset)), BATCH))
    shapes = [(sum(map(len, batches)), *codebook.config.grid) for codebook in codebooks]
    tokens = [np.empty((number, height * width), dtype=np.uint16) for number, height, width in shapes]
    loader = BatchLoader(dataset, batches, choose_workers(None, device))
    for number, fmap in enumerate(progress(loader, unit="batch", desc="quantizing")):
        for codebook, rows in zip(codebooks, tokens, strict=True):
            rows[number * BATCH :][: len(fmap)] = codebook.find_bmu(fmap.to(device)).cpu().numpy()
    return [distributed.gather_rows(torch.from_numpy(rows)) for rows in tokens]


def read_tokens(dataset: FeatureMapDataset, key: Origin) -> np.ndarray | None:
    """The memory-mapped tokens (N, …) with a key, or None if their file is missing or does not match."""
    path = token_path(dataset, key)
    if not path.exists():
        return None
    try:
        content = load_checkpoint(path, KIND, memory_map=True)
    except UserError as error:
        log.warning("%s; computing its tokens again", error)
        return None
    tokens = content["model"]["tokens"]
    return tokens.numpy() if same(content["trained_from"], key) else None
