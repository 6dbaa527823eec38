"""What a step has done before its index is written: a line for each part, so that a step that died goes on there."""

import json
from pathlib import Path
from typing import TypeVar

from utils import distributed
from utils.files import replace_file
from utils.index import is_whole
from utils.provenance import Key, digest

T = TypeVar("T")


class Journal:
    """What was done under one key: entries by the names of the parts, each with the checksums of its `files` by name.

    Of parts that are rows of arrays in files, an entry has `rows` instead: lists of file, row and checksum. An entry is
    believed only if its files or rows have these checksums: nothing here is flushed to disk. Each process writes a file
    of its own; all read those of all. What is `finished` already needs no line.
    """

    def __init__(self, path: Path, key: Key, finished: dict[str, dict] | None = None) -> None:
        self.path, self.head = path, json.dumps({"key": digest(key)}).encode()
        self.entries = self._read() | (finished or {})
        distributed.wait()  # until all have read
        if distributed.is_main():
            self._replace(path)
        distributed.wait()
        self.own = path
        if not distributed.is_main():
            self.own = path.with_name(f"{path.stem}_{distributed.rank()}{path.suffix}")
            self._write(self.own, {})

    def find(self, name: str) -> dict | None:
        """The entry of a part, if there is one and its files are as they were written."""
        entry = self.entries.get(name)
        rows = places_of(entry) if entry else ()
        return entry if all(is_whole(self.path.parent / file, expected, row) for file, row, expected in rows) else None

    def missing(self, parts: dict[str, T]) -> list[T]:
        """Those of the parts, by their names, that are still to be done. Each process looks at the files of some."""
        names = distributed.own([*parts])
        found = distributed.gather([name for name in names if not self.find(name)])
        return [parts[name] for names in found for name in names]

    def add(self, entries: dict[str, dict]) -> None:
        """Keep entries by the names of their parts."""
        with self.own.open("ab") as file:
            file.write(json.dumps(entries).encode() + b"\n")
        self.entries |= entries

    def collect(self) -> None:
        """Wait until all processes are done; the first one then has all entries, in one file."""
        distributed.wait()
        if distributed.is_main() and distributed.num_processes() > 1:
            self.entries |= self._read()
            self._replace(self.path)

    def remove(self) -> None:
        """Forget all, once the index is written."""
        self.path.unlink()

    @property
    def _others(self) -> list[Path]:
        """The files of the other processes, perhaps of an earlier job with more of them."""
        return sorted(self.path.parent.glob(f"{self.path.stem}_[0-9]*{self.path.suffix}"))

    def _read(self) -> dict[str, dict]:
        entries: dict[str, dict] = {}
        for path in (self.path, *self._others):
            lines = path.read_bytes().split(b"\n") if path.is_file() else []
            for line in lines[1:-1] if lines[:1] == [self.head] else ():  # a crash may have cut the last line short
                try:
                    entries |= json.loads(line)
                except ValueError:
                    continue
        return entries

    def _replace(self, path: Path) -> None:
        """Write all entries to one file, and remove those of the others."""
        self._write(path, self.entries)
        for other in self._others:
            other.unlink()

    def _write(self, path: Path, entries: dict[str, dict]) -> None:
        with replace_file(path, durable=False) as temporary, temporary.open("wb") as file:
            file.write(self.head + b"\n")
            for name, entry in entries.items():
                file.write(json.dumps({name: entry}).encode() + b"\n")


def places_of(entry: dict) -> list[tuple[str, int | None, str]]:
    """Of each file or row in an entry, its file, its row if it is one, and its checksum."""
    files = [(file, None, expected) for file, expected in entry.get("files", {}).items()]
    return [*files, *map(tuple, entry.get("rows", ()))]
