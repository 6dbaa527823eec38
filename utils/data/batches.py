"""Batches: the order of an epoch, and how batches are loaded, cut and moved."""

import signal
from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset

from utils.core.files import UserError
from utils.runtime.cli import stop_signals
from utils.runtime.distributed import Share, share_of

Batch = torch.Tensor | tuple[torch.Tensor, ...]


class TokenDataset(Dataset):
    """The tokens of every feature map in two codebooks. `dataset[indices]` is a pair (B, S), (B, T), int64."""

    def __init__(self, coarse: np.ndarray, fine: np.ndarray) -> None:
        self.coarse, self.fine = coarse, fine

    def __len__(self) -> int:
        return len(self.fine)

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.from_numpy(tokens[indices].astype(np.int64)) for tokens in (self.coarse, self.fine))


class EpochSampler:
    """The indices of this process's share in the batch of each step, from `start` to `stop`.

    Each epoch is a new permutation of `indices`; its last batch may be smaller. A batch is a function of (seed, step),
    so a resumed run sees the same ones. In place of an empty share there is one item, which does not count.
    """

    def __init__(self, indices: np.ndarray, batch_size: int, seed: int, start: int, stop: int) -> None:
        self.indices, self.batch_size, self.seed, self.start, self.stop = indices, batch_size, seed, start, stop
        self.per_epoch = steps_per_epoch(len(indices), batch_size)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[np.ndarray]:
        order = None
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, self.per_epoch)
            if order is None or position == 0:
                order = np.random.default_rng([self.seed & 0xFFFFFFFF, epoch]).permutation(self.indices)
            share, first = self.share(step), position * self.batch_size
            yield order[first + share.first :][: share.number] if share.number else order[first:][:1]

    def share(self, step: int) -> Share:
        return share_of(min(self.batch_size, len(self.indices) - step % self.per_epoch * self.batch_size))


def steps_per_epoch(num_items: int, batch_size: int) -> int:
    return -(-num_items // batch_size)


def num_items(batch: Batch) -> int:
    return len(tree_leaves(batch)[0])


def split_batch(batch: Batch, size: int) -> list[Batch]:
    starts = range(0, num_items(batch), size)
    return [tree_map(lambda part, start=start: part[start : start + size], batch) for start in starts]


def to_device(batch: Batch, device: torch.device) -> Batch:
    is_cuda = device.type == "cuda"  # elsewhere the source of an asynchronous copy might change first
    return tree_map(lambda part: part.to(device, non_blocking=is_cuda), batch)


def chunks(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


class BatchLoader(DataLoader):
    """Loads `dataset[batch]` for each array of `batches`, in `num_workers` processes or in this one."""

    def __init__(
        self, dataset: Dataset, batches: Collection[np.ndarray], num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        options = {"num_workers": num_workers, "pin_memory": pin_memory, "worker_init_fn": _ignore_stop}
        dataset = _ErrorsAsValues(dataset) if num_workers else dataset
        super().__init__(dataset, sampler=batches, batch_size=None, **options)

    def __iter__(self) -> Iterator[object]:
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            yield batch


class _ErrorsAsValues(Dataset):
    """Returns the error of a bad file as a value: raised in a worker, it would arrive as a traceback in a message."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: np.ndarray) -> object:
        try:
            return self.dataset[indices]
        except (UserError, OSError) as error:
            return error


def _ignore_stop(_: int) -> None:
    """A signal to stop may reach every process of a run; only the parent acts and ends the others."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
