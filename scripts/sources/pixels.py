"""Pixel art: the sprites of Freedoom, which vizdoom holds; all sprites of a character or a thing are one group."""

import random
import struct
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from utils.core.size import Size

PACKAGES, REQUIREMENTS = ("vizdoom",), "requirements-extra.txt"
LICENCE = (
    "bsd-3-clause",
    "The sprites of [Freedoom](https://freedoom.github.io), copyright by the contributors to the Freedoom project. "
    "Licence: [BSD 3-Clause](https://github.com/freedoom/freedoom/blob/master/COPYING.adoc).",
)
NUM_IMAGES, SETTINGS = None, {"group": "character"}
BACKGROUND = (0xDB, 0xE4, 0xEE)
TRANSPARENT = -1
LARGEST = 1.5  # times the picture's size: a larger sprite is made smaller
# The first four letters of a sprite's name say what it is. What looks like another thing, or has its colours changed,
# is of its group; dead bodies are left out.
SAME = {
    "BOS2": "BOSS", "PLYC": "PLAY", "ARM2": "ARM1", "BON2": "BON1", "RKEY": "BKEY", "YKEY": "BKEY", "RSKU": "BSKU",
    "YSKU": "BSKU", "TBLU": "TRED", "TGRN": "TRED", "SMBT": "SMRT", "SMGT": "SMRT", "TLP2": "TLMP", "BFGF": "BFGG",
    "CHGF": "CHGG", "MISF": "MISG", "PISF": "PISG", "PLSF": "PLSG", "SHTF": "SHTG", "SHT2": "SHTG", "CELP": "CELL",
    "IFOG": "TFOG", "COL2": "COL1", "COL3": "COL1", "COL4": "COL1", "COL5": "COL1", "COL6": "COL1",
}  # fmt: skip
LEFT_OUT = ("BRS", "GOR", "HDB", "POB", "POL")


def items(seed: int, limit: int | None) -> list[str]:
    """The names of all sprites, shuffled so that the first few are of all kinds."""
    names = [name for name in sorted(read_wad()[1]) if not name.startswith(LEFT_OUT)]
    random.Random(seed).shuffle(names)
    return names


def describe() -> Callable[[str], dict]:
    """A function from a sprite to its group."""
    return lambda name: {"labels": [], "group": f"freedoom2/{SAME.get(name[:4], name[:4])}"}


def draw(name: str, seed: int, size: Size) -> Image.Image:
    """A sprite in the middle of a plain picture, RGB.

    A pixel of the sprite is one of the picture, or 2×2 in a picture of 128×128; of a sprite that is too large, every
    second or third pixel is left.
    """
    palette, sprites = read_wad()
    sprite = read_sprite(sprites[name])
    scale = max(1, min(size.width, size.height) // 64)
    step = ceil(scale * max(sprite.shape[0] / size.height, sprite.shape[1] / size.width) / LARGEST)
    sprite = sprite[::step, ::step].repeat(scale, axis=0).repeat(scale, axis=1)
    pixels = np.where((sprite == TRANSPARENT)[..., None], np.uint8(BACKGROUND), palette[sprite])
    picture = Image.new("RGB", (size.width, size.height), BACKGROUND)
    picture.paste(Image.fromarray(pixels), ((size.width - sprite.shape[1]) // 2, (size.height - sprite.shape[0]) // 2))
    return picture


@cache
def read_wad() -> tuple[np.ndarray, dict[str, bytes]]:
    """The palette (256, 3), uint8, and the sprites of a WAD file by name, read once in each process."""
    content = (Path(find_spec("vizdoom").submodule_search_locations[0]) / "freedoom2.wad").read_bytes()
    number, start = struct.unpack_from("<ii", content, 4)
    entries = [struct.unpack_from("<ii8s", content, start + 16 * index) for index in range(number)]
    names = [name.rstrip(b"\0").decode("ascii") for _, _, name in entries]
    lumps = [content[offset : offset + length] for offset, length, _ in entries]
    palette = np.frombuffer(lumps[names.index("PLAYPAL")], np.uint8, 768).reshape(256, 3)
    first, last = names.index("S_START") + 1, names.index("S_END")
    return palette, {name: lump for name, lump in zip(names[first:last], lumps[first:last], strict=True) if lump}


def read_sprite(lump: bytes) -> np.ndarray:
    """The indices (H, W) into the palette of a picture in columns of posts, int16; `TRANSPARENT` where none is."""
    width, height = struct.unpack_from("<HH", lump)
    sprite = np.full((height, width), TRANSPARENT, np.int16)
    for column, place in enumerate(struct.unpack_from(f"<{width}I", lump, 8)):
        while lump[place] != 255:
            top, length = lump[place], lump[place + 1]
            sprite[top : top + length, column] = np.frombuffer(lump, np.uint8, length, place + 3)
            place += length + 4
    return sprite
