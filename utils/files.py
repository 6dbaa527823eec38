"""What a person's files can do to us, and what we do to theirs: one error type, atomic writes."""

import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A mistake that the person at the keyboard can mend.

    The message is one line that names the file or key, what is wrong and what to do. `utils.cli.run` prints it
    without a traceback and exits with status 2.
    """


@contextmanager
def replace_file(path: str | os.PathLike, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds it is flushed to disk and renamed to `path`.

    Whoever reads `path` sees the old file or the new one, never half of it. When the block fails, `path` is left
    as it was and the temporary file is removed. `durable=False` leaves the flush to the operating system: for the
    thousands of small files that are worth nothing before the index that is written after them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, since image and array writers choose the format by it.
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
    """Remove the files of an earlier run: those that fit `pattern`, our way of naming, and are not among `names`."""
    for path in folder.glob(pattern):
        if path.relative_to(folder).as_posix() not in names:
            path.unlink()
