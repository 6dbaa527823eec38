"""The checksum of a file, and the fingerprint of the files of a data set."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from utils.core.files import UserError, file_at

MOST_FILES = 100_000  # a larger data set is identified by its index alone, without sizes and timestamps

# `index` of the content of a dataset.json, `files` of sizes and timestamps of its files, and `images` of the pictures
# in it or behind its feature maps, in any order: of their checksums and the names that split them; None if unknown.
Fingerprint = dict[str, str | None]


def checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def is_whole(
    path: Path, expected: str, row: int | None = None, read: Callable = lambda path: file_at(path).read_bytes()
) -> bool:
    """Whether the content that `read` gives of a file, or a row of the array in it, exists and has this checksum."""
    try:
        if row is None:
            return checksum(read(path)) == expected
        return checksum(np.load(file_at(path), mmap_mode="r", allow_pickle=False)[row].tobytes()) == expected
    except (OSError, ValueError, IndexError):  # missing, cut short
        return False


def fingerprint(path: Path, number: int, names: Iterable[str], digest: str, images: str | None = None) -> Fingerprint:
    """The fingerprint of the data set `path`, whose `number` files have these names; `UserError` if one is missing."""
    if number > MOST_FILES:
        return {"index": digest, "files": "", "images": images}
    files = hashlib.blake2b(digest_size=8)
    for name in names:
        try:
            status = (path.parent / name).stat()
        except FileNotFoundError:
            raise UserError(f"{path.parent / name}: no such file; make the data set again") from None
        files.update(f"{name} {status.st_size} {status.st_mtime_ns} ".encode())
    return {"index": digest, "files": files.hexdigest(), "images": images}
