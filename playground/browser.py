"""Drives the page as a person would, in a headless Chromium: many requests in a row, their waits, and the memory."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.core.files import ROOT, UserError
from utils.runtime.device import size_in

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WARM = 20  # requests after which memory is read for the first time
TIMEOUT = 60_000  # milliseconds
SAMPLES, WALK = (f"#click input[value={value}]" for value in ("sample", "walk"))  # what a click on the map does
# What is clicked after every tenth request, and how the title begins of the picture that it makes.
OTHERS = ((("#atlas",), "Samples of all tiles"), ((WALK, "#walk-go"), "Walk from"), (("#zip",), ""))


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser of playwright, without a window."""
    from playwright.sync_api import sync_playwright  # not everybody has it

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@contextmanager
def served(model: Path) -> Iterator[tuple[Any, str, int]]:
    """A browser, the address at which a server in a process of its own shows a model, and the number of that process.

    Raises `UserError` if there is no browser, or if the server does not start.
    """
    if CHROMIUM is None:
        raise UserError("there is no chromium; install it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "scripts.playground", str(model), "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        if not server.stdout.readline():
            raise UserError(f"{model}: the playground did not start")
        with chromium() as browser:
            yield browser, f"http://127.0.0.1:{port}/", server.pid
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def open_page(browser: Any, address: str, **options: Any) -> Any:
    """A page of a browser, once it shows the map; the options are those of playwright."""
    page = browser.new_page(**options)
    page.set_default_timeout(TIMEOUT)
    page.goto(address)
    page.wait_for_selector("#map .tile")
    return page


def soak(model: Path, requests: int, pictures: int = 9) -> tuple[list[float], dict[int, int]]:
    """Make many requests of a page, in turn.

    Returns the seconds until the first stage's pictures were there, and the bytes that the server held after so many
    requests: WARM, half of all, and all.
    """
    with served(model) as (browser, address, process):
        return use(open_page(browser, address), process, requests, pictures)


def use(page: Any, process: int, requests: int, pictures: int) -> tuple[list[float], dict[int, int]]:
    """Click units of a page of playwright in turn, and something else after every tenth one; see `soak`."""
    page.fill("#number input[type=number]", str(pictures))
    page.click(WALK)
    page.fill("#steps input[type=number]", "4")
    page.click(SAMPLES)
    units, waits, memory = page.locator("#map .tile").count(), [], {}
    for request in range(requests):
        # Generation shows the conditions at once; what counts is what the first stage has written.
        page.evaluate("document.querySelector('#live [role=group]').ariaLabel = ''")
        begun = time.monotonic()
        page.click(f"#map .tile >> nth={request % units}")
        page.wait_for_selector("#live [aria-label^='Pictures, after stage']")
        waits.append(time.monotonic() - begun)
        page.wait_for_selector(f"#details img[alt^='Picture 0, tile {request % units},']")
        if request % 10 == 9:
            clicks, title = OTHERS[request // 10 % len(OTHERS)]
            for selector in clicks:
                page.click(selector)
            if title:
                page.wait_for_selector(f"#details img[alt^='{title}']")
            page.click(SAMPLES)
        if request + 1 in (WARM, requests // 2, requests):
            memory[request + 1] = size_in(f"/proc/{process}/status", "VmRSS")
    return waits, memory
