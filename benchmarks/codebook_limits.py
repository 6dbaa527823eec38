"""Memory and time of training a codebook of the largest sizes.

    python -m benchmarks.codebook_limits

Each size runs in its own process: ten steps on random feature maps, and everything that follows them. Memory is the
peak beyond the data. Takes some minutes.
"""

import time

import torch

from benchmarks.codebook import Data, train_map
from benchmarks.timing import in_new_process, peak
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


def row(side: int, patch: int, units: int, number: int, batch: int) -> str:
    torch.manual_seed(0)
    maps = torch.randn(number, 4, side, side)
    config = CodebookConfig(1e-4, side, side, 4, patch, patch, units, 200)
    before, start = peak(), time.perf_counter()
    train_map(Data(config, maps, maps), STEPS, batch, seed=0)
    seconds, held, data = time.perf_counter() - start, peak() - before, maps.nbytes / 2**20
    return f"| {config.dim} | {units} | {batch} | {data:.0f} | {held:.0f} | {seconds:.1f} |"


def main() -> None:
    print("| D | units | maps per step | data, MiB | peak beyond it, MiB | seconds |\n" + "|---" * 6 + "|", flush=True)
    for size in LIMITS:
        print(in_new_process(row, *size), flush=True)


if __name__ == "__main__":
    main()
