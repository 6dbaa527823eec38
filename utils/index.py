"""`dataset.json` files, in the format of TinyDB: written, read in pieces, and compared with those of before."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

import numpy as np

from utils import shards
from utils.files import UserError, replace_file
from utils.json_stream import JsonStream
from utils.progress import progress

DEFAULT, INFO = "_default", "info"  # tables: the records, and what made them
KEYS = ("image_fpath", "fmap_path")  # of a record: where its file lies
MOST_FILES = 100_000  # whose sizes and times are looked at; of more, the index alone counts

Fingerprint = dict[str, str]  # `index` of the content of a dataset.json, `files` of the sizes and times of its files


def write_dataset(path: str | os.PathLike, records: Iterable[dict], info: dict | None = None) -> None:
    """Write `records` as the default table of the TinyDB file `path`, atomically; `info` goes to its table `info`.

    The files that the records name are on disk before it is.
    """
    os.sync()  # all at once: for thousands of small files it takes a twentieth of the time of an fsync for each
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        _write_table(file, "{", DEFAULT, records)
        if info is not None:
            _write_table(file, ", ", INFO, [info])
        file.write("}")


def _write_table(file: TextIO, before: str, name: str, records: Iterable[dict]) -> None:
    file.write(f"{before}{json.dumps(name)}: ")
    comma = "{"
    for number, record in enumerate(records, 1):
        file.write(f'{comma}"{number}": {json.dumps(record)}')
        comma = ", "
    file.write("}" if comma == ", " else "{}")


def read_records(path: Path, required: tuple[str, ...]) -> Iterator[tuple[str, str, dict]]:
    """Each record of a `dataset.json`, or of each image in shards, with its table and its number, one at a time.

    Raises `UserError` if the file is not one, or if a record of a file lacks a `required` key, each a string.
    """
    if shards.are_meant(path):
        for number, record in enumerate(shards.records(path), 1):
            _check(path, number, record, required)
            yield DEFAULT, str(number), record
        return
    if not path.is_file():
        raise UserError(f"{path}: no such data set; give the path of a dataset.json")
    found = 0
    try:
        with path.open(encoding="utf-8") as file:
            stream = JsonStream(file)
            for table in stream.members():
                for number in stream.members():
                    record = stream.value()
                    if not (number.isdecimal() and isinstance(record, dict)):
                        raise ValueError(f"record {number!r} of {table!r} has no number or is no object")
                    if table == DEFAULT:
                        found += 1
                        _check(path, found, record, required)
                    yield table, number, record
            stream.end()
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: not a dataset.json ({error}); make it with scripts.make_dataset") from None
    if not found:
        raise UserError(f"{path}: holds no records; make the data set again")


def _check(path: Path, number: int, record: dict, required: tuple[str, ...]) -> None:
    for key in required:
        if not isinstance(record.get(key), str):
            raise UserError(f"{path}: record {number} has no string {key!r}; make the data set again")


def read_dataset(path: str | os.PathLike, required: tuple[str, ...]) -> tuple[list[dict], dict]:
    """Read all records and the info of a `dataset.json`; for many, `utils.records` needs less memory."""
    tables: dict[str, list[dict]] = {DEFAULT: [], INFO: []}
    for table, _, record in read_records(Path(path), required):
        tables.setdefault(table, []).append(record)
    return tables[DEFAULT], (tables[INFO] or [{}])[0]


def checksum(content: bytes) -> str:
    """What a record keeps of the content of its file."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def is_whole(path: Path, expected: str, row: int | None = None) -> bool:
    """Whether a file, or a row of the array in it, is there and has this checksum."""
    try:
        if row is None:
            return checksum(shards.read_file(path)) == expected
        return checksum(np.load(path, mmap_mode="r", allow_pickle=False)[row].tobytes()) == expected
    except (OSError, ValueError, IndexError):  # missing, cut short
        return False


class IndexDigest:
    """A hash of the records of a `dataset.json`, without where the images of feature maps lie."""

    def __init__(self) -> None:
        self.in_order, self.number = hashlib.blake2b(digest_size=8), 0
        self.tables: dict[str, dict[str, dict]] = {}  # of few records, whose order does not matter

    def add(self, table: str, number: str, record: dict) -> None:
        """Add a record."""
        if table == DEFAULT:
            record = {key: value for key, value in record.items() if key != "image_path"}  # changes when either moves
            self.number += 1
        self.in_order.update(json.dumps([table, number, record], sort_keys=True).encode())
        if self.number > MOST_FILES:
            self.tables.clear()
        else:
            self.tables.setdefault(table, {})[number] = record

    def hexdigest(self) -> str:
        """The hash of all that were added."""
        if self.number > MOST_FILES:
            return self.in_order.hexdigest()
        return checksum(json.dumps(self.tables, sort_keys=True).encode())


def fingerprint(path: Path, names: Collection[str], digest: str) -> Fingerprint:
    """A fingerprint of the data set `path`, whose files have these names and whose records have this digest.

    Raises `UserError` naming a missing file.
    """
    files = hashlib.blake2b(digest_size=8)
    for name in names if len(names) <= MOST_FILES else ():
        try:
            status = shards.status_of(path.parent / name)
        except FileNotFoundError:
            raise UserError(f"{path.parent / name}: no such file; make the data set again") from None
        files.update(f"{name} {status.st_size} {status.st_mtime_ns} ".encode())
    found = files.hexdigest() if len(names) <= MOST_FILES else ""
    return {"index": digest, "files": found}


def check_same(where: Path, before: Mapping[str, str], now: Fingerprint, path: Path, *, verify: bool) -> None:
    """Raise `UserError` unless the data set `path` is the one, `before`, that `where` was made from.

    Where only times and sizes differ, as after a copy, `verify` reads all files once and compares their checksums.
    """
    if before["index"] != now["index"]:
        raise UserError(
            f"{where}: was made from another data set than {path} is now; give the former one, or start anew with "
            "--overwrite"
        )
    if before["files"] != now["files"]:
        if not verify:
            raise UserError(
                f"{path}: its files have other times or sizes than when {where} was written; add --verify to read them "
                "once and go on if they are the same, or start anew with --overwrite"
            )
        verify_files(path)


def verify_files(path: Path) -> None:
    """Read all files of a data set; raises `UserError` naming the first that is not as it was written."""
    for record in progress(read_dataset(path, ())[0], unit="file", desc=f"verifying {path.parent.name}"):
        file = path.parent / name_of(path, record)
        if "checksum" not in record:
            raise UserError(
                f"{path}: holds no checksums, so --verify cannot compare; make the data set again, or start anew with "
                "--overwrite"
            )
        if not is_whole(file, record["checksum"], record.get("row")):
            raise UserError(f"{file}: is not the file that was written; make the data set again")


def name_of(path: Path, record: dict) -> str:
    """The name of a record's file, relative to the folder of the data set `path`."""
    for key in KEYS:
        if isinstance(record.get(key), str):
            return record[key]
    raise UserError(f"{path}: a record has no {' and no '.join(map(repr, KEYS))}; make the data set again")


def find_index(path: Path) -> Path:
    """The data set that a path means: of a folder the dataset.json in it, if there is one."""
    return path / "dataset.json" if (path / "dataset.json").is_file() else path
