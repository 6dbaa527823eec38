"""Which images a step trains on, which are for validation and which are test images: by a hash."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from utils.core.files import UserError
from utils.core.options import option
from utils.core.provenance import Key, same_images

VAL_FRACTION = TEST_FRACTION = 0.05
VALIDATION, TEST, TRAINING = range(3)  # the sides
MEASURED = 1024  # items that a loss is measured on, so that it stays a small share of a training


class Bounds(NamedTuple):
    """Where the validation images and the test images end among the hashes of images, which run from 0 to 1."""

    validation: float = VAL_FRACTION
    test: float = VAL_FRACTION + TEST_FRACTION

    @classmethod
    def saved(cls, content: dict) -> "Bounds":
        return cls(*content.get("bounds", cls()))

    @property
    def has_test(self) -> bool:
        return self.validation < self.test

    @classmethod
    def common(cls, bounds: Iterable["Bounds"]) -> "Bounds":
        """The test images are those of all steps; the rest of what no step has learned from are validation images."""
        validation, test = zip(*bounds, strict=True)
        return cls(min(max(validation), min(test)), min(test))


class Learned(NamedTuple):
    """What weights have learned from: the images of a data set that their bounds do not hold out."""

    bounds: Bounds = Bounds()
    data: Key | None = None  # the fingerprint of the data set, None if unknown

    @classmethod
    def saved(cls, content: dict) -> "Learned":
        return cls(Bounds.saved(content), content.get("data"))

    def among(self, data: Key | None) -> Bounds:
        """The bounds among the images of a data set.

        Any of them may be in another data set too, under another name. So of weights of that, none is a test image.
        """
        return self.bounds if self.may_be_of(data) else Bounds(1.0, 1.0)

    def may_be_of(self, data: Key | None) -> bool:
        """Whether this may be the data set; of older files it is unknown."""
        return same_images(self.data, data) is not False

    def continued(self, bounds: Bounds, data: Key) -> tuple[Bounds, str]:
        """The bounds of weights that go on from these, with `bounds` among the images of a data set.

        The text says what differs from `bounds`, and is empty if nothing does.
        """
        common, is_other = Bounds.common((self.among(data), bounds)), not self.may_be_of(data)
        if common == bounds and not is_other:
            return bounds, ""
        why = "has learned from other images, which may be among these" if is_other else "held out other images"
        left = f"test images are now those with hashes from {common.validation:g} to {common.test:g}"
        if not common.has_test:
            left = "no image is a test image now, and scripts.evaluate will measure on validation images"
        return common, f"{why}, so {left}"


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Options of the split, the same in every step."""

    val_fraction: float = option(
        "share of images that best.pt and settings are chosen by", VAL_FRACTION, low=0, below=1, is_fixed=True
    )
    test_fraction: float = option(
        "share of images that are used neither for learning nor for any choice",
        TEST_FRACTION,
        low=0,
        below=1,
        is_fixed=True,
    )

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.val_fraction, self.val_fraction + self.test_fraction)


@dataclass(frozen=True)
class Split:
    """Indices of the records on each side; those held out are in a fixed random order, so the first represent all."""

    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def measured(self) -> np.ndarray:
        return self.validation[:MEASURED]


def position(key: str) -> float:
    """The hash of an image, or of the group of images that it is in, as a number from 0 to 1."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64


def sides_of(keys: Iterable[str], bounds: Bounds) -> np.ndarray:
    """The side (N,) of each key: `VALIDATION`, `TEST` or `TRAINING`."""
    return np.digitize([position(key) for key in keys], bounds)


def split_indices(positions: np.ndarray, bounds: Bounds) -> Split:
    """Split records by the positions (N,) of their keys: records of one key are on one side."""
    sides = np.digitize(positions, bounds)
    training, *held_out = (np.flatnonzero(sides == side) for side in (TRAINING, VALIDATION, TEST))
    if len(training) == 0:
        every = f"every image below {bounds.test:g}, so none is left to train on"
        raise UserError(f"--val-fraction and --test-fraction hold out {every}: lower them or add images")
    return Split(training, *(np.random.default_rng(0).permutation(part) for part in held_out))
