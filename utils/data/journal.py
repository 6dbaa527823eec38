"""The parts that a step has finished before its index is written, so that a step that died resumes after them."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from utils.core.files import write_file
from utils.core.provenance import Key, digest
from utils.data.checksums import is_whole
from utils.runtime import distributed

T = TypeVar("T")


class Journal:
    """The parts that were done under one key: entries by their names, each with the `places` that it has written.

    A place is a file, a row of the array in it or None, and the checksum of either, without which an entry does not
    count: nothing here is flushed to disk. Each process writes a file of its own, and reads all.
    """

    def __init__(self, path: Path, key: Key, finished: dict[str, dict] | None = None) -> None:
        self.path = self.own = path
        self.head = json.dumps({"key": digest(key)}).encode()
        self.entries = self._read() | (finished or {})
        distributed.barrier()  # until all have read
        if distributed.is_main():
            self._write()
        distributed.barrier()
        if not distributed.is_main():
            self.own = path.with_name(f"{path.stem}_{distributed.rank()}{path.suffix}")
            write_file(self.own, self.head + b"\n", durable=False)

    def find(self, name: str) -> dict | None:
        """The entry of a part, if there is one and its places are as they were written."""
        entry, folder = self.entries.get(name), self.path.parent
        with suppress(KeyError, TypeError, ValueError):  # of a damaged entry
            if entry and all(is_whole(folder / file, expected, row) for file, row, expected in entry["places"]):
                return entry
        return None

    def missing(self, parts: dict[str, T]) -> list[T]:
        """The parts, by their names, that are still to be done. Each process checks the files of its share."""
        names = distributed.my_items([*parts])
        missing = distributed.gather([name for name in names if not self.find(name)])
        return [parts[name] for names in missing for name in names]

    def add(self, entries: dict[str, dict]) -> None:
        with self.own.open("ab") as file:
            file.write(json.dumps(entries).encode() + b"\n")
        self.entries |= entries

    def collect(self) -> None:
        """Wait until all processes are done; the first one then has all entries, in one file."""
        distributed.barrier()
        if distributed.is_main() and distributed.num_processes() > 1:
            self.entries |= self._read()
            self._write()

    def _others(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}_[0-9]*{self.path.suffix}"))

    def _read(self) -> dict[str, dict]:
        entries: dict[str, dict] = {}
        for path in (self.path, *self._others()):
            lines = path.read_bytes().split(b"\n") if path.is_file() else []
            for line in lines[1:-1] if lines[:1] == [self.head] else ():  # a crash may have cut the last line short
                with suppress(RecursionError, TypeError, ValueError):
                    entries |= json.loads(line)
        return entries

    def _write(self) -> None:
        lines = [self.head, *(json.dumps({name: entry}).encode() for name, entry in self.entries.items()), b""]
        write_file(self.path, b"\n".join(lines), durable=False)
        for other in self._others():
            other.unlink()
