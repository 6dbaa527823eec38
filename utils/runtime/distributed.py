"""The processes of one job, as torchrun starts them: the rank of this one, and what they exchange.

Without torchrun there is one process, and nothing here does anything. Nothing else asks the environment about this.
"""

import hashlib
import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.core.files import ROOT, UserError
from utils.core.provenance import difference

T = TypeVar("T")
HANDSHAKE = timedelta(seconds=60)  # time for all processes to connect
PATIENCE = timedelta(days=7)  # how long the others wait while one measures, draws and saves
LOST = "another process of this job has died; what it has saved is intact: go on with the same command and --resume"
MISSING = f"not all processes of this job have connected within {HANDSHAKE.seconds} s"

_store: dist.Store | None = None
_has_agreed = False


@dataclass(frozen=True)
class Share:
    """The items of this process among the `total` of all: `number` of them, from index `first` on."""

    first: int
    number: int
    total: int


def connect() -> None:
    """Connect to the other processes, if there are any; raises `UserError` if some have not connected in a minute."""
    global _store, _has_agreed
    if os.environ.get("WORLD_SIZE", "1") == "1" or not {"RANK", "MASTER_ADDR"} <= os.environ.keys():
        return  # no torchrun
    try:
        store, own_rank, number = next(dist.rendezvous("env://", timeout=HANDSHAKE))
        _store = _meet(store, own_rank, number)
    except dist.DistError as error:
        raise UserError(f"{MISSING} ({str(error).splitlines()[0]})") from None
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=_store, rank=own_rank, world_size=number, timeout=PATIENCE)
    _has_agreed = False


def _meet(store: dist.Store, own_rank: int, number: int) -> dist.Store:
    """A part of the store for this start alone: torchrun restarts a job with the same store and its stale content.

    Each process announces itself under a random name, and process 0 replies with the name of the part. Stale
    announcements from a previous start also get a reply, which is never read.
    """
    name, end = secrets.token_hex(8), time.monotonic() + HANDSHAKE.total_seconds()
    store.set(f"hello/{own_rank}", name)
    if own_rank > 0:
        store.wait([f"welcome/{name}"], HANDSHAKE)
        part = dist.PrefixStore(store.get(f"welcome/{name}").decode(), store)
        part.set(f"here/{own_rank}", "")
        part.wait(["here/0"], HANDSHAKE)
        return part
    part = dist.PrefixStore(name, store)
    while missing := [other for other in range(1, number) if not part.check([f"here/{other}"])]:
        if time.monotonic() > end:
            raise UserError(f"{MISSING}: ranks {', '.join(map(str, missing))} are missing")
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", name)
        time.sleep(0.01)
    part.set("here/0", "")
    return part


def leave(status: int) -> None:
    """End this process; one of several exits at once, since PyTorch's own end may wait for the others, or abort."""
    if num_processes() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


def num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local() -> tuple[int, int]:
    """The rank of this process among those of this machine, and how many those are."""
    if not dist.is_initialized():
        return 0, 1
    return int(os.environ.get("LOCAL_RANK", rank())), int(os.environ.get("LOCAL_WORLD_SIZE", num_processes()))


def share_of(total: int) -> Share:
    """The share of this process in so many items: a range as long as the others', give or take one item."""
    first = total * rank() // num_processes()
    return Share(first, total * (rank() + 1) // num_processes() - first, total)


def my_items(items: Sequence[T]) -> Sequence[T]:
    share = share_of(len(items))
    return items[share.first :][: share.number]


def all_reduce(*tensors: torch.Tensor) -> None:
    """Replace each tensor by its sum over all processes, in one exchange. They must have one dtype."""
    if num_processes() > 1:
        whole = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(whole)
        for tensor, part in zip(tensors, whole.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def all_reduce_max(number: int) -> int:
    """The largest of the numbers of all processes. The hosts exchange it, without waiting for a device."""
    if num_processes() == 1:
        return number
    shared = torch.tensor(number)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def gather(value: T) -> list[T]:
    """The values of all processes by rank. Small ones: they travel as pickles."""
    values = [value] * num_processes()
    if num_processes() > 1:
        dist.all_gather_object(values, value)
    return values


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows (n, …) of all processes by rank, (N, …) on the CPU, in process 0; none in the others."""
    if num_processes() == 1:
        return rows.cpu()
    numbers = gather(len(rows))
    padded = rows.new_zeros((max(numbers), *rows.shape[1:]), device="cpu")
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in numbers] if is_main() else []
    # As bytes, since not every dtype can be sent.
    dist.gather(padded.view(torch.uint8), [part.view(torch.uint8) for part in parts] or None)
    return torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)]) if parts else padded[:0]


def broadcast(*tensors: torch.Tensor) -> None:
    if num_processes() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def barrier() -> None:
    gather(None)


def parallel(model: nn.Module) -> nn.Module:
    """The model with its gradients averaged over all processes; their weights become those of process 0."""
    if num_processes() == 1:
        return model
    # Buffers are counts of the data, the same in all processes.
    return DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)


def agree(key: dict[str, object]) -> None:
    """Wait, once, until all processes have passed their checks, before one writes or computes with the others.

    Raises `UserError` in process 0 if another one has failed, or was given another `key`; the others end.
    """
    error = _exchange(None, key | {"code": _code()}) if num_processes() > 1 and not _has_agreed else None
    if error is not None:
        raise UserError(error) if is_main() else SystemExit(2)


def settle(error: str) -> str | None:
    """The error that this process, which has failed, is to print, if any: one process prints for all."""
    if num_processes() == 1:
        return error
    if not _has_agreed:
        first = _exchange(error, None)
        return first if is_main() else None
    return error if _store.add("failed", 1) == 1 else None


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process no longer answers."""
    is_of_exchange = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
    return num_processes() > 1 and is_of_exchange


def _exchange(error: str | None, key: dict | None) -> str | None:
    """The first error among the processes, else the first difference between their keys."""
    global _has_agreed
    errors, keys = zip(*gather((error, key)), strict=True)
    _has_agreed = True
    if (first := next((each for each in errors if each is not None), None)) is not None:
        return first
    for number, other in enumerate(keys):
        if (name := difference(key, other)) is not None:
            values = f"{key.get(name)}, {other.get(name)}"
            return f"processes {rank()} and {number} differ in {name} ({values}): start all of them with one command"
    return None


def _code() -> str:
    """A fingerprint of the project's modules that are loaded, and of PyTorch's version."""
    paths = {Path(module.__file__) for module in [*sys.modules.values()] if getattr(module, "__file__", None)}
    digest = hashlib.blake2b(torch.__version__.encode(), digest_size=8)
    for path in sorted(paths):
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
