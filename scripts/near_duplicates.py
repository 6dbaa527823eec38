"""Near-duplicates among the images of a data set, by perceptual hashes of 64 bits.

Two images are a pair if at most `MOST_BITS` = 6 bits of their hashes differ. Measured, as the share within 6 bits:

- photos at 128 × 128 (140 cut from 14): all with another brightness, contrast or JPEG quality; 98 % shifted by 1 % of
  their width, 75 % by 2 %, 4 % by 5 %; none of 9,100 pairs cut from different photos
- OpenMoji at 64 × 64: of the emoji with skin tones, 96 % have another of their tones within 6 bits, 90 % within 4;
  other pairs are mostly the same drawing (64 were looked at), such as another gender, or a flag in other colours
- drawn faces at 64 × 64: 99 % with another brightness; 0.2 % of all pairs of different faces, mostly of the same hair

Needs requirements-extra.txt.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from utils.data.split import TRAINING
from utils.runtime.cli import has

MOST_BITS = 6  # more than 7 would need other bands
MOST_IN_GROUP = 50  # a chain of pairs must not join half of the data
COMPARED = 128  # images of a bucket that an image is compared with
KEPT = 8  # pairs of an image with later ones
CHUNK = 2**13  # images at once: at most CHUNK · COMPARED comparisons are in memory


def is_installed() -> bool:
    """Whether the packages of requirements-extra.txt are there."""
    return has("imagehash") and hasattr(np, "bitwise_count")


def hash_image(image: Image.Image) -> str:
    """The perceptual hash of an image: 16 hexadecimal digits. It sees brightness, not colour."""
    from imagehash import phash  # optional

    return str(phash(image))


def near_pairs(hashes: np.ndarray) -> np.ndarray:
    """Pairs i < j of images whose hashes (N,), uint64, differ in at most `MOST_BITS` bits: (P, 2), nearest first.

    The 64 bits are cut into 4 bands of 16. Hashes that differ in at most 7 bits differ in at most one bit in some band,
    so an image is compared with the images that have the same value in a band, or one of the 16 values that differ in
    one bit: its buckets. Of a bucket of more than `COMPARED` images only those next to the image in sorted order are
    compared; its first `KEPT` pairs in a bucket are kept, and in the end the nearest `KEPT` with later images. So time
    and memory stay bounded where very many images are alike, such as flat ones, and some of their pairs are missing.

    On one slow core a million random hashes take 6 s and 0.2 GB, a million equal ones 30 s and 0.6 GB, and a million in
    bursts of 1,000 one minute and 2 GB.
    """
    codes = np.empty(0, np.int64)  # i · N + j
    for band in range(4):
        codes = _nearest(hashes, np.concatenate([codes, *_pairs_of_band(hashes, band)]))
    first, second = np.divmod(codes, max(len(hashes), 1))
    distances = np.bitwise_count(hashes[first] ^ hashes[second])
    return np.stack([first, second], axis=1)[np.argsort(distances, kind="stable")]


def _nearest(hashes: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Of the pairs of each image with later ones the nearest `KEPT`; pairs are numbers i · N + j."""
    codes = np.sort(codes)
    codes = codes[np.diff(codes, prepend=-1) > 0]  # once each; np.unique takes ten times as long
    first, second = np.divmod(codes, max(len(hashes), 1))
    order = np.lexsort((np.bitwise_count(hashes[first] ^ hashes[second]), first))
    return codes[order[_is_kept(first[order])]]


def _is_kept(images: np.ndarray) -> np.ndarray:
    """Which numbers of a sorted array (M,) are among the first `KEPT` of their kind: a mask (M,)."""
    kept = np.ones(len(images), dtype=bool)
    kept[KEPT:] = images[KEPT:] != images[:-KEPT]
    return kept


def _pairs_of_band(hashes: np.ndarray, band: int) -> Iterator[np.ndarray]:
    keys = np.roll(hashes[:, None].view(np.uint16), band, axis=1).view(np.uint64)[:, 0]  # the band comes first
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    for flipped in (0, *(1 << bit for bit in range(16))):
        low, high = _ranges(keys, flipped)
        for start in range(0, len(keys), CHUNK):
            part = slice(start, start + CHUNK)
            counts = high[part] - low[part]  # of the keys in the range of each
            first = np.repeat(np.arange(start, start + len(counts)), counts)
            second = np.arange(len(first)) + (low[part] - np.cumsum(counts) + counts)[first - start]
            near = np.bitwise_count(keys[first] ^ keys[second]) <= MOST_BITS
            kept = _is_kept(first[near])
            first, second = order[first[near][kept]], order[second[near][kept]]
            yield np.minimum(first, second) * len(keys) + np.maximum(first, second)


def _ranges(keys: np.ndarray, flipped: int) -> tuple[np.ndarray, np.ndarray]:
    """The range of sorted `keys` that each key is compared with: its bucket once the bits `flipped` of its band are."""
    values = (keys >> np.uint64(48)).astype(np.int64)
    starts, wanted = np.searchsorted(values, np.arange(2**16 + 1)), values ^ flipped
    low, high = starts[wanted], starts[wanted + 1]
    if flipped == 0:
        low = np.arange(1, len(keys) + 1)  # what follows in the same bucket, so that each pair comes once
    else:
        nearest = np.searchsorted(keys, keys ^ np.uint64(flipped << 48))
        low = np.clip(nearest - COMPARED // 2, low, np.maximum(low, high - COMPARED))
        high = np.where(wanted > values, high, low)  # and here too
    return low, np.minimum(high, low + COMPARED)


def join(pairs: np.ndarray, number: int) -> tuple[np.ndarray, int]:
    """For each of `number` images the first image of its group (N,), and how many pairs have not been joined.

    Pairs are joined in their order, unless the group would have more than `MOST_IN_GROUP` images.
    """
    first, size, num_refused = list(range(number)), [1] * number, 0

    def find(image: int) -> int:
        while first[image] != image:
            first[image] = first[first[image]]  # the next search is shorter
            image = first[image]
        return image

    for start in range(0, len(pairs), CHUNK):
        for pair in pairs[start : start + CHUNK].tolist():
            one, other = sorted(map(find, pair))
            is_full = size[one] + size[other] > MOST_IN_GROUP
            num_refused += one != other and is_full
            if one != other and not is_full:
                first[other] = one
                size[one] += size[other]
    return np.array([find(image) for image in range(number)], dtype=np.int64), num_refused


def count_straddling(pairs: np.ndarray, sides: np.ndarray) -> int:
    """How many of the images that are held out, by their `sides` (N,) of the split, have a partner on another side."""
    apart = np.unique(pairs[sides[pairs[:, 0]] != sides[pairs[:, 1]]])
    return np.count_nonzero(sides[apart] != TRAINING)
