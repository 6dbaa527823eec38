"""How long a page waits for its first pictures, and whether the server's memory stays flat over many requests.

    python -m benchmarks.playground out/demo-avatars
    python -m benchmarks.playground out/demo-avatars --requests 50

Starts scripts.playground and uses its page in a headless Chromium: clicks units of the map one after another, every
tenth time changes the seed, draws the atlas, walks, completes a picture or asks for the ZIP. Prints a Markdown table.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

from playground.browser import WARM, soak
from utils.cli import run
from utils.options import option, parse_options


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of benchmarks.playground."""

    model: Path = option("folder of a run, or of an exported model", positional=True)
    requests: int = option("requests in a row", 200, low=WARM + 1)
    pictures: int = option("pictures of a request", 9, low=1, high=36)


def main(argv: list[str] | None = None) -> None:
    """Parse, soak, print."""
    options = parse_options(Options, __doc__, argv)
    waits, memory = soak(options.model, options.requests, options.pictures)
    print(f"| {options.pictures} pictures a request | |\n|---|---|")
    print(f"| first stage's pictures after | {statistics.median(waits):.2f} s, at most {max(waits):.2f} s |")
    for number, size in memory.items():
        print(f"| memory after {number} requests | {size / 1e6:.0f} MB |")


if __name__ == "__main__":
    run(main)
