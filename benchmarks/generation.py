"""How fast a trained run writes whole pictures, one or many in a batch, in float32 and in bfloat16.

    python -m benchmarks.generation out/demo-avatars

Prints a table in Markdown; all pictures of a row are one batch, each with one beam.
"""

import utils.runtime.threads  # noqa: F401

from functools import partial
from pathlib import Path

import torch

from benchmarks.common import machine, options, print_head, print_row, seconds
from models.cascade import Cascade
from models.requests import Request
from utils.core.options import option, parse_options
from utils.runtime import cli

PICTURES, PRECISIONS = (1, 25, 200), ("fp32", "bf16")
Options = options(run=(Path, option("folder of a trained run", positional=True)))


def write(cascade: Cascade, number: int) -> torch.Tensor:
    return cascade.decode(cascade.generate(Request(), range(number))[0][-1])


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    run = parse_options(Options, __doc__, argv).run
    print(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print_head("pictures", *(f"{name}, s" for name in PRECISIONS))
    for number in PICTURES:
        cascades = [Cascade.load(run, device="cpu", precision=name, batch_size=number) for name in PRECISIONS]
        print_row(number, *(f"{seconds(partial(write, cascade, number)):.2f}" for cascade in cascades))


if __name__ == "__main__":
    cli.run(main)
