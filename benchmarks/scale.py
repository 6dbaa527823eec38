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
from collections.abc import Iterator
from contextlib import suppress
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
from utils.runtime.device import kilobytes

REQUIRED = ("fmap_path", "image_path")
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
            "labels": [],
            "flipped": False,
        }


class Names(Dataset):
    """The lengths of the paths of records, in the place of their files."""

    def __init__(self, packed: Records) -> None:
        self.packed = packed

    def __getitem__(self, indices: np.ndarray) -> torch.Tensor:
        return torch.tensor([len(self.packed[index]["fmap_path"]) for index in indices])


def write(path: Path, number: int) -> None:
    write_dataset(path, records(number), {})


def read(path: Path) -> Records:
    return read_packed(path, REQUIRED)


def load(path: Path, is_one: bool = False, processes: int = 1) -> int:
    """Load the batches of an epoch, or one in its middle, as each of so many processes does; return how many."""
    packed, batch = read(path), processes * BATCH
    training = split_indices(packed.table["position"], Bounds()).training
    last = -(-len(training) // batch)
    start, stop = (last // 2, last // 2 + 1) if is_one else (0, last)
    return sum(1 for _ in BatchLoader(Names(packed), EpochSampler(training, batch, 0, start, stop), WORKERS))


def load_as_one_of_many(path: Path) -> int:
    """Load the batches of an epoch as the sixth of 64 processes does."""
    with mock.patch.multiple("utils.runtime.distributed", num_processes=lambda: 64, rank=lambda: 5):
        return load(path, processes=64)


def private(process: int | str) -> int:
    """The bytes of memory that a process shares with no file, as Linux says."""
    return kilobytes(f"/proc/{process}/status", "RssAnon")


class Watch(threading.Thread):
    """Looks every few milliseconds at the private memory of this process, or of the workers that it has started."""

    def __init__(self, of_workers: bool) -> None:
        super().__init__(daemon=True)
        self.of_workers, self.is_over, self.seen = of_workers, False, [] if of_workers else [private(os.getpid())]

    def run(self) -> None:
        """Look until it is over."""
        while not self.is_over:
            time.sleep(0.02)
            with suppress(OSError, TypeError):  # of a worker that has just ended
                # Not asked of `multiprocessing`, which would wait for workers that have ended.
                paths = Path("/proc/self/task").glob("*/children")
                workers = [worker for path in paths for worker in path.read_text().split()]
                if not self.of_workers:
                    self.seen.append(private(os.getpid()))
                elif len(workers) == WORKERS:
                    self.seen.append(sum(map(private, workers)))

    def gained(self) -> tuple[float, float]:
        """MiB since the first look: the most, and at the last one."""
        return tuple((size - self.seen[0]) / 2**20 for size in (max(self.seen), self.seen[-1]))


WORK = {"write": write, "read": read, "open": read, "an epoch": load, "a batch in the middle of an epoch": load}
WORK["an epoch of one of 64 processes"] = load_as_one_of_many


def measure(name: str, *arguments: object) -> tuple:
    """A row of the table."""
    multiprocessing.set_start_method("fork", force=True)  # of workers, as by default on Linux
    watch = Watch(WORK[name] in (load, load_as_one_of_many))
    watch.start()
    kept, seconds = timed(WORK[name], *arguments)
    time.sleep(0.1)  # for a look while it is alive
    watch.is_over = True
    watch.join()
    del kept
    gained = (f"{size:.0f}" for size in watch.gained()) if watch.seen else ("", "")
    return name, f"{seconds:.2f}", *gained


def main(argv: list[str] | None = None) -> None:
    """Measure everything in a temporary folder."""
    number = parse_options(Options, __doc__, argv).records
    print(f"{number} records\n")
    print_head("", "seconds", "most memory, MiB", "memory at the end, MiB")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "dataset.json")
        more = {"write": (number,), "an epoch": (False,), "a batch in the middle of an epoch": (True,)}
        for name in WORK:
            print_row(*in_new_process(measure, name, path, *more.get(name, ())))


if __name__ == "__main__":
    main()
