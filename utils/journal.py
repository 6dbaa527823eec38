"""What a step has written before its index is: a line a file, so that a step that died goes on after them."""

import json
from pathlib import Path

from utils.files import replace_file
from utils.index import checksum


class Journal:
    """The entries of the files that a step has written under one key, by their items' names.

    An entry is believed only if its file has the checksum that it holds: nothing here is flushed to disk.
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
        self.file = path.open("ab")

    def find(self, name: str) -> dict | None:
        """The entry of an item, if there is one and its file is as it was written."""
        entry = self.entries.get(name)
        file = entry and self.path.parent / entry["file"]
        return entry if file and file.is_file() and checksum(file.read_bytes()) == entry["checksum"] else None

    def add(self, entries: dict[str, dict]) -> None:
        """Keep entries by the names of their items; each holds its `file` and that file's `checksum`."""
        self.file.write(json.dumps(entries).encode() + b"\n")
        self.file.flush()

    def remove(self) -> None:
        """Forget all, once the index is written."""
        self.file.close()
        self.path.unlink()
