"""User-facing errors and atomic writes."""

import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """An error that the user can fix, in one line that names the file or key, what is wrong and what to do."""


@contextmanager
def replace_file(path: str | os.PathLike, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds it is flushed to disk and renamed to `path`.

    When the block fails, `path` is unchanged and the temporary file is removed. `durable=False` leaves the flush to the
    operating system: for thousands of small files that are useless until the index after them is written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: image and array writers choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    temporary.unlink(missing_ok=True)  # a crash may have left one of the same name
    try:
        yield temporary
        if durable:
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unnamed(folder: Path, pattern: str, names: Container[str]) -> None:
    """Remove the files of an earlier run: those that match `pattern` and are not in `names`."""
    for path in folder.glob(pattern):
        if path.relative_to(folder).as_posix() not in names:
            path.unlink()
