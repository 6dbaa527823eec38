"""The size of an image, as people say it: width × height. Tensors and JSON lists of shapes have height before width."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

MOST_PIXELS = 2**13  # pixels on a side: Pillow takes a square of twice as many for an attack


@dataclass(frozen=True)
class Size:
    """Width and height in pixels. As text it is what flags and recipes take: 96x64, or 64 of a square."""

    width: int
    height: int

    @classmethod
    def parse(cls, given: str | int) -> "Size":
        """Read "96x64", or 64 or "64" of a square. Raises `ValueError` for anything else."""
        match = re.fullmatch(r"([0-9]{1,5})(?:[x×]([0-9]{1,5}))?", str(given).lower())
        sides = [int(side or match[1]) for side in match.groups()] if match else []
        if not sides or not all(1 <= side <= MOST_PIXELS for side in sides):
            expected = "expected WIDTHxHEIGHT, such as 96x64, or one number for a square"
            raise ValueError(f"{given!r} is not a size; {expected}, of 1 to {MOST_PIXELS} pixels a side")
        return cls(*sides)

    @classmethod
    def of(cls, shape: Sequence[int]) -> "Size":
        return cls(shape[-1], shape[-2])

    @property
    def plain(self) -> int | str:
        """As JSON keeps it: one number for a square."""
        return self.width if self.width == self.height else f"{self.width}x{self.height}"

    def __str__(self) -> str:
        return str(self.plain)

    @property
    def shown(self) -> str:
        return f"{self.width}×{self.height}"

    def multiples(self, width: int, height: int) -> list["Size"]:
        """The next smaller and the next larger size of multiples of a width and a height; this alone if it is one."""
        fewer = max(1, self.width // width), max(1, self.height // height)
        more = -(-self.width // width), -(-self.height // height)
        return list(dict.fromkeys(Size(columns * width, rows * height) for columns, rows in (fewer, more)))
