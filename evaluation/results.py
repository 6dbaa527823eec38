"""The results of an evaluation: what evaluation.json holds, and what the tables and the report read."""

from dataclasses import dataclass

# The sets of images whose distances to held-out images are measured. Each adds a loss to the one before it.
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
    """What a held-out image costs in one stage."""

    name: str  # "condition", "stage 0", "stage 1", …
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


@dataclass(frozen=True)
class Match:
    """A sample and its nearest training image."""

    sample: int
    image_path: str
    distance: float


@dataclass(frozen=True)
class Novelty:
    """How near samples come to training images, and how near held-out images do."""

    threshold: float  # below it, an image is a near copy
    share_of_samples: float
    share_of_held_out: float
    median_distance_of_samples: float
    median_distance_of_held_out: float
    pairs: str  # the name of the picture
    nearest: tuple[Match, ...]  # of all samples, the nearest first


@dataclass(frozen=True)
class Results:
    """All that was measured. What could not be measured is empty or None, and `missing` gives the reasons."""

    extractor: str
    num_images: int  # in each set
    num_held_out: int
    num_training: int
    seed: int
    settings: dict  # generate.json
    reconstruction: tuple[Reconstruction, ...]
    bits: tuple[Bits, ...]
    distances: tuple[Distance, ...]
    novelty: Novelty | None
    missing: tuple[str, ...]
    seconds: float

    def distance(self, name: str) -> Distance | None:
        """The distances of a set, None if it was not measured."""
        return next((row for row in self.distances if row.name == name), None)
