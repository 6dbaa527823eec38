"""What the benchmarks share: options, tables, times and memory, and trainings that run at once."""

import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import field, make_dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.utils.benchmark import Timer
from tqdm import tqdm

from utils.core.options import option
from utils.core.tables import row, table
from utils.runs.chain import ROOT
from utils.runtime.cores import available_cores
from utils.runtime.device import keep_memory

CPU, CPUINFO = torch.device("cpu"), Path("/proc/cpuinfo")
DEMO = Path, option("folder that scripts/demo.py wrote, such as out/demo-avatars", positional=True)
RUN = Path, option("folder that scripts.train_cascade wrote, such as out/demo-avatars", positional=True)
IMAGES = Path | None, option("images that it was trained on", None, unset="FOLDER/data/dataset.json")
WORKERS = int, option("runs at once, one thread each", 2, low=1)


def options(**fields: tuple[object, object]) -> type:
    """A dataclass of options, each a type and an `option`, for `parse_options`."""
    members = []
    for name, (hint, given) in fields.items():
        known, default = given.metadata["option"], given.default
        shown = " ".join(map(str, default)) if known.shown is None and isinstance(default, tuple) else known.shown
        members.append((name, hint, field(default=default, metadata={"option": replace(known, shown=shown)})))
    return make_dataclass("Options", members, frozen=True, kw_only=True, namespace={"__doc__": "Options."})


def machine() -> str:
    """The cores that this process may use, and the name of the processor."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{available_cores()} cores of {(names or [platform.processor() or platform.machine()])[0]}"


def commit() -> str:
    """The last commit of the code, with a plus if it has changed since; "unknown" where git says nothing.

    Changes to tests/, docs/, Markdown files and scripts/auto/expect.json do not count: they change nothing measured.
    """
    code = ["--", ".", ":!*.md", ":!docs", ":!tests", ":!scripts/auto/expect.json"]
    try:
        name, changes = (
            subprocess.run(["git", *words, *code], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
            for words in (["log", "-1", "--abbrev=7", "--format=%h"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}+" if changes else name


def best_of(losses: dict[float, float]) -> tuple[float, bool]:
    """The learning rate of the lowest loss, NaN being the highest, and whether it is at an end of the grid."""
    best = min(losses, key=lambda rate: math.inf if math.isnan(losses[rate]) else losses[rate])
    return best, len(losses) > 1 and best in (min(losses), max(losses))


def print_head(*columns: object) -> None:
    """Print the head of a table in Markdown."""
    print(table(columns), flush=True)


def print_row(*cells: object) -> None:
    """Print a row of it."""
    print(row(*cells), flush=True)


def seconds(call: Callable[[], object], at_least: float = 0.2) -> float:
    """The median time of a call, which is repeated for at least this many seconds."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=at_least).median


def timed(function: Callable, *arguments: object) -> tuple[object, float]:
    """What a function returns, and the seconds that it took."""
    start = time.perf_counter()
    return function(*arguments), time.perf_counter() - start


def in_new_process(function: Callable, *arguments: object) -> object:
    """The result of a function that a new process calls, whose peak memory is that of this call."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # its process may have children
        return pool.submit(function, *arguments).result()


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
