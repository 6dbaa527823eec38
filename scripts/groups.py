"""Groups of images: which stay together on one side of the split, and what that does to it."""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from scripts import near_duplicates
from utils.core.files import UserError
from utils.data.split import TEST, TRAINING, VALIDATION, Bounds, sides_of

FOLDER, NEAR = "folder", "near"  # values of --group-by; any other is a regular expression
FEW_IMAGES = 100  # of fewer it is no surprise if none is held out
FEW = {  # images of a data set, and what to expect of fewer
    500: "expect copies of training images, and too few test images to notice them",
    1500: "expect smeared pictures, and near copies among them",
    5000: "aligned pictures of one kind work, others become textures and outlines",
}


def by_path(how: str | None, folder: Path, files: Sequence[Path]) -> Callable[[Path], str | None]:
    """A function from an image file in `folder` to its group, None for no group, as --group-by says.

    Raises `UserError` if `how` is no regular expression or finds a group for none of the `files`, or if it needs a
    package that is not installed.
    """
    if how == NEAR and not near_duplicates.is_installed():
        raise UserError("--group-by near needs ImageHash; run pip install -r requirements-extra.txt")
    if how in (None, NEAR):
        return lambda path: None
    if how == FOLDER:
        return lambda path: None if path.parent == folder else inside(folder, path.parent)
    try:
        pattern = re.compile(how)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"--group-by {how}: no regular expression ({error}); correct it, or give folder or near"
        ) from None

    def group(path: Path) -> str | None:
        match = pattern.search(inside(folder, path))
        parts = (match.groups(default="") or (match[0],)) if match else ()
        return "/".join(parts) if any(parts) else None

    if not any(map(group, files)):
        raise UserError(f"--group-by {how}: finds a group for none of the {len(files)} images in {folder}; correct it")
    return group


def inside(folder: Path, path: Path) -> str:
    """A path relative to `folder`, as text that UTF-8 can hold whatever the bytes of the file name."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode(errors="backslashreplace")


def review(how: str | None, folder: Path, records: list[dict], hashes: list[str]) -> None:
    """Make groups of near-duplicates, if `how` says so; print numbers of the groups; warn of what they do to the split.

    `hashes` are those of the records, whose images lie in `folder`, or empty if near-duplicates are not to be looked
    for.
    """
    order = sorted(range(len(records)), key=lambda index: records[index]["image_fpath"])
    records = [records[index] for index in order]
    numbers = np.array([int(hashes[index], 16) for index in order if hashes], dtype=np.uint64)
    pairs = near_duplicates.near_duplicates(numbers, [folder / record["image_fpath"] for record in records])
    if near_duplicates.is_template(pairs, len(records)):
        print("the images are drawings of one template, each near to some others: the split is by image")
        pairs = pairs[:0]
    if how == NEAR:
        _group_near(records, pairs)
    sides = sides_of((record.get("group", record["image_fpath"]) for record in records), Bounds())
    if how is not None:
        _print_groups(records, sides)
    if hashes:
        _warn_of_straddling(how, sides, pairs)
    else:
        print("near-duplicates were not looked for; that needs pip install -r requirements-extra.txt", file=sys.stderr)


def _group_near(records: list[dict], pairs: np.ndarray) -> None:
    first, num_refused = near_duplicates.join(pairs, len(records))
    sizes = np.bincount(first, minlength=len(records))
    for record, index in zip(records, first.tolist(), strict=True):
        if sizes[index] > 1:
            record["group"] = records[index]["image_fpath"]
    most = near_duplicates.MOST_IN_GROUP
    print(f"{len(pairs)} pairs of near-duplicates; {num_refused} not joined, for a group holds at most {most} images")


def _print_groups(records: list[dict], sides: np.ndarray) -> None:
    sizes = Counter(record["group"] for record in records if "group" in record)
    if not sizes:
        print("no groups: each image is held out, or not, by itself")
        return
    shares = {name: (sides == side).mean() for name, side in (("validation", VALIDATION), ("test", TEST))}
    print(
        f"{len(sizes)} groups of {sizes.total()} images, the largest of {max(sizes.values())}; the split by "
        f"default holds out {' and '.join(f'{share:.1%} of all images as {name}' for name, share in shares.items())}"
    )
    empty = [name for name, share in shares.items() if share == 0]
    if empty and len(records) >= FEW_IMAGES:
        print(f"warning: no image is held out as {' or '.join(empty)}; give smaller groups", file=sys.stderr)


def _warn_of_straddling(how: str | None, sides: np.ndarray, pairs: np.ndarray) -> None:
    count, total = near_duplicates.count_straddling(pairs, sides), np.count_nonzero(sides != TRAINING)
    if count:
        larger = f"their group would have more than {near_duplicates.MOST_IN_GROUP} images; give groups of your own"
        advice = larger if how == NEAR else "give --group-by near, or groups of your own"
        print(
            f"warning: {count} of {total} images that would be held out ({count / total:.0%}) have a near-duplicate on "
            f"another side of the split; {advice}",
            file=sys.stderr,
        )


def warn_of_few(number: int) -> None:
    limit = next((limit for limit in FEW if number < limit), None)
    if limit is not None:
        where = "see docs/experiments.md#few-images"
        print(f"warning: {number:,} images, fewer than {limit:,}: {FEW[limit]}; {where}", file=sys.stderr)
