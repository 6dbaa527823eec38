"""What the benchmarks share: options, tables, times and memory, and trainings that run at once."""

import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, make_dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.utils.benchmark import Timer
from tqdm import tqdm

from utils.core.tables import row, table
from utils.runtime.cores import available_cores
from utils.runtime.device import keep_memory

CPU, CPUINFO = torch.device("cpu"), Path("/proc/cpuinfo")


def options(**fields: tuple[object, object]) -> type:
    """A dataclass of options, each a type and an `option`, for `parse_options`."""
    members = []
    for name, (hint, given) in fields.items():
        known, default = given.metadata["option"], given.default
        shown = " ".join(map(str, default)) if known.shown is None and isinstance(default, tuple) else known.shown
        members.append((name, hint, field(default=default, metadata={"option": replace(known, shown=shown)})))
    return make_dataclass("Options", members, frozen=True, kw_only=True)


def machine() -> str:
    """The cores that this process may use, and the name of the processor."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{available_cores()} cores of {(names or [platform.processor() or platform.machine()])[0]}"


def best_of(losses: dict[float, float]) -> tuple[float, bool]:
    """The learning rate of the lowest loss, NaN being the highest, and whether it is at an end of the grid."""
    best = min(losses, key=lambda rate: math.inf if math.isnan(losses[rate]) else losses[rate])
    return best, len(losses) > 1 and best in (min(losses), max(losses))


def print_head(*columns: object) -> None:
    print(table(columns), flush=True)


def print_row(*cells: object) -> None:
    print(row(*cells), flush=True)


def seconds(call: Callable[[], object], at_least: float = 0.2) -> float:
    """The median time of a call, which is repeated for at least this many seconds."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=at_least).median


def timed(function: Callable, *arguments: object) -> tuple[object, float]:
    """What a function returns, and the seconds that it took."""
    start = time.perf_counter()
    return function(*arguments), time.perf_counter() - start


def at_once(work: Callable, jobs: Sequence[tuple], workers: int, title: str) -> Iterator[tuple[tuple, object]]:
    """Yield each job with the result of `work` on it, as they end: in as many processes of one thread, new for each.

    They are also printed on the way, behind a title.
    """
    with get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        for job, result in tqdm(pool.imap_unordered(partial(_on_one_thread, work), jobs), total=len(jobs), unit="run"):
            tqdm.write(f"{', '.join(map(str, job))}: {title} {result}", file=sys.stderr)
            yield job, result


def _on_one_thread(work: Callable, job: tuple) -> tuple[tuple, object]:
    torch.set_num_threads(1)
    keep_memory()
    return job, work(*job)
