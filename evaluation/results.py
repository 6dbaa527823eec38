"""The results of an evaluation: what evaluation.json holds and the report reads, and their tables in Markdown."""

import math
from dataclasses import dataclass

from utils.core.tables import table

# The sets of images whose distances to held-out images are measured; the first three are made from the same training
# images. Their distances do not add up, so a difference of two does not say what a part loses: see `Level`.
SETS = TRAINING, RECONSTRUCTIONS, QUANTIZED, SAMPLES = (
    "training images",  # the floor: other real images
    "reconstructions",
    "quantized reconstructions",
    "samples",
)

FEW_GROUPS = 20  # held-out images of fewer groups are other pictures than the rest by chance


@dataclass(frozen=True)
class Reconstruction:
    name: str  # "autoencoder", or "after " and the name of a codebook
    psnr: float  # in dB


@dataclass(frozen=True)
class Bits:
    name: str  # "condition", "label" (all of an image), "stage 0", "stage 1", …
    tokens: int
    bits: float


@dataclass(frozen=True)
class Distance:
    """The distances between a set of images and held-out images; of the kernel distance its 95 % interval too."""

    name: str
    kernel: float
    kernel_low: float
    kernel_high: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Level:
    """What a stage writes, decoded by its codebook, beside true tokens of its level that are decoded alike.

    Distances, with their 95 % intervals, are to the decoded true tokens of test images. Bits are those of an image.
    """

    name: str  # "stage 0", "stage 1", …
    kernel: float  # of samples
    kernel_low: float
    kernel_high: float
    precision: float
    recall: float
    floor: float  # of the true tokens of training images
    floor_low: float
    floor_high: float
    floor_precision: float
    floor_recall: float
    num_drawn: int  # samples at temperature 1 whose bits were measured
    bits: float  # of those, under the stage itself
    bits_low: float
    bits_high: float
    test_bits: float | None  # of test images, if they were measured

    @property
    def is_above_floor(self) -> bool:
        margins = self.kernel - self.kernel_low, self.floor_high - self.floor
        return self.kernel - self.floor > math.hypot(*margins)


@dataclass(frozen=True)
class Match:
    sample: int
    image_path: str
    distance: float
    original_path: str = ""  # of the file that the training image was made from

    @property
    def name(self) -> str:
        return self.original_path or self.image_path


@dataclass(frozen=True)
class Nearness:
    median_distance: float
    share: float  # of near copies


@dataclass(frozen=True)
class Novelty:
    threshold: float  # within it, an image is a near copy
    samples: Nearness
    share_low: float  # of the 95 % interval of the samples' share, given the threshold
    share_high: float
    held_out: Nearness  # whose share follows from the threshold
    pairs: str  # the name of the picture, empty without one
    nearest: tuple[Match, ...]  # of all samples, the nearest first
    layout: "Novelty | None" = None  # the same by coarse tokens: a distance is the share of them that differ

    @property
    def near_copies(self) -> list[Match]:
        return [match for match in self.nearest if match.distance <= self.threshold]


@dataclass(frozen=True)
class Results:
    """All that was measured. What could not be measured is empty or None, and `missing` gives the reasons."""

    extractor: str
    num_images: int  # in each set
    num_held_out: int  # test images, or validation images if there are none
    num_training: int
    seed: int
    settings: dict  # generate.json
    reconstruction: tuple[Reconstruction, ...]
    bits: tuple[Bits, ...]
    distances: tuple[Distance, ...]
    novelty: Novelty | None
    missing: tuple[str, ...]
    seconds: float
    decoder: str  # "autoencoder" or "decoder": the step whose decoder quantized images and samples are decoded with
    levels: tuple[Level, ...] = ()  # of the stages, from coarse to fine
    no_test: str = ""  # that validation images were measured, since there is no test image, and why
    models: dict | None = None  # the fingerprints of its checkpoints, by their paths; None: not noted
    num_groups: int | None = None  # among the held-out images that were measured: an image without one is its own

    @property
    def held_out(self) -> str:
        return "validation images" if self.no_test else "test images"

    @property
    def caveat(self) -> str:
        """Why distances cannot judge samples, if they cannot."""
        floor, reasons = self.distance(TRAINING), []
        if self.num_groups is not None and self.num_groups < FEW_GROUPS:
            reasons.append(f"the {self.num_images} {self.held_out} belong to {self.num_groups} groups only")
        if floor is not None and floor.kernel_low > 0:
            apart = f"{floor.kernel:.3f} ({floor.kernel_low:.3f} to {floor.kernel_high:.3f})"
            reasons.append(f"training images themselves are at a kernel distance of {apart} from them")
        if not reasons:
            return ""
        differ = f"The {self.held_out} differ from the training images as a whole; distances cannot judge samples"
        return f"{differ}: {' and '.join(reasons)}."

    @property
    def decoding(self) -> str:
        if self.decoder == "autoencoder":
            return ""
        return (
            "Reconstructions are those of the autoencoder. Quantized images and samples are decoded with the decoder "
            "that was trained further, on quantized feature maps."
        )

    @property
    def by_level(self) -> str:
        if not self.levels:
            return ""
        return (
            "By levels: all sets of a row are tokens of the grid that this stage writes, decoded alike. Distance, "
            f"precision and recall are to the true tokens of {self.num_images} {self.held_out}: of as many samples "
            "and, as the floor, of the true tokens of as many training images. Bits are those of an image under the "
            f"stage: of {self.levels[0].num_drawn} samples at temperature 1, and of {self.held_out}."
        )

    @property
    def first_loss(self) -> Level | None:
        return next((row for row in self.levels if row.is_above_floor), None)

    def distance(self, name: str) -> Distance | None:
        return next((row for row in self.distances if row.name == name), None)


def markdown(results: Results) -> str:
    fidelity = [[row.name, f"{row.psnr:.2f}"] for row in results.reconstruction]
    bits = [*results.bits]
    bits += [Bits("all", sum(row.tokens for row in bits), sum(row.bits for row in bits))] if bits else []
    costs = [[row.name, row.tokens, f"{row.bits:.1f}"] for row in bits]
    share = "{:.3f}".format
    distances, levels, near = [], [], ("distance", "precision", "recall")
    for row in results.distances:
        distances.append([row.name, _span(row, "kernel", 4), share(row.precision), share(row.recall)])
    for row in results.levels:
        samples = _span(row, "kernel", 4), share(row.precision), share(row.recall)
        floor = _span(row, "floor", 4), share(row.floor_precision), share(row.floor_recall)
        test = "" if row.test_bits is None else f"{row.test_bits:.1f}"
        levels.append([row.name, *samples, *floor, _span(row, "bits", 1), test])
    parts = [
        f"{results.num_images} images in each set, of {results.num_held_out} {results.held_out}; "
        f"{results.num_training} training images; seed {results.seed}. Features: {results.extractor}.",
        results.no_test,
        results.caveat,
        results.decoding,
        _table(["PSNR (dB)"], fidelity),
        _table(["tokens per image", "bits per image"], costs),
        _table(["kernel distance", "precision", "recall"], distances),
        results.by_level,
        _table([*near, *(f"floor {name}" for name in near), "bits of samples", f"bits of {results.held_out}"], levels),
        *_novelty(results),
        "\n".join(["Not evaluated:", "", *(f"- {line}" for line in results.missing)]) if results.missing else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _span(row: object, name: str, digits: int) -> str:
    value, low, high = (f"{getattr(row, f'{name}{end}'):.{digits}f}" for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


def _novelty(results: Results) -> list[str]:
    measured, tables = results.novelty, []
    heads = ("median distance to the nearest training image", "nearer than {:.2f}", "{:.2f}")
    while measured is not None:
        distance, near, number = heads
        extra = f" ({measured.share_low:.1%} to {measured.share_high:.1%})"
        rows = ("samples", measured.samples, extra), (results.held_out, measured.held_out, "")
        rows = [[name, number.format(part.median_distance), f"{part.share:.1%}{end}"] for name, part, end in rows]
        tables.append(_table([distance, near.format(measured.threshold)], rows))
        differ = "median share of coarse tokens that differ from those of the nearest training image"
        heads = differ, "at most {:.1%}", "{:.1%}"
        measured = measured.layout
    return tables


def _table(columns: list[str], rows: list[list[object]]) -> str:
    return table(["", *columns], rows) if rows else ""
