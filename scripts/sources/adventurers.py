"""Cartoon faces that look to one side, drawn from the parts of dicebear_styles: other faces than the avatars."""

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from PIL import Image

from scripts.sources.avatars import describe, items  # noqa: F401 - numbers of faces, without labels, as there
from scripts.sources.svg import rasterise
from utils.core.size import Size
from utils.data.images import fit_to

if TYPE_CHECKING:
    from dicebear import Style

PACKAGES, REQUIREMENTS = ("dicebear", "dicebear_styles", "resvg_py"), "requirements-extra.txt"
LICENCE = (
    "cc-by-4.0",
    "Cartoon faces, composed at random by [DiceBear](https://www.dicebear.com) from the parts of "
    "[Adventurer](https://www.figma.com/community/file/1184595184137881796) by "
    "[Lisa Wischofsky](https://www.instagram.com/lischi_art/). "
    "Licence: [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/).",
)
NUM_IMAGES, SETTINGS = 2000, {}
BACKGROUNDS = ["#b6e3f4", "#c0aede", "#d1d4f9", "#ffd5dc", "#ffdfbf"]


def draw(index: int, seed: int, size: Size) -> Image.Image:
    """Face number `index` of this seed, RGB, in the middle."""
    from dicebear import Avatar

    svg = Avatar(read_style(), {"seed": f"{seed}-{index}", "backgroundColor": BACKGROUNDS}).to_string()
    side = max(size.width, size.height)
    return fit_to(rasterise(svg, Size(side, side), "#ffffff"), size)


@cache
def read_style() -> "Style":
    """The parts, read once in each process."""
    from dicebear import Style

    return Style(json.loads((files("dicebear_styles") / "adventurer.json").read_text(encoding="utf-8")))
