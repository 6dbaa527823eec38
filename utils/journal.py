"""What a step has done before its index is written: a line for each part, so that a step that died goes on there."""

import json
from pathlib import Path

from utils.files import replace_file
from utils.index import is_whole


class Journal:
    """What was done under one key: entries by the names of the parts, each with the checksums of its `files` by name.

    Of parts that are rows of arrays in files, an entry has `rows` instead: lists of file, row and checksum. An entry is
    believed only if its files or rows have these checksums: nothing here is flushed to disk.
    """

    def __init__(self, path: Path, key: object) -> None:
        self.path, self.entries = path, {}
        head = json.dumps({"key": key})
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        whole = lines[:-1] if lines and lines[0] == head.encode() else []  # a crash may have cut the last line short
        for line in whole[1:]:
            try:
                self.entries |= json.loads(line)
            except ValueError:
                continue
        with replace_file(path, durable=False) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in whole or [head.encode()]))

    def find(self, name: str) -> dict | None:
        """The entry of a part, if there is one and its files are as they were written."""
        entry = self.entries.get(name)
        rows = places_of(entry) if entry else ()
        return entry if all(is_whole(self.path.parent / file, expected, row) for file, row, expected in rows) else None

    def add(self, entries: dict[str, dict]) -> None:
        """Keep entries by the names of their parts."""
        with self.path.open("ab") as file:
            file.write(json.dumps(entries).encode() + b"\n")
        self.entries |= entries

    def remove(self) -> None:
        """Forget all, once the index is written."""
        self.path.unlink()


def places_of(entry: dict) -> list[tuple[str, int | None, str]]:
    """Of each file or row in an entry, its file, its row if it is one, and its checksum."""
    files = [(file, None, expected) for file, expected in entry.get("files", {}).items()]
    return [*files, *map(tuple, entry.get("rows", ()))]
