"""Near-duplicates among the images of a data set: perceptual hashes of 64 bits propose pairs, their pixels decide.

At most `MOST_BITS` = 6 bits of the hashes of a pair differ, and at most `MOST_RESIDUAL` of one image's contrast is not
in the other, after the best shift, and as bright as the other. A mirror image counts as a copy. Measured on images of
64 × 64, as the share of copies that are found; in brackets by hashes alone:

| copies | 2,400 photographs | 1,500 sprites | 2,000 faces of one template |
|---|---|---|---|
| JPEG of quality 50, half the size | 99 to 100 % | 100 % | 100 % |
| 1.3 times as bright; 0.7 | 93 %; 100 % | 99 %; 100 % | 69 % (96); 100 % |
| shifted by 1 pixel, by 2; cut by a fortieth | 91 % (93), 35 %; 88 % (91) | 83 %, 26 %; 98 % | 75 %, 15 %; 97 % |
| mirrored | 91 % (0) | 100 % (0) | 97 % (0) |
| pairs among the images themselves | 5 (6) | 345 (538), steps of animations | 210 (5,208), the same hair |

Needs requirements-extra.txt.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from utils.data.images import open_rgb
from utils.data.split import TRAINING
from utils.runtime.cli import has

MOST_BITS, MOST_RESIDUAL = 6, 0.18
SIDE, GAINS = 24, (1.1, 1.2, 1.3, 1.4, 1.6, 1.8)  # of the images that are compared; of a brightness that is cut off
MIRRORED = np.uint64(0x5555555555555555)  # the bits that differ in the hash of a mirror image
MOST_IN_GROUP = 50  # a chain of pairs must not join half of the data
TEMPLATE = 0.1  # of the images, which a chain of pairs joins only where all have one template
KEPT, MOST_ALIKE = 8, 128  # pairs of an image with later ones, and the near ones among which they are chosen
COMPARED = 2**22  # pairs at once: 36 MB
CHUNK, SEEN = 2**13, 2**11  # pairs that are joined, or whose pixels are compared, at once


def is_installed() -> bool:
    return has("imagehash") and hasattr(np, "bitwise_count")


def hash_image(image: Image.Image) -> str:
    """The perceptual hash of an image: 16 hexadecimal digits. It sees brightness, not colour."""
    from imagehash import phash  # optional

    return str(phash(image))


def near_duplicates(hashes: np.ndarray, paths: Sequence[Path]) -> np.ndarray:
    """Pairs i < j of images that are near-duplicates, by their hashes (N,), uint64, and their files: (P, 2)."""
    ways = [(near_pairs(hashes), False), (near_pairs(hashes, hashes ^ MIRRORED), True)]
    near = np.unique(np.concatenate([pairs for pairs, _ in ways])).tolist()
    small = {index: thumbnail(paths[index]) for index in near}
    kept = [np.empty((0, 2), np.int64)]
    for pairs, is_mirrored in ways:
        for start in range(0, len(pairs), SEEN):
            part = pairs[start : start + SEEN]
            first, second = (np.stack([small[index] for index in side]) for side in part.T.tolist())
            kept.append(part[residual(first, second[:, :, ::-1] if is_mirrored else second) <= MOST_RESIDUAL])
    return np.unique(np.concatenate(kept), axis=0)


def thumbnail(path: Path) -> np.ndarray:
    small = open_rgb(path).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small.filter(ImageFilter.GaussianBlur(1)))


def residual(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The share of contrast that images (P, S, S, 3) do not share with their partners, at the best of all tries (P,).

    Tried are shifts by up to one pixel, and the darker image with a brightness that is cut off at white.
    """
    first, second = (each.astype(np.float32) for each in (first, second))
    cuts = [(slice(low, SIDE - high), slice(high, SIDE - low)) for low, high in ((0, 0), (1, 0), (0, 1))]
    tries = [_unshared(first[:, y, x], second[:, v, u]) for y, v in cuts for x, u in cuts]
    is_darker = (first.mean((1, 2, 3)) < second.mean((1, 2, 3)))[:, None, None, None]
    dark, bright = np.where(is_darker, first, second), np.where(is_darker, second, first)
    return np.min(tries + [_unshared(np.minimum(gain * dark, 255), bright) for gain in GAINS], axis=0)


def _unshared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """√(1 − r²) of the correlation r of each pair, 1 where it is not positive; 0 of two that are flat."""
    flat = (each.reshape(len(each), -1) for each in (first, second))
    first, second = (each - each.mean(1, keepdims=True) for each in flat)
    own, other = (first**2).sum(1), (second**2).sum(1)
    shared = np.where(own + other > 0, (first * second).sum(1) / np.maximum(np.sqrt(own * other), 1e-9), 1.0)
    return np.sqrt(np.clip(1 - np.maximum(shared, 0) ** 2, 0, 1))


def near_pairs(hashes: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """Pairs i < j of images whose hashes (N,), uint64, differ in at most `MOST_BITS` bits: (P, 2), nearest first.

    Each image is compared with all later ones, by their hashes in `others` if given, and keeps the `KEPT` nearest;
    where more than `MOST_ALIKE` are near, as with flat images, of the first so many. On one core 100,000 hashes take
    8 s, as many equal ones a minute.
    """
    others = hashes if others is None else others
    pairs, distances = [np.empty((0, 2), np.int64)], [np.empty(0, np.uint8)]
    rows = max(1, COMPARED // max(len(hashes), 1))
    for start in range(0, len(hashes), rows):
        bits = np.bitwise_count(hashes[start : start + rows, None] ^ others[start:])
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


def join(pairs: np.ndarray, number: int, most: int = MOST_IN_GROUP) -> tuple[np.ndarray, int]:
    """For each of `number` images the first image of its group (N,), and how many pairs have not been joined.

    Pairs are joined in their order, unless the group would have more than `most` images.
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
            is_full = size[one] + size[other] > most
            num_refused += one != other and is_full
            if one != other and not is_full:
                first[other] = one
                size[one] += size[other]
    return np.array([find(image) for image in range(number)], dtype=np.int64), num_refused


def count_straddling(pairs: np.ndarray, sides: np.ndarray) -> int:
    """How many of the images that are held out, by their `sides` (N,) of the split, have a partner on another side."""
    apart = np.unique(pairs[sides[pairs[:, 0]] != sides[pairs[:, 1]]])
    return np.count_nonzero(sides[apart] != TRAINING)


def is_template(pairs: np.ndarray, number: int) -> bool:
    """Whether chains of pairs hold together so many of the images that they all have one template."""
    first, _ = join(pairs, number, number)
    return number > 0 and np.bincount(first).max() > max(TEMPLATE * number, MOST_IN_GROUP)
