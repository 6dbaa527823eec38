"""The device: which one, its precision, how many processes load its data, and how its memory is kept."""

import ctypes
import math
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

from utils.core.files import UserError
from utils.runtime.cores import available_cores
from utils.runtime.distributed import local, num_processes

CGROUP = Path("/sys/fs/cgroup")

try:
    import resource
except ImportError:  # Windows
    resource = None


def choose_device(name: str) -> torch.device:
    """The device of a name, with `auto` the first of cuda, mps and cpu; raises `UserError` where there is none.

    Of several processes on a machine each has the GPU of its number.
    """
    local_rank, several = local()[0], num_processes() > 1
    if name == "auto":
        has_mps = torch.backends.mps.is_available() and not several
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if several and name not in ("cuda", "cpu"):
        raise UserError(f"--device {name} is for one process: give several of them --device cuda or cpu")
    if several and name == "cuda" and local_rank >= torch.cuda.device_count():
        numbers = f"{local()[1]} processes on this machine, but {torch.cuda.device_count()} GPUs"
        raise UserError(f"--device cuda: there are {numbers}; start as many as there are GPUs")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        actual = torch.device("cuda", local_rank) if several and device.type == "cuda" else device
        torch.empty(0, device=actual)
        if actual.type == "cuda" and actual.index is not None:
            torch.cuda.set_device(actual)  # for pinned memory and peaks of memory, which name no device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}): try --device auto") from None
    return device


def choose_workers(asked: int | None, device: torch.device) -> int:
    """Number of processes that load data: `asked`; by default none on a CPU, where they compete with the model."""
    default = 0 if device.type == "cpu" else min(4, available_cores())
    return default if asked is None else asked


def choose_dtype(device: torch.device, precision: str) -> torch.dtype:
    """The dtype of matrix products: `fp32`, `bf16`, or on `auto` bfloat16 where the hardware multiplies it natively."""
    if precision == "auto":
        cpuinfo = Path("/proc/cpuinfo")
        if device.type == "cuda":
            is_native = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            is_native = device.type == "cpu" and cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()
        precision = "bf16" if is_native else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_dtype(device, precision) == torch.bfloat16)


def usable_memory(device: torch.device) -> float:
    """The bytes that this process may use: those that it holds, and its share of the free ones; inf if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    available = size_in("/proc/meminfo", "MemAvailable")
    free = math.inf if available is None else available
    with suppress(OSError, ValueError):  # of a container or a job that may use less than the machine has
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        with suppress(OSError, ValueError, KeyError):  # the cache of files makes room
            parts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
            used -= int(parts["active_file"]) + int(parts["inactive_file"])
        free = min(free, limit - used)
    return free / local()[1] + (size_in("/proc/self/status", "RssAnon") or 0)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held at once: of the GPU's memory, or else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if (peak := size_in("/proc/self/status", "VmHWM")) is not None:
        return peak  # on Linux `resource` starts from the peak of the parent process
    if resource is None:
        return 0  # unknown
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory() -> None:
    """Give back free memory and count the peak anew; where the system cannot, it stays that of the whole process."""
    give_back_memory()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # of Linux alone
        Path("/proc/self/clear_refs").write_text("5")


def size_in(path: str, name: str) -> int | None:
    """The bytes beside a name in a file of Linux's /proc, None where there is no such line."""
    with suppress(OSError):
        if line := re.search(rf"^{name}:\s+(\d+) kB$", Path(path).read_text(), flags=re.MULTILINE):
            return int(line[1]) * 1024
    return None


def wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def keep_memory() -> None:
    """Keep freed memory for the next tensors: glibc would return it, and the kernel would clear it each time."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD of malloc.h, the largest value that it accepts
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


def give_back_memory() -> None:
    """Return freed memory to the system, which takes milliseconds; tensors of other shapes could rarely reuse it."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
