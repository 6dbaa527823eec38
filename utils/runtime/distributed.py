"""The processes of one job, as torchrun starts them: which one this is, and what they tell each other.

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

from utils.core.files import UserError
from utils.core.provenance import difference

T = TypeVar("T")
HANDSHAKE = timedelta(seconds=60)  # within which all processes must have come
PATIENCE = timedelta(days=7)  # for which one may measure, draw and save alone while the others wait
ROOT = Path(__file__).parents[2]
LOST = "another process of this job has died; what it has saved is whole: go on with the same command, and --resume"
MISSING = f"not all processes of this job have come within {HANDSHAKE.seconds} s"

_store: dist.Store | None = None
_has_agreed = False


@dataclass(frozen=True)
class Share:
    """Items of the batch of a whole step: `number` of its `total`, from number `first` on."""

    first: int
    number: int
    total: int


def start() -> None:
    """Meet the other processes, if there are any; raises `UserError` if some have not come after a minute."""
    global _store, _has_agreed
    if os.environ.get("WORLD_SIZE", "1") == "1" or not {"RANK", "MASTER_ADDR"} <= os.environ.keys():
        return  # no torchrun
    try:
        store, own, number = next(dist.rendezvous("env://", timeout=HANDSHAKE))
        _store = _meet(store, own, number)
    except dist.DistError as error:
        raise UserError(f"{MISSING} ({str(error).splitlines()[0]})") from None
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=_store, rank=own, world_size=number, timeout=PATIENCE)
    _has_agreed = False


def _meet(store: dist.Store, own: int, number: int) -> dist.Store:
    """A store for this start alone: torchrun starts what has died anew with the same store, and all that is in it.

    Process 0 names it to each one that says hello; hello from before is answered too, and nobody hears that.
    """
    name, end, others = secrets.token_hex(8), time.monotonic() + HANDSHAKE.total_seconds(), range(1, number)
    store.set(f"hello/{own}", name)
    if own > 0:
        store.wait([f"welcome/{name}"], HANDSHAKE)
        found = dist.PrefixStore(store.get(f"welcome/{name}").decode(), store)
        found.set(f"here/{own}", "")
        found.wait(["here/0"], HANDSHAKE)
        return found
    found = dist.PrefixStore(name, store)
    while missing := [other for other in others if not found.check([f"here/{other}"])]:
        if time.monotonic() > end:
            raise UserError(f"{MISSING}: those of the numbers {', '.join(map(str, missing))} have not")
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", name)
        time.sleep(0.01)
    found.set("here/0", "")
    return found


def end() -> None:
    """End this process together with the others."""
    if num_processes() > 1:
        wait()
        leave(0)


def leave(status: int) -> None:
    """End this process; of several at once, since what PyTorch does at an end may wait for others, or abort."""
    if num_processes() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that locks, logs, draws and saves."""
    return not dist.is_initialized() or dist.get_rank() == 0


def num_processes() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local() -> tuple[int, int]:
    """The number of this process among those of this machine, and how many those are."""
    if not dist.is_initialized():
        return 0, 1
    return int(os.environ.get("LOCAL_RANK", rank())), int(os.environ.get("LOCAL_WORLD_SIZE", num_processes()))


def share_of(total: int) -> Share:
    """What this process does of a number of items: neighbours, and as many as the others, but for one."""
    first, last = (total * number // num_processes() for number in (rank(), rank() + 1))
    return Share(first, last - first, total)


def own(items: Sequence[T]) -> Sequence[T]:
    """Those of the items that this process does."""
    share = share_of(len(items))
    return items[share.first :][: share.number]


def add_up(*tensors: torch.Tensor) -> None:
    """Make each tensor the sum of those of all processes, in one exchange. They must have one dtype."""
    if num_processes() > 1:
        whole = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(whole)
        for tensor, found in zip(tensors, whole.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(found.view_as(tensor))


def gather(value: T) -> list[T]:
    """The values of all processes, in their order. Small ones: they travel as pickles."""
    values = [value] * num_processes()
    if num_processes() > 1:
        dist.all_gather_object(values, value)
    return values


def stack(tensor: torch.Tensor) -> torch.Tensor:
    """The tensors (…) of all processes, of one shape, as one (P, …)."""
    if num_processes() == 1:
        return tensor[None]
    found = [torch.empty_like(tensor) for _ in range(num_processes())]
    dist.all_gather(found, tensor.contiguous())
    return torch.stack(found)


def gather_rows(rows: torch.Tensor) -> torch.Tensor | None:
    """In process 0 the rows (n, …) of all processes, one after another, (N, …) on the CPU; in the others nothing."""
    if num_processes() == 1:
        return rows.cpu()
    numbers = gather(len(rows))
    sent = rows.new_zeros((max(numbers), *rows.shape[1:]), device="cpu")
    sent[: len(rows)] = rows
    found = [torch.empty_like(sent) for _ in numbers] if is_main() else None
    bytes_of = [part.view(torch.uint8) for part in found] if is_main() else None  # not every dtype can travel
    dist.gather(sent.view(torch.uint8), bytes_of)
    return torch.cat([part[:number] for part, number in zip(found, numbers, strict=True)]) if is_main() else None


def take_over(*tensors: torch.Tensor) -> None:
    """Make each tensor that of process 0."""
    if num_processes() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def wait() -> None:
    """Wait until all processes have come here."""
    gather(None)


def parallel(model: nn.Module) -> nn.Module:
    """The model, with its gradients averaged over all processes; their weights become those of process 0."""
    if num_processes() == 1:
        return model
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


class Largest:
    """The largest of the numbers that the processes tell each other at each step, known one step late.

    So nobody waits for it. It travels beside the device's work, between the hosts.
    """

    def __init__(self) -> None:
        self.sent: tuple[dist.Work, torch.Tensor] | None = None

    def of_step_before(self, number: int = 0) -> int:
        """Tell the others a number; return the largest of the step before, or of a single process this one."""
        if num_processes() == 1:
            return number
        before, told = self._received(), torch.tensor([number])
        self.sent = dist.all_reduce(told, dist.ReduceOp.MAX, async_op=True), told
        return before

    def now(self, number: int = 0) -> int:
        """The largest of all numbers, also those of the step before."""
        if num_processes() == 1:
            return number
        return max(self._received(), *gather(number))

    def _received(self) -> int:
        if self.sent is None:
            return 0
        (work, told), self.sent = self.sent, None
        work.wait()
        return int(told)


def agree(key: dict[str, object]) -> None:
    """Wait until all processes have made their checks, before the first of them writes or computes with the others.

    Raises `UserError` in process 0 if another one has found an error, or was given another `key`; the others end. Once
    they have agreed, they do not again.
    """
    error = _exchange(None, key | {"code": _code()}) if num_processes() > 1 and not _has_agreed else None
    if error is not None:
        raise UserError(error) if is_main() else SystemExit(2)


def settle(error: str) -> str | None:
    """What this process is to say, if anything, now that it has found an error: one process speaks for all."""
    if num_processes() == 1:
        return error
    if not _has_agreed:
        found = _exchange(error, None)
        return found if is_main() else None
    return error if _store.add("failed", 1) == 1 else None


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process does not answer any more."""
    is_of_exchange = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
    return num_processes() > 1 and is_of_exchange


def _exchange(error: str | None, key: dict | None) -> str | None:
    """The first error among the processes, or what is not the same in all of them."""
    global _has_agreed
    found = gather((error, key))
    _has_agreed = True
    for error, _ in found:
        if error is not None:
            return error
    for number, (_, other) in enumerate(found):
        if (name := difference(key, other)) is not None:
            values = f"{key.get(name)}, {other.get(name)}"
            return f"processes {rank()} and {number} have other {name} ({values}): start all of them with one command"
    return None


def _code() -> str:
    """A fingerprint of the project's modules that are loaded, and of PyTorch's version."""
    paths = {Path(module.__file__) for module in [*sys.modules.values()] if getattr(module, "__file__", None)}
    ours = sorted(path for path in paths if path.is_relative_to(ROOT) and "site-packages" not in path.parts)
    digest = hashlib.blake2b(torch.__version__.encode(), digest_size=8)
    for path in ours:
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
