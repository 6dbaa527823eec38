"""Memory and time of training a codebook of the largest sizes.

    python -m benchmarks.codebook_limits

Each size runs in its own process: ten steps on random feature maps, and everything that follows them. Memory is the
peak beyond the data. Takes some minutes.
"""

import argparse
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.codebook import Data, train_map
from models.codebook import CodebookConfig

# Side of the feature maps (of 4 channels), side of a patch, units, feature maps, feature maps per step.
LIMITS = (
    (32, 32, 2, 900, 8),
    (32, 32, 1024, 1500, 64),
    (32, 32, 1024, 1500, 1500),
    (32, 8, 16384, 2000, 64),
    (32, 1, 16384, 200, 200),
)
STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=5, help="measure one size in this process: the five numbers of a row")
    args = parser.parse_args()
    if args.size:
        one(*args.size)
        return
    print("| D | units | maps per step | data, MiB | peak beyond it, MiB | seconds |\n" + "|---" * 6 + "|", flush=True)
    for size in LIMITS:
        command = [sys.executable, "-m", "benchmarks.codebook_limits", "--size", *map(str, size)]
        subprocess.run(command, check=True)


def one(side: int, patch: int, units: int, number: int, batch: int) -> None:
    torch.manual_seed(0)
    maps = torch.randn(number, 4, side, side)
    config = CodebookConfig(1e-4, side, side, 4, patch, patch, units, 200)
    before, start = peak(), time.perf_counter()
    train_map(Data(config, maps, maps), STEPS, batch, seed=0)
    seconds, data = time.perf_counter() - start, maps.nbytes / 2**20
    held = f"{peak() - before:.0f}"
    print(f"| {config.dim} | {units} | {batch} | {data:.0f} | {held} | {seconds:.1f} |", flush=True)


def peak() -> float:
    """Peak memory of this process, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux `resource` starts from the peak of the parent process
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main()
