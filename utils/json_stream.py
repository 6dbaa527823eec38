"""Reads a large JSON file piece by piece, so that only one value at a time is in memory."""

import json
import re
from collections.abc import Iterator
from typing import TextIO

PIECE = 2**20  # characters that are read at once
DECODER = json.JSONDecoder()
BEHIND = (" ", "\t", "\r", "\n", ",", ":", "}", "]")  # what may follow a value
NO_SPACE = re.compile(r"[^ \t\r\n]")


class JsonStream:
    """The text of a JSON file, read once from its beginning. Raises `ValueError` where it is no JSON."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.at = file, "", 0

    def members(self) -> Iterator[str]:
        """Read an object: yield each key, after which its value is to be read."""
        self._take("{")
        if self._peek() == "}":
            self._take("}")
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is no string")
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def value(self) -> object:
        """Read a whole value."""
        self._peek()
        while True:
            try:
                found, end = DECODER.raw_decode(self.text, self.at)
            except ValueError:
                if not self._read_on():
                    raise
            else:
                if self.text[end : end + 1] in BEHIND or not self._read_on():  # a number may go on
                    self.at = end
                    return found

    def end(self) -> None:
        """Check that nothing follows."""
        if found := self._peek():
            raise ValueError(f"{found!r} follows its end")

    def _peek(self) -> str:
        """The next character that is no space, or none at the end of the file."""
        while (found := NO_SPACE.search(self.text, self.at)) is None:
            if not self._read_on():
                return ""
        self.at = found.start()
        return found[0]

    def _take(self, expected: str) -> str:
        """Read the next character, which is one of those expected."""
        if (found := self._peek()) == "" or found not in expected:
            raise ValueError(f"expected {' or '.join(expected)}, not {found or 'its end'}")
        self.at += 1
        return found

    def _read_on(self) -> bool:
        """Read another piece of the file; False at its end."""
        piece = self.file.read(PIECE)
        if piece:
            self.text, self.at = self.text[self.at :] + piece, 0
        return bool(piece)
