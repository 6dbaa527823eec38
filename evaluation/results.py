"""The results of an evaluation: what evaluation.json holds and the report reads, and their tables in Markdown."""

from dataclasses import dataclass

from utils.core.tables import table

# The sets of images whose distances to held-out images are measured. Each adds a loss to the one before it; the first
# three are made from the same training images.
SETS = TRAINING, RECONSTRUCTIONS, QUANTIZED, SAMPLES = (
    "training images",  # the floor: other real images
    "reconstructions",
    "quantized reconstructions",
    "samples",
)


@dataclass(frozen=True)
class Reconstruction:
    """How well held-out images are reconstructed."""

    name: str  # "autoencoder", or "after " and the name of a codebook
    psnr: float  # in dB
    ssim: float


@dataclass(frozen=True)
class Bits:
    """What a part of a held-out image costs."""

    name: str  # "condition", "label", "stage 0", "stage 1", …
    tokens: int
    bits: float


@dataclass(frozen=True)
class Distance:
    """The distances between a set of images and held-out images, with their 95 % intervals."""

    name: str
    kernel: float
    kernel_low: float
    kernel_high: float
    frechet: float
    frechet_low: float
    frechet_high: float
    precision: float
    recall: float
    edges: float  # between their gradient magnitudes, in grey levels


@dataclass(frozen=True)
class Match:
    """A sample and its nearest training image."""

    sample: int
    image_path: str
    distance: float


@dataclass(frozen=True)
class Nearness:
    """How near a set of images comes to training images."""

    median_distance: float
    share: float  # of near copies


@dataclass(frozen=True)
class Novelty:
    """How near samples come to training images, and how near held-out images do."""

    threshold: float  # within it, an image is a near copy
    samples: Nearness
    share_low: float  # of the 95 % interval of the samples' share, given the threshold
    share_high: float
    held_out: Nearness  # whose share follows from the threshold
    pairs: str  # the name of the picture, empty without one
    nearest: tuple[Match, ...]  # of all samples, the nearest first
    layout: "Novelty | None" = None  # the same by coarse tokens: a distance is the share of them that differ


@dataclass(frozen=True)
class Results:
    """All that was measured. What could not be measured is empty or None, and `missing` gives the reasons."""

    extractor: str
    num_images: int  # in each set
    num_held_out: int  # test images
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

    @property
    def decoding(self) -> str:
        """Which decoder each row is from, where there are two."""
        if self.decoder == "autoencoder":
            return ""
        return (
            "Reconstructions are those of the autoencoder. Quantized images and samples are decoded with the decoder "
            "that was trained further, on quantized feature maps."
        )

    def distance(self, name: str) -> Distance | None:
        """The distances of a set, None if it was not measured."""
        return next((row for row in self.distances if row.name == name), None)


def markdown(results: Results) -> str:
    """All results that there are, as tables."""
    fidelity = [[row.name, f"{row.psnr:.2f}", f"{row.ssim:.3f}"] for row in results.reconstruction]
    bits = [*results.bits]
    bits += [Bits("all", sum(row.tokens for row in bits), sum(row.bits for row in bits))] if bits else []
    costs = [[row.name, row.tokens, f"{row.bits:.1f}"] for row in bits]
    distances = []
    for row in results.distances:
        kernel = f"{row.kernel:.4f} ({row.kernel_low:.4f} to {row.kernel_high:.4f})"
        frechet = f"{row.frechet:.1f} ({row.frechet_low:.1f} to {row.frechet_high:.1f})"
        distances.append([row.name, kernel, frechet, f"{row.precision:.3f}", f"{row.recall:.3f}", f"{row.edges:.2f}"])
    parts = [
        f"{results.num_images} images in each set, of {results.num_held_out} test images; "
        f"{results.num_training} training images; seed {results.seed}. Features: {results.extractor}.",
        results.decoding,
        _table(["PSNR (dB)", "SSIM"], fidelity),
        _table(["tokens per image", "bits per image"], costs),
        _table(["kernel distance", "Fréchet distance", "precision", "recall", "edges"], distances),
        *_novelty(results.novelty),
        "\n".join(["Not evaluated:", "", *(f"- {line}" for line in results.missing)]) if results.missing else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _novelty(measured: Novelty | None) -> list[str]:
    """The tables of novelty by features and, if it is there, by layout."""
    tables = []
    heads = ("median distance to the nearest training image", "nearer than {:.2f}", "{:.2f}")
    while measured is not None:
        distance, near, number = heads
        extra = f" ({measured.share_low:.1%} to {measured.share_high:.1%})"
        rows = ("samples", measured.samples, extra), ("test images", measured.held_out, "")
        rows = [[name, number.format(part.median_distance), f"{part.share:.1%}{end}"] for name, part, end in rows]
        tables.append(_table([distance, near.format(measured.threshold)], rows))
        heads = ("median share of other coarse tokens than the nearest training image has", "at most {:.1%}", "{:.1%}")
        measured = measured.layout
    return tables


def _table(columns: list[str], rows: list[list[object]]) -> str:
    """A table whose first column, the names, has no heading; nothing without rows."""
    return table(["", *columns], rows) if rows else ""
