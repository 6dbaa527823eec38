"""One writer for each folder: a lock that the operating system releases when its process dies."""

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.core.files import IN_USE, UserError, is_temporary, make_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:
    msvcrt = None

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
FLAGS = os.O_RDONLY | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)  # a pipe in its place would wait for ever
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # of a file system without locks
_held: set[BinaryIO] = set()


@contextmanager
def lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Be the only process that writes to a folder; its lock file stays there.

    The folder is created if it is missing and removed again if it stays empty. Removes the temporary files of processes
    that died while they wrote here. Raises `UserError` if another process holds the folder, unless this one may `wait`.
    """
    created = make_folder(folder)
    try:
        with _acquire(folder, wait) as file:
            _held.add(file)
            try:
                sweep(folder)
                yield
            finally:
                _held.discard(file)
                if created and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
                    with suppress(*IN_USE):  # it stays on Windows
                        (folder / LOCK_FILE).unlink()
    finally:
        with suppress(OSError):  # one that holds something stays
            for path in created:
                path.rmdir()


def _acquire(folder: Path, wait: bool) -> BinaryIO:
    """The lock file, once this process holds its lock and the file was not removed with an empty folder meanwhile."""
    has_waited = False
    while True:
        make_folder(folder)
        with suppress(FileNotFoundError), ExitStack() as stack:
            # Reading is enough for a lock, also of a file that another person has created.
            file = stack.enter_context(os.fdopen(os.open(folder / LOCK_FILE, FLAGS, 0o666), "rb"))
            if _take(file, folder):
                # Windows removes no file that is open.
                if fcntl is None or os.path.samestat(os.fstat(file.fileno()), (folder / LOCK_FILE).stat()):
                    stack.pop_all()
                    return file
            elif not wait:
                advice = "wait until that has ended, or give another folder"
                raise UserError(f"{folder}: another process is writing to it; {advice}")
            elif not has_waited:
                log.info("waiting for another process that writes to %s", folder)
                has_waited = True
        time.sleep(0.05)


def _take(file: BinaryIO, folder: Path) -> bool:
    """Whether this process now holds the lock; always true where there are no locks."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s: its file system has no locks; let only one process write to it", folder)
    return True


def sweep(folder: Path) -> None:
    """Remove what dead processes left half written, except in folders inside that have a lock of their own."""
    for root, folders, files in os.walk(folder):
        if LOCK_FILE in files and Path(root) != folder:
            folders.clear()
            continue
        for name in filter(is_temporary, files):
            Path(root, name).unlink(missing_ok=True)


def _leave_to_parent() -> None:
    """Close the locks in a child process: one that outlives its parent would keep them."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
