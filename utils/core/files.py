"""User-facing errors, and files that are written completely or not at all."""

import errno
import os
import re
import secrets
import stat
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the project
IN_USE = (PermissionError,) if os.name == "nt" else ()  # what Windows raises of a file that another process has open


class UserError(ValueError):
    """An error that the user can fix, in one line that names the file or key, what is wrong and what to do."""


def file_at(path: Path) -> Path:
    """The path of something that ends when it is read; raises `UserError` for a pipe or a device, which may not."""
    with suppress(OSError):  # the reader reports a missing file
        if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{path}: is a pipe or a device, expected a file; replace or remove it")
    return path


@contextmanager
def replace_file(path: str | os.PathLike, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds it is flushed to disk and renamed to `path`.

    When the block fails, `path` is unchanged and the temporary file is removed. `durable=False` leaves the flush to the
    operating system: for thousands of small files, which `flush_all` flushes at once.
    """
    path = Path(path)
    make_folder(path.parent)
    # A random name, since two containers on one volume may share process numbers. The suffix stays last: image and
    # array writers choose the format by it.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        yield temporary
        if durable:
            flush(temporary)
        temporary.replace(path)
        if durable:
            flush(path.parent)  # a rename is on disk once its folder is
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None  # a full disk names no file
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    with replace_file(path, durable=durable) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that `replace_file` had not yet renamed."""
    return re.fullmatch(r"\..+\.[0-9a-f]{16}\.tmp(\.[^.]+)?", name) is not None


def flush(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on disk, where the system can say so."""
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows flushes only what can be written
    except PermissionError:
        if is_folder:  # Windows opens none
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """Wait until all files below a folder are on disk.

    All at once: for thousands of small files `sync` takes a twentieth of the time of an fsync for each.
    """
    if hasattr(os, "sync"):
        os.sync()
        return
    for path in folder.rglob("*"):  # on Windows
        if path.is_file():
            flush(path)


def make_folder(path: Path) -> list[Path]:
    """Make a folder and those above it, each on disk; return the ones that were missing, the innermost first."""
    if path.is_dir():
        return []
    above = make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush(path.parent)
    return [path, *above]


def remove_unnamed(folder: Path, pattern: str, names: Container[str]) -> None:
    """Remove the files of an earlier run: those that match `pattern` and are not in `names`."""
    for path in folder.glob(pattern):
        if path.relative_to(folder).as_posix() not in names:
            with suppress(*IN_USE):
                path.unlink()


def is_older(path: Path, *sources: Path) -> bool:
    return not path.is_file() or any(source.stat().st_mtime > path.stat().st_mtime for source in sources)
