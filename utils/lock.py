"""One writer for each folder: a lock that the kernel releases when its process dies."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.files import UserError, is_temporary, make_folder

log = logging.getLogger(__name__)

NAME = ".lock"
_held: set[int] = set()  # descriptors


@contextmanager
def lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Be the only process that writes to a folder, which is made if it is missing and goes again if it stays empty.

    Removes the temporary files of processes that died while they wrote here. Raises `UserError` if another process
    holds the folder, unless this one is to `wait` for it.
    """
    made = make_folder(folder)
    try:
        with _acquired(folder, wait):
            sweep(folder)
            yield
    finally:
        with suppress(OSError):  # one that holds something stays
            for path in made:
                path.rmdir()


@contextmanager
def _acquired(folder: Path, wait: bool) -> Iterator[None]:
    descriptor = _acquire(folder, wait)
    _held.add(descriptor)
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)
        _held.discard(descriptor)
        os.close(descriptor)


def _acquire(folder: Path, wait: bool) -> int:
    path, how = folder / NAME, fcntl.LOCK_EX | fcntl.LOCK_NB
    while True:
        make_folder(folder)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the process before has taken the folder away again
            continue
        try:
            fcntl.flock(descriptor, how)
            with suppress(FileNotFoundError):  # the process before has removed the file that this one waited for
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
        except BlockingIOError:
            if not wait:
                os.close(descriptor)
                raise UserError(
                    f"{folder}: another process is writing to it; wait until that has ended, or give another folder"
                ) from None
            log.info("waiting for another process that writes to %s", folder)
            how = fcntl.LOCK_EX
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(descriptor)
                raise
            log.warning("%s: its file system has no locks; let only one process write to it", folder)
            return descriptor
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what dead processes left half written, except in folders inside that have a lock of their own."""
    for root, folders, files in os.walk(folder):
        if NAME in files and Path(root) != folder:
            folders.clear()
            continue
        for name in filter(is_temporary, files):
            Path(root, name).unlink(missing_ok=True)


def _leave_to_parent() -> None:
    """Close the locks in a child process: one that outlives its parent would keep them."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
