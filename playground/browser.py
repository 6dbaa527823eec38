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

from utils.core.files import UserError
from utils.runtime.device import kilobytes

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WARM = 20  # requests after which memory is read for the first time
TIMEOUT = 60_000  # milliseconds
# What is clicked after every tenth request, and how the picture begins that it makes.
OTHERS = (("#dice", ""), ("#atlas", "Condition atlas"), ("#walk-go", "Walk from"), ("#zip", ""))


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser of playwright, without a window."""
    from playwright.sync_api import sync_playwright  # not everybody has it

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


def soak(model: Path, requests: int, pictures: int = 9) -> tuple[list[float], dict[int, int]]:
    """Make many requests of a page, in turn.

    Returns the seconds until the first stage's pictures were there, and the bytes that the server held after so many
    requests: WARM, half of all, and all.
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
            page = browser.new_page()
            page.set_default_timeout(TIMEOUT)
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_selector("#map .tile")
            return use(page, server.pid, requests, pictures)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def use(page: Any, process: int, requests: int, pictures: int) -> tuple[list[float], dict[int, int]]:
    """Click units of a page of playwright in turn, and something else after every tenth one; see `soak`."""
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
            button, title = OTHERS[request // 10 % len(OTHERS)]
            page.click(button)
            if title:
                page.wait_for_selector(f"#details img[alt^='{title}']")
        if request + 1 in (WARM, requests // 2, requests):
            memory[request + 1] = kilobytes(f"/proc/{process}/status", "VmRSS")
    return waits, memory
