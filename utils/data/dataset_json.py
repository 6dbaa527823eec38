"""`dataset.json` files, in the format of TinyDB: written and read record by record."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.core.files import flush_all, replace_file

DEFAULT, INFO = "_default", "info"  # tables: the records, and their origin
HEAD = f'{{"{DEFAULT}": {{\n'  # first line of a file of ours; then a line for each record
RECORD = re.compile(r'"\d+": (\{.*\}),?\n')


def write_dataset(path: str | os.PathLike, records: Iterable[dict], info: dict | None = None) -> None:
    """Write a TinyDB file of `records`, one a line, and a table `info`, atomically, once their files are on disk."""
    path, separator = Path(path), ""
    flush_all(path.parent)
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(HEAD)
        for number, record in enumerate(records, 1):
            file.write(f'{separator}"{number}": {json.dumps(record)}')
            separator = ",\n"
        file.write("\n}" if separator else "}")
        file.write("}" if info is None else f', "{INFO}": {{"1": {json.dumps(info)}}}}}')


def read_tables(path: Path) -> Iterator[tuple[str, dict]]:
    """Each record with its table's name, ours by line; raises `ValueError` or `RecursionError` for other files."""
    with path.open(encoding="utf-8") as file:
        line = file.readline()
        head = HEAD if line == HEAD else ""
        if head:
            for line in file:
                if (record := RECORD.fullmatch(line)) is None:
                    break
                yield DEFAULT, json.loads(record[1])
        tables = json.loads(head + line + file.read())
    for table, records in (tables if isinstance(tables, dict) else {"file": tables}).items():
        if not isinstance(records, dict):
            raise ValueError(f"{table!r} is not an object")
        for number, record in records.items():
            if not (number.isdecimal() and isinstance(record, dict)):
                raise ValueError(f"record {number!r} of {table!r} is not an object with a number as its key")
            yield table, record
