"""`dataset.json` files, written and read by TinyDB."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tinydb import TinyDB

from utils.core.files import flush_all, replace_file

DEFAULT, INFO = TinyDB.default_table_name, "info"  # tables: the records, and their origin


def write_dataset(path: str | os.PathLike, records: Iterable[dict], info: dict | None = None) -> None:
    """Write a TinyDB file of `records` and a table `info`, atomically, once their files are on disk."""
    path = Path(path)
    flush_all(path.parent)
    tables = {DEFAULT: dict(enumerate(records, 1))} | ({} if info is None else {INFO: {1: info}})
    with replace_file(path) as temporary, TinyDB(temporary) as database:
        database.storage.write(tables)  # all at once, where each insert would write the file again


def read_tables(path: Path) -> Iterator[tuple[str, dict]]:
    """Each record with its table's name; raises `ValueError` or `RecursionError` for other files."""
    with TinyDB(path, access_mode="r", encoding="utf-8") as database:
        tables = database.storage.read()
    for table, records in (tables if isinstance(tables, dict) else {"file": tables}).items():
        if not isinstance(records, dict):
            raise ValueError(f"{table!r} is not an object")
        for number, record in records.items():
            if not (number.isdecimal() and isinstance(record, dict)):
                raise ValueError(f"record {number!r} of {table!r} is not an object with a number as its key")
            yield table, record
