"""`dataset.json` files, in the format of TinyDB: written and read record by record, and fingerprints of them."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from utils import shards
from utils.files import UserError, flush_all, replace_file
from utils.progress import progress

DEFAULT, INFO = "_default", "info"  # tables: the records, and what made them
HEAD = f'{{"{DEFAULT}": {{\n'  # first line of a file of ours; then a line for each record
RECORD = re.compile(r'"\d+": (\{.*\}),?\n')
KEYS = ("image_fpath", "fmap_path")  # of a record: where its file lies
MOST_FILES = 100_000  # whose sizes and times are looked at; of more, the index alone counts

Fingerprint = dict[str, str]  # `index` of the content of a dataset.json, `files` of the sizes and times of its files


def write_dataset(path: str | os.PathLike, records: Iterable[dict], info: dict | None = None) -> None:
    """Write `records`, one a line, as the default table of the TinyDB file `path`, atomically; `info` to table `info`.

    The files that the records name are on disk before it is.
    """
    path, separator = Path(path), ""
    flush_all(path.parent)
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(HEAD)
        for number, record in enumerate(records, 1):
            file.write(f'{separator}"{number}": {json.dumps(record)}')
            separator = ",\n"
        file.write("\n}" if separator else "}")
        file.write("}" if info is None else f', "{INFO}": {{"1": {json.dumps(info)}}}}}')


def read_records(path: Path, required: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    """Each record of a `dataset.json`, or of each image in shards, with its table, one at a time.

    Raises `UserError` if the file is not one, or if a record of a file lacks a `required` key, each a string.
    """
    if not shards.are_meant(path) and not path.is_file():
        raise UserError(f"{path}: no such data set; give the path of a dataset.json")
    number = 0
    try:
        for table, record in _tables(path):
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


def _tables(path: Path) -> Iterator[tuple[str, dict]]:
    """The records with their tables. Ours are read by line; what follows, and a file of other origin, at once."""
    if shards.are_meant(path):
        yield from ((DEFAULT, record) for record in shards.records(path))
        return
    with path.open(encoding="utf-8") as file:
        line = file.readline()
        head = HEAD if line == HEAD else ""
        if head:
            for line in file:
                if (found := RECORD.fullmatch(line)) is None:
                    break
                yield DEFAULT, json.loads(found[1])
        tables = json.loads(head + line + file.read())
    for table, records in (tables if isinstance(tables, dict) else {"file": tables}).items():
        if not isinstance(records, dict):
            raise ValueError(f"{table!r} is no object")
        for number, record in records.items():
            if not (number.isdecimal() and isinstance(record, dict)):
                raise ValueError(f"record {number!r} of {table!r} has no number or is no object")
            yield table, record


def read_dataset(path: str | os.PathLike, required: tuple[str, ...]) -> tuple[list[dict], dict]:
    """Read all records and the info of a `dataset.json`; for many, `utils.records` needs less memory."""
    tables: dict[str, list[dict]] = {DEFAULT: [], INFO: []}
    for table, record in read_records(Path(path), required):
        tables.setdefault(table, []).append(record)
    return tables[DEFAULT], (tables[INFO] or [{}])[0]


def checksum(content: bytes) -> str:
    """What a record keeps of the content of its file."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def is_whole(path: Path, expected: str, row: int | None = None, place: shards.Place | None = None) -> bool:
    """Whether a file, a row of the array in it, or a place in a shard, is there and has this checksum."""
    try:
        if row is None:
            return checksum(shards.read_file(path, place)) == expected
        return checksum(np.load(path, mmap_mode="r", allow_pickle=False)[row].tobytes()) == expected
    except (OSError, ValueError, IndexError):  # missing, cut short
        return False


def canonical(table: str, record: dict) -> bytes:
    """What counts of a record in the digest of a data set: not where an image lies, since either may be moved."""
    return json.dumps([table, {**record, "image_path": None}], sort_keys=True).encode()


def fingerprint(path: Path, number: int, names: Iterable[str], digest: str) -> Fingerprint:
    """A fingerprint of the data set `path`, whose `number` files have these names and whose records have this digest.

    Raises `UserError` naming a missing file.
    """
    if number > MOST_FILES:
        return {"index": digest, "files": ""}
    files = hashlib.blake2b(digest_size=8)
    for name in names:
        try:
            status = (path.parent / name).stat()
        except FileNotFoundError:
            raise UserError(f"{path.parent / name}: no such file; make the data set again") from None
        files.update(f"{name} {status.st_size} {status.st_mtime_ns} ".encode())
    return {"index": digest, "files": files.hexdigest()}


def verify_files(path: Path) -> None:
    """Read all files of a data set; raises `UserError` naming the first that is not as it was written."""
    for record in progress(read_dataset(path, ())[0], unit="file", desc=f"verifying {path.parent.name}"):
        file, is_map = path.parent / name_of(path, record), "fmap_path" in record
        place = None if is_map else shards.place_of(record)
        if "checksum" not in record:
            raise UserError(
                f"{path}: holds no checksums, so --verify cannot compare; make the data set again, or start anew with "
                "--overwrite"
            )
        if not is_whole(file, record["checksum"], record.get("row"), place):
            raise UserError(f"{shards.shown(file, place)}: is not the file that was written; make the data set again")


def name_of(path: Path, record: dict) -> str:
    """The name of a record's file, relative to the folder of the data set `path`."""
    for key in KEYS:
        if isinstance(record.get(key), str):
            return record[key]
    raise UserError(f"{path}: a record has no {' and no '.join(map(repr, KEYS))}; make the data set again")


def find_index(path: Path) -> Path:
    """The data set that a path means: of a folder the dataset.json in it, if there is one."""
    return path / "dataset.json" if (path / "dataset.json").is_file() else path
