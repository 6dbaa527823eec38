"""One writer for each folder: a lock that the operating system releases when its process dies."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from utils.core.files import UserError, is_temporary, make_folder

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"


@contextmanager
def lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Be the only process that writes to a folder, which is created if it is missing, and removed if it stays empty.

    Removes the temporary files of processes that died while they wrote here. Raises `UserError` if another process
    holds the folder, unless this one may `wait`.
    """
    created, own = make_folder(folder), FileLock(folder / LOCK_FILE)
    try:
        try:
            own.acquire(timeout=0)
        except Timeout:
            if not wait:
                advice = "wait until that has ended, or give another folder"
                raise UserError(f"{folder}: another process is writing to it; {advice}") from None
            log.info("waiting for another process that writes to %s", folder)
            while not own.is_locked:
                make_folder(folder)  # the other one may have removed it
                with suppress(FileNotFoundError):
                    own.acquire()
        try:
            sweep(folder)
            yield
        finally:
            if created and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
                with suppress(OSError):  # Windows removes no file that is open
                    (folder / LOCK_FILE).unlink()
            own.release()
    finally:
        with suppress(OSError):  # one that holds something stays
            for path in created:
                path.rmdir()


def sweep(folder: Path) -> None:
    """Remove what dead processes left half written, except in folders inside that have a lock of their own."""
    for root, folders, files in os.walk(folder):
        if LOCK_FILE in files and Path(root) != folder:
            folders.clear()
            continue
        for name in filter(is_temporary, files):
            Path(root, name).unlink(missing_ok=True)
