"""Time and memory of a data set of a million records: written, read, opened again, and gone through by two workers.

    python -m benchmarks.scale
    python -m benchmarks.scale --records 4900000

The records are made up; no image is read. Each row is a new process. Memory is what it does not share with a file,
beyond what it has once all is imported: the most at once, and what is held at the end. Of two workers that load batches
it is what they have gained since they began.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.common import in_new_process, options, print_head, print_row, timed
from utils.core.options import option, parse_options
from utils.data.batches import BatchLoader, EpochSampler
from utils.data.dataset_json import write_dataset
from utils.data.records import Records, read_packed
from utils.data.split import Bounds, split_indices
from utils.runtime import cli
from utils.runtime.device import size_in

BATCH, WORKERS = 256, 2
Options = options(records=(int, option("records of the data set", 10**6, low=1)))


def records(number: int) -> Iterator[dict]:
    """Records of feature maps, as step 2 writes them."""
    for index in range(number):
        yield {
            "fmap_path": f"{index // 1000:04d}/{index:024x}.npy",
            "checksum": f"{index:016x}",
            "image_path": f"../../data/images/{index:08d}.png",
            "image_key": f"images/{index:08d}.png",
        } | {"labels": [], "flipped": False}


class Names(Dataset):
    """The lengths of the paths of records, in the place of their files."""

    def __init__(self, packed: Records) -> None:
        self.packed = packed

    def __getitem__(self, indices: np.ndarray) -> torch.Tensor:
        return torch.tensor([len(self.packed[index]["fmap_path"]) for index in indices])


def write(path: Path, number: int) -> None:
    """Write the data set."""
    write_dataset(path, records(number), {})


def read(path: Path, _: int = 0) -> Records:
    """Read the data set, or what is kept of it since it was read before."""
    return read_packed(path, ("fmap_path", "image_path"))


def load(path: Path, _: int = 0, is_one: bool = False, processes: int = 1) -> int:
    """Load the batches of an epoch, or one in its middle, as one of so many processes does; return how many."""
    packed, batch = read(path), processes * BATCH
    training = split_indices(packed.table["position"], Bounds()).training
    last = -(-len(training) // batch)
    start, stop = (last // 2, last // 2 + 1) if is_one else (0, last)
    own = {"num_processes": lambda: processes, "rank": lambda: min(5, processes - 1)}
    with mock.patch.multiple("utils.runtime.distributed", **own):
        return sum(1 for _ in BatchLoader(Names(packed), EpochSampler(training, batch, 0, start, stop), WORKERS))


WORK: dict[str, Callable[[Path, int], object]] = {
    "write": write,
    "read": read,
    "open": read,
    "an epoch": load,
    "a batch in the middle of an epoch": partial(load, is_one=True),
    "an epoch of one of 64 processes": partial(load, processes=64),
}


def private(process: int | str) -> int:
    """The bytes of memory that a process shares with no file, as Linux says."""
    return size_in(f"/proc/{process}/status", "RssAnon")


def look(seen: list[int], of_workers: bool, is_over: threading.Event) -> None:
    """Note the private memory of this process, or of the workers that it has started, every few milliseconds."""
    while not is_over.wait(0.02):
        with suppress(OSError, TypeError):  # of a worker that has just ended
            # Not asked of `multiprocessing`, which would wait for workers that have ended.
            workers = [one for path in Path("/proc/self/task").glob("*/children") for one in path.read_text().split()]
            if not of_workers or len(workers) == WORKERS:
                seen.append(sum(map(private, workers)) if of_workers else private(os.getpid()))


def measure(name: str, path: Path, number: int) -> tuple:
    """A row of the table; memory in MiB beyond the first look."""
    multiprocessing.set_start_method("fork", force=True)  # of workers, as by default on Linux
    of_workers, is_over = "epoch" in name, threading.Event()
    seen = [] if of_workers else [private(os.getpid())]
    thread = threading.Thread(target=look, args=(seen, of_workers, is_over), daemon=True)
    thread.start()
    kept, seconds = timed(WORK[name], path, number)
    time.sleep(0.1)  # for a look while it is alive
    is_over.set()
    thread.join()
    del kept
    gained = [f"{(size - seen[0]) / 2**20:.0f}" for size in (max(seen), seen[-1])] if seen else ["", ""]
    return name, f"{seconds:.2f}", *gained


def main(argv: list[str] | None = None) -> None:
    """Measure everything in a temporary folder."""
    number = parse_options(Options, __doc__, argv).records
    print(f"{number} records\n")
    print_head("", "seconds", "most memory, MiB", "memory at the end, MiB")
    with tempfile.TemporaryDirectory() as folder:
        for name in WORK:
            print_row(*in_new_process(measure, name, Path(folder, "dataset.json"), number))


if __name__ == "__main__":
    cli.run(main)
