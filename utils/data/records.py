"""The records of a data set of any size: the text of each, and a table of the numbers that are needed of all."""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tarfile import BLOCKSIZE

import numpy as np

from utils.core.files import UserError
from utils.core.provenance import digest
from utils.data.checksums import checksum, is_whole
from utils.data.dataset_json import DEFAULT, INFO, read_tables
from utils.data.shards import ShardEntry, entry_of, expand, is_sharded, read_file, read_shards, shown
from utils.data.split import position
from utils.runtime.progress import progress

LARGE = 2**23  # bytes of a data set whose records a process reads once: 3 s for 100,000

# Of each record: where its text ends, its position in a split, the row of the array in its file (-1: none), the first
# record of the run of records with the same file, and whether it is mirrored, and moved.
ROW = np.dtype(
    [("end", "<i8"), ("position", "<f8"), ("row", "<i8"), ("first", "<i8"), ("flipped", "?"), ("moved", "?")]
)
PACKED = struct.Struct("<qdqq??")


def is_text(value: object) -> bool:
    """Whether a value is a string that can be a path: without NUL, and valid as UTF-8."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


KINDS = {  # of the values of these keys, each with how it is known
    **dict.fromkeys(
        ("checksum", "image_key", "image_path", "image_fpath", "fmap_path", "original_path"),
        ("a UTF-8 string without NUL", is_text),
    ),
    **dict.fromkeys(
        ("row", "offset", "size"),
        ("an integer from 0 to 2**63 - 1", lambda value: isinstance(value, int) and 0 <= value < 2**63),
    ),
    "labels": ("a list of strings", lambda value: isinstance(value, list) and all(isinstance(x, str) for x in value)),
    "group": ("a non-empty UTF-8 string without NUL", lambda value: is_text(value) and value != ""),
}


@dataclass(frozen=True)
class Records:
    """N records: `records[index]` reads one."""

    text: bytes  # JSON, one record after another
    table: np.ndarray  # N of `ROW`
    info: dict  # of the data set
    digest: str  # of all records: the first part of a fingerprint
    images: str | None  # the last part of a fingerprint
    key: str  # of a record: the one that names its file

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        ends = self.table["end"]
        end = ends[index]  # an IndexError ends an iteration
        return json.loads(self.text[ends[index - 1] if index else 0 : end])

    @property
    def files(self) -> tuple[int, Iterator[str]]:
        """How many files there are, and their names; a run of records with the same one counts once."""
        firsts = np.flatnonzero(self.table["first"] == np.arange(len(self))).tolist()
        return len(firsts), (self[index][self.key] for index in firsts)


def image_key(record: dict) -> str:
    keys = ("image_key", *(("image_path", "fmap_path") if "fmap_path" in record else ("image_fpath",)))
    return next(record[key] for key in keys if key in record)


def read_packed(path: Path, required: tuple[str, ...]) -> Records:
    """The records of a `dataset.json` or of shards, each with strings at the `required` keys, its file's name first.

    Those of large files and of shards are read once by a process, until a file changes. Raises `UserError` naming a
    record without a key, or with a value of a wrong type.
    """
    state, size = state_of(path)
    return _read_once(path, required, state) if size >= LARGE or is_sharded(path) else pack(path, required)


@lru_cache(maxsize=4)
def _read_once(path: Path, required: tuple[str, ...], _: str) -> Records:
    return pack(path, required)


def pack(path: Path, required: tuple[str, ...]) -> Records:
    text, packed, info, digest, key = bytearray(), bytearray(), {}, hashlib.blake2b(digest_size=8), required[0]
    number, first, last, images = 0, 0, None, 0
    for table, record in read_records(path, required):
        # Without the path to the image of a feature map, which changes where one of them is moved, and without that of
        # the file that an image was made from, which a person may rename.
        counted = {name: record[name] for name in record if name != "original_path"} | {"image_path": None}
        digest.update(json.dumps([table, counted], sort_keys=True).encode())
        if table == INFO:
            info = info or record
        if table != DEFAULT:
            continue
        for name in filter(KINDS.get, record):
            kind, is_right = KINDS[name]
            if not is_right(record[name]):
                raise UserError(f"{path}: {name!r} of record {number + 1} is not {kind}; make the data set again")
        if "offset" in record and (lacking := [name for name in ShardEntry._fields if name not in record]):
            raise UserError(f"{path}: record {number + 1} has no {lacking[0]!r}; make the data set again")
        if record[key] != last:
            first, last = number, record[key]
        text += json.dumps(record).encode()
        name = image_key(record)
        split_by = record.get("group") or name
        picture = record.get("checksum") or f"{name} {record.get('size')}"
        images += int(checksum(f"{picture} {split_by}".encode()), 16)  # a sum, since their order does not matter
        flags = bool(record.get("flipped")), bool(record.get("moved"))
        packed += PACKED.pack(len(text), position(split_by), record.get("row", -1), first, *flags)
        number += 1
    behind = info.get("images") if key == "fmap_path" else f"{images % 2**64:016x}"
    return Records(bytes(text), np.frombuffer(packed, ROW), info, digest.hexdigest(), behind, key)


def state_of(path: Path) -> tuple[str, int]:
    """What tells that the files of a data set have changed: of each the size, timestamp and first header; all bytes."""
    files, size, each = expand(path) if is_sharded(path) else [path] if path.is_file() else [], 0, []
    for file in files:
        status = file.stat()
        size += status.st_size
        with file.open("rb") as opened:
            each.append([file.name, status.st_size, status.st_mtime_ns, checksum(opened.read(BLOCKSIZE))])
    return digest(each), size


def read_records(path: Path, required: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    """Each record of a `dataset.json` or of shards with its table's name; `UserError` if one lacks a `required` key."""
    if is_sharded(path):
        tables = ((DEFAULT, record) for record in read_shards(path))
    elif path.is_file():
        tables = read_tables(path)
    else:
        raise UserError(f"{path}: no such data set; give the path of a dataset.json")
    number = 0
    try:
        for table, record in tables:
            if table == DEFAULT:
                number += 1
                for key in required:
                    if not isinstance(record.get(key), str):
                        raise UserError(f"{path}: record {number} has no string {key!r}; make the data set again")
            yield table, record
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a dataset.json ({error}); make it with scripts.make_dataset") from None
    if not number:
        raise UserError(f"{path}: holds no records; make the data set again")


def read_dataset(path: str | os.PathLike, required: tuple[str, ...]) -> tuple[list[dict], dict]:
    """Read all records and the info of a `dataset.json`; for many, `read_packed` needs less memory."""
    tables: dict[str, list[dict]] = {DEFAULT: [], INFO: []}
    for table, record in read_records(Path(path), required):
        tables.setdefault(table, []).append(record)
    return tables[DEFAULT], (tables[INFO] or [{}])[0]


def verify_files(path: Path) -> None:
    """Read all files of a data set; raises `UserError` naming the first that is not as it was written."""
    for record in progress(read_dataset(path, ())[0], unit="file", desc=f"verifying {path.parent.name}"):
        is_map = "fmap_path" in record
        entry = None if is_map else entry_of(record)
        file = path.parent / record["fmap_path" if is_map else "image_fpath"]
        if "checksum" not in record:
            advice = "make the data set again, or start anew with --overwrite"
            raise UserError(f"{path}: holds no checksums, so --verify cannot compare; {advice}")
        if not is_whole(file, record["checksum"], record.get("row"), partial(read_file, entry=entry)):
            raise UserError(f"{shown(file, entry)}: is not the file that was written; make the data set again")
