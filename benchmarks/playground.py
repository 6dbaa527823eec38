"""How long a page waits for its first pictures, and whether the server's memory stays flat over many requests.

    python -m benchmarks.playground out/demo-avatars
    python -m benchmarks.playground out/demo-avatars --requests 50

Starts scripts.playground and uses its page in a headless Chromium: clicks units of the map one after another, every
tenth time changes the seed, draws the atlas, walks, completes a picture or asks for the ZIP. Prints a Markdown table.
"""

import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.browser import CHROMIUM, chromium
from utils.cli import run
from utils.device import kilobytes
from utils.files import UserError
from utils.options import option, parse_options

ROOT = Path(__file__).parent.parent
WARM = 20  # requests after which memory is read for the first time
TIMEOUT = 60_000  # milliseconds
# What is clicked after every tenth request, and how the picture begins that it makes.
OTHERS = (("#dice", ""), ("#atlas", "Condition atlas"), ("#walk-go", "Walk from"), ("#zip", ""))


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of benchmarks.playground."""

    model: Path = option("folder of a run, or of an exported model", positional=True)
    requests: int = option("requests in a row", 200, low=WARM + 1)
    pictures: int = option("pictures of a request", 9, low=1, high=36)


def soak(model: Path, requests: int, pictures: int = 9) -> tuple[list[float], dict[int, int]]:
    """Make many requests of a page, in turn.

    Returns the seconds until the first stage's pictures were there, and the bytes that the server held after so many
    requests: WARM, half of all, and all.
    """
    if CHROMIUM is None:
        raise UserError("there is no chromium; install it")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "scripts.playground", str(model), "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        if not server.stdout.readline():
            raise UserError(f"{model}: the playground did not start")
        with chromium() as browser:
            page = browser.new_page()
            page.set_default_timeout(TIMEOUT)
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_selector("#map .tile")
            return use(page, server.pid, requests, pictures)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def use(
    page: "playwright.sync_api.Page",  # noqa: F821
    process: int,
    requests: int,
    pictures: int,
) -> tuple[list[float], dict[int, int]]:
    """Click units in turn, and something else after every tenth one; see `soak`."""
    page.fill("#number input[type=number]", str(pictures))
    page.click("#walk .label-wrap")
    page.fill("#steps input[type=number]", "4")
    units, waits, memory = page.locator("#map .tile").count(), [], {}
    for request in range(requests):
        # Generation shows the conditions at once; what counts is what the first stage has written.
        page.evaluate("document.querySelector('#live [role=group]').ariaLabel = ''")
        begun = time.monotonic()
        page.click(f"#map .tile >> nth={request % units}")
        page.wait_for_selector("#live [aria-label^='Pictures, after stage']")
        waits.append(time.monotonic() - begun)
        page.wait_for_selector(f"#details img[alt^='Picture 0, unit {request % units},']")
        if request % 10 == 9:
            button, made = OTHERS[request // 10 % len(OTHERS)]
            page.click(button)
            if made:
                page.wait_for_selector(f"#details img[alt^='{made}']")
        if request + 1 in (WARM, requests // 2, requests):
            memory[request + 1] = kilobytes(f"/proc/{process}/status", "VmRSS")
    return waits, memory


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
