"""Images in shards: tar files of the WebDataset layout, whose records say where in its shard each image lies.

The files of a sample lie together and have one name up to the first dot. One is the image; `.json` may hold an object
with `labels`, a list of strings, `group` and `original_path`; `.cls` the label alone. Python's tarfile reads the
headers, once; nothing is unpacked.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from utils.core.files import UserError, file_at, write_file

HEIF_SUFFIXES = (".heic", ".heif", ".hif")  # of images that pillow-heif reads
SUFFIXES = (  # of images
    *(".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    *HEIF_SUFFIXES,
)
DESCRIBED = ("labels", "group", "original_path")  # keys of a record that the JSON beside an image in a shard may hold
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardEntry(NamedTuple):
    """Where an image lies in a shard, by the keys of its record; the first is its name there."""

    image_key: str
    offset: int
    size: int


def entry_of(record: dict) -> ShardEntry | None:
    return ShardEntry(*(record[key] for key in ShardEntry._fields)) if "offset" in record else None


def shown(path: Path, entry: ShardEntry | None) -> Path:
    return path / entry.image_key.lstrip("/") if entry else path


def read_file(path: Path, entry: ShardEntry | None = None) -> bytes:
    if entry is None:
        return file_at(path).read_bytes()
    file = _opened(path, os.getpid(), threading.get_ident())
    file.seek(entry.offset)
    return file.read(entry.size)


@lru_cache(maxsize=256)
def _opened(shard: Path, _process: int, _thread: int) -> BinaryIO:
    """An open shard: processes and threads that share one would move its position."""
    return shard.open("rb", buffering=0)


def is_sharded(path: Path) -> bool:
    """Whether a data set is shards: one, a folder of them, or several, as shards/{000..127}.tar."""
    return path.name.endswith(".tar") or path.is_dir()


def expand(path: Path) -> list[Path]:
    """The shards that are meant, in order; raises `UserError` naming one that is missing."""
    if path.is_dir():
        if shards := sorted(path.glob("*.tar")):
            return shards
        advice = "scripts.make_dataset makes the dataset.json of a folder of images"
        raise UserError(f"{path}: holds no dataset.json and no shards; {advice}")
    shards = [path]
    while braces := BRACES.search(shards[0].name):
        first, last = map(int, braces.groups())
        numbers = [str(number).zfill(len(braces[1])) for number in range(first, last + 1)]
        shards = [shard.with_name(BRACES.sub(number, shard.name, count=1)) for shard in shards for number in numbers]
        if not numbers:
            raise UserError(f"{path}: no shards; give the numbers of the first and the last one")
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"{shard}: no such shard; check the path, or the numbers of {path.name}")
    return shards


def read_shards(path: Path) -> Iterator[dict]:
    """A record of each sample in shards, as a dataset.json would hold it, one shard after another."""
    for shard in expand(path):
        try:
            yield from _records_of(shard, path.parent)
        except (tarfile.TarError, EOFError, UnicodeDecodeError) as error:
            raise UserError(f"{shard}: not a whole shard ({error}); make or copy it again") from None


def _records_of(shard: Path, folder: Path) -> Iterator[dict]:
    with tarfile.open(shard, "r:") as tar:
        for key, files in groupby(_members(tar), key=lambda member: _key(member.name)):
            image, more = None, {"labels": []}
            for file in files:
                suffix = PurePosixPath(file.name).suffix.lower()
                if suffix in SUFFIXES:
                    image = file
                elif suffix == ".cls":
                    more["labels"] = [tar.extractfile(file).read().decode().strip()]
                elif suffix == ".json":
                    more |= _described(shard, file.name, tar.extractfile(file).read())
            if image is None:
                raise UserError(f"{shard}: its sample {key} has no image; leave it out")
            entry = ShardEntry(image.name, image.offset_data, image.size)
            yield {"image_fpath": shard.relative_to(folder).as_posix(), **entry._asdict(), **more}


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files in a shard, one at a time; raises `TarError` where tarfile would end without a word."""
    while (member := tar.next()) is not None:
        if member.isfile():
            yield member
        elif not member.isdir():
            raise tarfile.TarError(f"{member.name} is a link, not a regular file")
        tar.members.clear()  # it would keep all of them
    tar.fileobj.seek(tar.offset)  # of the end, or of a header that is no header
    end = tar.fileobj.read(2**20)
    if not end or end.strip(b"\0"):
        raise tarfile.TarError(f"damaged or cut at byte {tar.offset}")


def _key(name: str) -> str:
    """The name of the sample that a file is of: its path up to the first dot of its name."""
    path = PurePosixPath(name)
    return (path.parent / path.name.partition(".")[0]).as_posix()


def _described(shard: Path, name: str, content: bytes) -> dict:
    try:
        more = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shard}: its {name} is not valid JSON ({error}); make the shard again") from None
    return {key: more[key] for key in DESCRIBED if key in more} if isinstance(more, dict) else {}


def write_shard(folder: Path, number: int, files: dict[str, bytes]) -> tuple[Path, dict[str, ShardEntry]]:
    """Write files by their names to a shard, named by its content; return its path, and the entry of each file in it.

    So an earlier data set stays whole. A shard that exists keeps its timestamp.
    """
    entries, buffer = {}, io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            entries[name] = ShardEntry(name, buffer.tell() + tarfile.BLOCKSIZE, len(content))
            tar.addfile(member, io.BytesIO(content))
    content = buffer.getvalue()
    path = folder / f"{number:06d}_{hashlib.blake2b(content, digest_size=6).hexdigest()}.tar"
    if not (path.is_file() and path.read_bytes() == content):
        write_file(path, content, durable=False)
    return path, entries
