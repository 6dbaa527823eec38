"""Progress bars with rate and time left: on a terminal redrawn in place, elsewhere a plain line now and then."""

import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

from utils.runtime.distributed import is_main

LINE_SECONDS = 30  # between the lines of one bar, at least


class PlainBar(tqdm):
    """A bar for a log file: it prints whole lines, the first one after `LINE_SECONDS`."""

    def __init__(self, *args: object, **options: object) -> None:
        self.printed = time.monotonic()
        super().__init__(*args, **options | {"mininterval": LINE_SECONDS, "maxinterval": LINE_SECONDS, "ascii": True})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the bar as it is, unless the last line is too recent."""
        if time.monotonic() - self.printed >= LINE_SECONDS:
            self.printed = time.monotonic()
            print(self, file=self.fp, flush=True)

    def clear(self, nolock: bool = False) -> None:
        """Nothing to clear: a line that was printed stays."""

    def close(self) -> None:
        """End without a last line: the log says what was done."""
        self.disable = True


def duration(seconds: float) -> str:
    """Seconds to read, in hours, minutes and seconds: 26:03:04."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def readable(size: float) -> str:
    """A number of bytes to read: 15.0 MiB, 1.5 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def progress(iterable: Iterable | None = None, **options: object) -> tqdm:
    """A bar over `iterable`, or one that is updated by hand, in one process of a job; `options` are tqdm's."""
    if not is_main():
        return tqdm(iterable, **options | {"disable": True})
    return (tqdm if sys.stderr.isatty() else PlainBar)(iterable, **options)
