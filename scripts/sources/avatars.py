"""Cartoon faces that python_avatars composes at random."""

import random
from collections.abc import Callable
from enum import Enum

from PIL import Image

from scripts.sources.svg import rasterise
from utils.core.size import Size

PACKAGES = ("python_avatars", "resvg_py")
LICENCE = (
    "mit",
    "Cartoon faces, composed at random by python_avatars, whose licence is MIT. It credits its artwork as follows: "
    '"Avatars designed by [Pablo Stanley](https://avataaars.com/)" and "Additional avatar parts from '
    '[blush.design](https://blush.design), designed by Pablo Stanley".',
)
NUM_IMAGES, SETTINGS = 9000, {}

# The parts of a face, by their names in python_avatars. Left out are costumes, what hides the face, what leaves the
# picture, and clothes in the colour of skin: a small model learns the rest better.
HAIR = (
    "NONE BIG_HAIR BOB BUN CAESAR CURLY CURVY FRO FRO_BAND LONG_NOT_TOO_LONG MIA_WALLACE SHAGGY SHAGGY_MULLET "
    "SHORT_CURLY SHORT_DREADS_1 SHORT_FLAT SHORT_ROUND SHORT_WAVED SIDES STRAIGHT_1 STRAIGHT_STRAND CORNROWS "
    "LOOSE_HAIR MOHAWK PIXIE POMPADOUR QUIFF WILD"
)
HATS = "HIJAB TURBAN WINTER_HAT_3"
HAIR_COLOURS = "AUBURN BLACK BLONDE BLONDE_GOLDEN BROWN BROWN_DARK PASTEL_PINK PLATINUM RED SILVER_GRAY"
BEARDS = "BEARD_LIGHT BEARD_MEDIUM BEARD_MAGESTIC MOUSTACHE_FANCY MOUSTACHE_MAGNUM"
SKIN_COLOURS = "TANNED YELLOW PALE LIGHT BROWN DARK_BROWN BLACK"
EYES = "DEFAULT HAPPY SIDE SQUINT SURPRISED CLOSED WINK"
EYEBROWS = "DEFAULT_NATURAL RAISED_EXCITED_NATURAL FLAT_NATURAL ANGRY_NATURAL SAD_CONCERNED_NATURAL"
MOUTHS = "DEFAULT SMILE BIG_SMILE TWINKLE SERIOUS SAD DISBELIEF TONGUE CONCERNED GRIMACE"
GLASSES = "PRESCRIPTION_2 ROUND SUNGLASSES WAYFARERS"
CLOTHES = "BLAZER_SHIRT BLAZER_SWEATER COLLAR_SWEATER HOODIE OVERALL SHIRT_CREW_NECK SHIRT_SCOOP_NECK SHIRT_V_NECK"
CLOTHES_COLOURS = "BLACK BLUE_01 BLUE_02 BLUE_03 GRAY_02 PASTEL_GREEN PASTEL_YELLOW PINK RED WHITE"


def items(seed: int, limit: int) -> range:
    """Numbers of faces. Few are drawn twice, but at a small size more of them look the same."""
    return range(2 * limit)


def describe() -> Callable[[int], dict]:
    """A function from a face to its record: it has no label."""
    return lambda index: {"labels": []}


def draw(index: int, seed: int, size: Size) -> Image.Image:
    import python_avatars as parts

    rng = random.Random(f"{seed}-{index}")

    def pick(part: type[Enum], names: str) -> Enum:
        return part[rng.choice(names.split())]

    hair_colour = pick(parts.HairColor, HAIR_COLOURS)
    avatar = parts.Avatar(
        style=parts.AvatarStyle.TRANSPARENT,
        top=pick(parts.HatType, HATS) if rng.random() < 0.1 else pick(parts.HairType, HAIR),
        hat_color=pick(parts.ClothingColor, CLOTHES_COLOURS),
        hair_color=hair_colour,
        facial_hair=pick(parts.FacialHairType, BEARDS if rng.random() < 0.2 else "NONE"),
        facial_hair_color=hair_colour,
        skin_color=pick(parts.SkinColor, SKIN_COLOURS),
        eyes=pick(parts.EyeType, EYES),
        eyebrows=pick(parts.EyebrowType, EYEBROWS),
        mouth=pick(parts.MouthType, MOUTHS),
        accessory=pick(parts.AccessoryType, GLASSES if rng.random() < 0.3 else "NONE"),
        clothing=pick(parts.ClothingType, CLOTHES),
        clothing_color=pick(parts.ClothingColor, CLOTHES_COLOURS),
    )
    view = "{:g} {:g} {:g} {:g}".format(*view_of(size))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}">{avatar.render()}</svg>'
    return rasterise(svg, size, "#dbe4ee")


def view_of(size: Size) -> tuple[float, float, float, float]:
    """The part of a face's drawing, 264 wide and 280 high, that a picture shows: left, top, width and height.

    A square holds the head and the collar, and a portrait the shoulders as well, as long as the hair fits into it.
    """
    shape = size.width / size.height
    width = 224 * shape if shape > 1 else min(224, max(176, 280 * shape))
    height = width / shape
    return 132 - width / 2, min(10, 280 - height), width, height
