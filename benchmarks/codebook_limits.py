"""Memory and time of training a codebook of the largest sizes.

    python -m benchmarks.codebook_limits

Each size runs in its own process: ten steps on random feature maps, and everything that follows them. Memory is the
peak beyond the data. Takes some minutes.
"""

import torch

from benchmarks.codebook import Data, train_map
from benchmarks.common import in_new_process, peak, print_head, print_row, timed
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


def row(side: int, patch: int, units: int, number: int, batch: int) -> tuple:
    torch.manual_seed(0)
    maps, before = torch.randn(number, 4, side, side), peak()
    config = CodebookConfig(1e-4, side, side, 4, patch, patch, units, 200)
    _, seconds = timed(train_map, Data(config, maps, maps), STEPS, batch, 0)
    return config.dim, units, batch, f"{maps.nbytes / 2**20:.0f}", f"{peak() - before:.0f}", f"{seconds:.1f}"


def main() -> None:
    print_head("D", "units", "maps per step", "data, MiB", "peak beyond it, MiB", "seconds")
    for size in LIMITS:
        print_row(*in_new_process(row, *size))


if __name__ == "__main__":
    main()
