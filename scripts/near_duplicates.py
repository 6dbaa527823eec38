"""Near-duplicates among the images of a data set, by perceptual hashes of 64 bits.

Two images are a pair if at most `MOST_BITS` = 6 bits of their hashes differ. Measured, as the share within 6 bits:

- photos at 128 × 128 (140 cut from 14): all with another brightness, contrast or JPEG quality; 98 % shifted by 1 % of
  their width, 75 % by 2 %, 4 % by 5 %; none of 9,100 pairs cut from different photos
- OpenMoji at 64 × 64: of the emoji with skin tones, 96 % have another of their tones within 6 bits, 90 % within 4;
  other pairs are mostly the same drawing (64 were looked at), such as another gender, or a flag in other colours
- drawn faces at 64 × 64: 99 % with another brightness; 0.2 % of all pairs of different faces, mostly of the same hair

Needs requirements-extra.txt.
"""

import numpy as np
from PIL import Image

from utils.data.split import TRAINING
from utils.runtime.cli import has

MOST_BITS = 6
MOST_IN_GROUP = 50  # a chain of pairs must not join half of the data
KEPT, MOST_ALIKE = 8, 128  # pairs of an image with later ones, and the near ones among which they are chosen
COMPARED = 2**22  # pairs at once: 36 MB
CHUNK = 2**13  # pairs that are joined at once


def is_installed() -> bool:
    return has("imagehash") and hasattr(np, "bitwise_count")


def hash_image(image: Image.Image) -> str:
    """The perceptual hash of an image: 16 hexadecimal digits. It sees brightness, not colour."""
    from imagehash import phash  # optional

    return str(phash(image))


def near_pairs(hashes: np.ndarray) -> np.ndarray:
    """Pairs i < j of images whose hashes (N,), uint64, differ in at most `MOST_BITS` bits: (P, 2), nearest first.

    Each image is compared with all later ones, and keeps the `KEPT` nearest; where more than `MOST_ALIKE` are near,
    as with flat images, of the first so many. On one core 100,000 hashes take 8 s, as many equal ones a minute.
    """
    pairs, distances = [np.empty((0, 2), np.int64)], [np.empty(0, np.uint8)]
    rows = max(1, COMPARED // max(len(hashes), 1))
    for start in range(0, len(hashes), rows):
        bits = np.bitwise_count(hashes[start : start + rows, None] ^ hashes[start:])
        near = bits <= MOST_BITS
        near[:, :rows] = np.triu(near[:, :rows], 1)
        first, second = np.divmod(np.flatnonzero(near), near.shape[1])
        kept = _is_kept(first, MOST_ALIKE)
        first, second = first[kept], second[kept]
        order = np.lexsort((bits[first, second], first))
        order = order[_is_kept(first[order], KEPT)]
        first, second = first[order], second[order]
        pairs.append(start + np.stack([first, second], axis=1))
        distances.append(bits[first, second])
    return np.concatenate(pairs)[np.argsort(np.concatenate(distances), kind="stable")]


def _is_kept(images: np.ndarray, most: int) -> np.ndarray:
    """Which numbers of a sorted array (M,) are among the first `most` of their kind: a mask (M,)."""
    kept = np.ones(len(images), dtype=bool)
    kept[most:] = images[most:] != images[:-most]
    return kept


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
