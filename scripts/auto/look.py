"""*Look*: what a data set holds, as a fingerprint of numbers that a plan is made of.

python -m scripts.auto.look data/photos/dataset.json
"""

import utils.runtime.threads  # noqa: F401

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from utils.core.files import UserError
from utils.core.options import option, parse_options
from utils.core.size import Size
from utils.data.batches import chunks
from utils.data.dataset import ImageDataset
from utils.data.images import upright_size
from utils.data.records import image_key
from utils.data.split import Bounds
from utils.runtime import cli
from utils.runtime.progress import progress

LEAST = 100  # images: of fewer, not even five are left to choose checkpoints by
HELD_OUT = 30  # images that a side of the split should have
FRACTIONS = (0.05, 0.1, 0.15)  # of the images, for validation and as much for tests: the first that holds out enough
SAMPLED, LARGE = 500, 128**2  # images whose pixels are read; fewer if they have more pixels than this
SAME = 1e-3  # variance of images around their mean image, in [−1, 1]: below it all look the same
COARSE = 16  # pixels a side at which images are compared with their mirror images
PIXEL_COLOURS = 1024  # that all images together have: pixel art has a palette, smoothed outlines have thousands
FLAT = 0.5  # share of equal neighbours above which images are drawn
DRAWINGS, PHOTOGRAPHS, PIXEL_ART = "drawings", "photographs", "pixel art"


@dataclass(frozen=True)
class Fingerprint:
    data: str  # identity of the dataset.json
    size: int | str  # of the images, as recipes have it
    images: int  # without exact copies
    copies: int
    groups: int
    fraction: float  # held out for validation, and as much for tests
    training: int
    validation: int
    test: int
    labels: int  # distinct ones
    flat: float  # share of neighbouring pixels that are equal: drawings 0.8, photographs 0.2
    colours: int  # of all sampled images together
    detail: float  # share of the variance that halving height and width loses
    variety: float  # variance around the mean image, as a share of that around the mean colour: faces 0.6, crops 1
    mirrored: float  # distance of mirror images to the nearest image, as a multiple of that of the images themselves

    @property
    def kind(self) -> str:
        if self.flat < FLAT:
            return PHOTOGRAPHS
        return PIXEL_ART if self.colours <= PIXEL_COLOURS else DRAWINGS

    def lines(self) -> list[str]:
        size, share = Size.parse(self.size).shown, f"{self.flat:.0%} of neighbouring pixels are equal"
        split = f"{self.training:,} to train, {self.validation} for validation, {self.test} for tests"
        return [
            f"{self.images:,} images of {size} pixels ({split}), {self.copies} copies, {self.groups} groups",
            f"{self.kind}: {share}, {self.colours:,} colours, {self.detail:.1%} of the variance is finer than 2 pixels",
            f"{self.variety:.0%} of the variance differs from image to image; mirror images are {self.mirrored:.2f} "
            f"times as far from the nearest image as images are; {self.labels} labels",
        ]


def look(dataset: Path) -> Fingerprint:
    """The fingerprint of a data set. Raises `UserError` for one from which nothing can be learned."""
    images = ImageDataset(dataset)
    records = [images.records[index] for index in range(len(images))]
    distinct = len({record.get("checksum") or image_key(record) for record in records})
    if distinct < LEAST:
        held = f"{len(records)} images" + (f", {distinct} of them distinct" if distinct < len(records) else "")
        advice = "add images; fewer can be tried by a recipe of configs/, such as tiny-32, but expect copies of them"
        raise UserError(f"{dataset}: holds {held}, and at least {LEAST} are needed; {advice}")
    for fraction in FRACTIONS:
        split = images.split(Bounds(fraction, 2 * fraction))
        if min(len(split.validation), len(split.test)) >= HELD_OUT:
            break
    if not len(split.validation):
        advice = "make smaller groups (--group-by of scripts.make_dataset), so that some can be held out"
        raise UserError(f"{dataset}: no image is held out by a split of {fraction:.0%}; {advice}")
    return Fingerprint(
        data=images.fingerprint["index"],
        size=Size.of(images.shape).plain,
        images=distinct,
        copies=len(records) - distinct,
        groups=len({record["group"] for record in records if "group" in record}),
        fraction=fraction,
        training=len(split.training),
        validation=len(split.validation),
        test=len(split.test),
        labels=len({label for record in records for label in record.get("labels", [])}),
        **measure(images, dataset),
    )


def measure(images: ImageDataset, dataset: Path) -> dict[str, float]:
    number = max(64, SAMPLED * LARGE // max(LARGE, math.prod(images.shape[1:])))
    chosen = np.random.default_rng(0).permutation(len(images))[:number]
    pixels = torch.cat([images[part] for part in progress(chunks(chosen, 64), unit="batch", desc="looking")])
    variance = pixels.var((0, 2, 3), unbiased=False).mean()
    around = (pixels - pixels.mean(0)).square().mean()
    if (pixels - pixels.mean((2, 3), keepdim=True)).square().mean() < SAME:
        raise UserError(f"{dataset}: each image is of one colour, so there is nothing to learn; check the files")
    if around < SAME:
        raise UserError(f"{dataset}: all images look the same, so there is nothing to learn; check the files")
    halved = F.interpolate(F.avg_pool2d(pixels, 2, ceil_mode=True), pixels.shape[2:], mode="nearest")
    whole = ((pixels + 1) * 127.5).round().to(torch.int32)
    flat = (whole[..., 1:] == whole[..., :-1]).all(1).float().mean()
    colours = torch.unique((whole[:, 0] * 256 + whole[:, 1]) * 256 + whole[:, 2]).numel()
    return {
        "flat": round(float(flat), 4),
        "colours": colours,
        "detail": round(float((pixels - halved).square().mean() / variance), 4),
        "variety": round(float(around / variance), 4),
        "mirrored": round(mirrored(pixels, [images.records[int(index)].get("group") for index in chosen]), 4),
    }


def mirrored(pixels: torch.Tensor, groups: list[str | None]) -> float:
    """How far mirror images of images (B, 3, H, W) are from the nearest other image, in distances of the images."""
    small = F.adaptive_avg_pool2d(pixels, COARSE)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    of = torch.tensor([-1 - index if name is None else numbers[name] for index, name in enumerate(groups)])
    is_other = of[:, None] != of[None]
    plain, turned = (
        torch.cdist(each.flatten(1), small.flatten(1)).where(is_other, torch.inf).amin(1)
        for each in (small, small.flip(-1))
    )
    known = plain.isfinite()
    return float(turned[known].mean() / plain[known].mean()) if known.any() and plain[known].mean() > 0 else 1.0


def survey(files: list[Path]) -> list[Size]:
    """The sizes of up to `SAMPLED` image files that can be read, upright; scripts.make_dataset lists others."""
    return [size for path in files[:: len(files) // SAMPLED + 1] if (size := upright_size(path))]


@dataclass(frozen=True, kw_only=True)
class Options:
    dataset: Path = option("dataset.json of images, or shards", positional=True)


def main(argv: list[str] | None = None) -> None:
    print(json.dumps(dataclasses.asdict(look(parse_options(Options, __doc__, argv).dataset)), indent=1))


if __name__ == "__main__":
    cli.run(main)
