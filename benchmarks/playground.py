"""How long a page waits for its first pictures, and whether the server's memory stays flat over many requests.

    python -m benchmarks.playground out/demo-avatars
    python -m benchmarks.playground out/demo-avatars --requests 50

Starts scripts.playground and uses its page in a headless Chromium: clicks tiles of the map one after another, and
every tenth time draws the map anew, walks, or asks for the ZIP. Prints a Markdown table.
"""

import statistics
from pathlib import Path

from benchmarks.common import options, print_head, print_row
from playground.browser import WARM, soak
from utils.core.files import UserError
from utils.core.options import option, parse_options
from utils.runtime import cli

GROWTH = 0.05  # of the memory, that is allowed
Options = options(
    model=(Path, option("folder of a run, or of an exported model", positional=True)),
    requests=(int, option("requests in a row", 200, low=WARM + 1)),
    pictures=(int, option("pictures of a request", 9, low=1, high=36)),
)


def main(argv: list[str] | None = None) -> None:
    """Parse, soak, print."""
    args = parse_options(Options, __doc__, argv)
    waits, memory = soak(args.model, args.requests, args.pictures)
    print_head(f"{args.pictures} pictures a request", "")
    print_row("first stage's pictures after", f"{statistics.median(waits):.2f} s, at most {max(waits):.2f} s")
    for number, size in memory.items():
        print_row(f"memory after {number} requests", f"{size / 1e6:.0f} MB")
    warm, end = memory[WARM], memory[args.requests]
    if end > (1 + GROWTH) * warm:
        raise UserError(f"memory grew by {end / warm - 1:.0%}, at most {GROWTH:.0%} is allowed; look for a leak")


if __name__ == "__main__":
    cli.run(main)
