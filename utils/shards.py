"""Images in shards: tar files of the WebDataset layout, whose index says where in its shard each image lies.

The files of a sample lie together and have one name up to the first dot. One is the image; `.json` may hold an object
with `labels`, a list of strings, and `group`; `.cls` the label alone. A path leads through a shard: a/000.tar/b/c.png.
Python's tarfile reads the headers, once; nothing is unpacked.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from utils.files import UserError, replace_file

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of images
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def are_meant(path: Path) -> bool:
    """Whether a data set is shards: one, a folder of them, or a row of them, as shards/{000..127}.tar."""
    return path.name.endswith(".tar") or path.is_dir()


def expand(path: Path) -> list[Path]:
    """The shards that are meant, in order; raises `UserError` naming one that is missing."""
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        if not shards:
            raise UserError(f"{path}: holds no dataset.json and no shards; give the path of a dataset.json")
        return shards
    shards = [path]
    while found := BRACES.search(shards[0].name):
        first, last = map(int, found.groups())
        numbers = [str(number).zfill(len(found[1])) for number in range(first, last + 1)]
        shards = [shard.with_name(BRACES.sub(number, shard.name, count=1)) for shard in shards for number in numbers]
        if not numbers:
            raise UserError(f"{path}: no shards; give the numbers of the first and the last one")
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"{shard}: no such shard; check the path, or the numbers of {path.name}")
    return shards


def records(path: Path) -> Iterator[dict]:
    """A record of each sample in shards, as a dataset.json would hold it, one shard after another."""
    for shard in expand(path):
        try:
            yield from _records_of(shard, path.parent)
        except (tarfile.TarError, EOFError, UnicodeDecodeError) as error:
            raise UserError(f"{shard}: not a whole shard ({error}); make or copy it again") from None


def _records_of(shard: Path, folder: Path) -> Iterator[dict]:
    with tarfile.open(shard, "r:") as tar:
        members = (member for member in _members(tar) if member.isfile())
        for key, files in groupby(members, key=lambda member: _key(member.name)):
            image, more = None, {"labels": []}
            for file in files:
                suffix = PurePosixPath(file.name).suffix.lower()
                if suffix in SUFFIXES:
                    image = file
                elif suffix == ".cls":
                    more["labels"] = [_content(shard, file.offset_data, file.size).decode().strip()]
                elif suffix == ".json":
                    more |= _described(shard, file)
            if image is None:
                raise UserError(f"{shard}: its sample {key} has no image; leave it out")
            name = (shard.relative_to(folder) / image.name).as_posix()
            place = {"image_key": image.name, "offset": image.offset_data, "size": image.size}
            yield {"image_fpath": name, **place, **more}


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        yield member
        tar.members.clear()  # it would keep all of them


def _key(name: str) -> str:
    path = PurePosixPath(name)
    return (path.parent / path.name.partition(".")[0]).as_posix()


def _described(shard: Path, file: tarfile.TarInfo) -> dict:
    try:
        found = json.loads(_content(shard, file.offset_data, file.size))
    except ValueError as error:
        raise UserError(f"{shard}: its {file.name} is no JSON ({error}); make the shard again") from None
    return {key: found[key] for key in ("labels", "group") if key in found} if isinstance(found, dict) else {}


def through_shard(path: Path) -> tuple[Path, str] | None:
    """The shard that a path leads through, and the name of the file in it; None of another path."""
    before, found, name = path.as_posix().partition(".tar/")
    return (Path(f"{before}.tar"), name) if found else None


def read_file(path: Path, offset: int = -1, size: int = 0) -> bytes:
    """The content of a file, which may lie in a shard; its place there is looked up where it is not given.

    Raises `FileNotFoundError` where there is none.
    """
    if (found := through_shard(path)) is None:
        return path.read_bytes()
    shard, name = found
    if offset < 0:
        if name not in (places := _places(shard)):
            raise FileNotFoundError(2, "no such file in the shard", str(path))
        offset, size = places[name]
    return _content(shard, offset, size)


def is_file(path: Path) -> bool:
    """Whether there is a file, perhaps in a shard."""
    if (found := through_shard(path)) is None:
        return path.is_file()
    shard, name = found
    return shard.is_file() and name in _places(shard)


def status_of(path: Path) -> os.stat_result:
    """The status of a file, or of the shard that it lies in."""
    found = through_shard(path)
    return (found[0] if found else path).stat()


def _places(shard: Path) -> dict[str, tuple[int, int]]:
    """Where each file of a shard lies, for the few that are looked up by name; it is read again once it has changed."""
    status = shard.stat()
    return _read_places(shard, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _read_places(shard: Path, _size: int, _time: int) -> dict[str, tuple[int, int]]:
    with tarfile.open(shard, "r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in _members(tar)}


def _content(shard: Path, offset: int, size: int) -> bytes:
    return os.pread(_opened(shard, os.getpid()).fileno(), size, offset)


@lru_cache(maxsize=256)
def _opened(shard: Path, _process: int) -> BinaryIO:
    return shard.open("rb")


def write_shard(folder: Path, number: int, files: dict[str, bytes]) -> tuple[Path, dict[str, tuple[int, int]]]:
    """Write files by their names to a shard; return its path, and the offset and the size of each file.

    Equal files give equal bytes. The name of a shard depends on its content too, so that an earlier data set stays
    whole; a shard that is there already keeps its time.
    """
    places, buffer = {}, io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            places[name] = (buffer.tell() + tarfile.BLOCKSIZE, len(content))
            tar.addfile(member, io.BytesIO(content))
    content = buffer.getvalue()
    path = folder / f"{number:06d}_{hashlib.blake2b(content, digest_size=6).hexdigest()}.tar"
    if not (path.is_file() and path.read_bytes() == content):
        with replace_file(path, durable=False) as temporary:
            temporary.write_bytes(content)
    return path, places
