"""`dataset.json` files (TinyDB): the records of a data set, and whether its files are those of before.

Run as a command it prints a fingerprint of a data set for scripts/train_cascade.sh, and refuses images of another size
than its recipe's: python -m utils.index DATASET [SIZE].
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image
from tinydb import TinyDB

from utils.files import UserError, replace_file
from utils.progress import progress

KEYS = ("image_fpath", "fmap_path")  # of a record: where its file lies
MOST_FILES = 100_000  # whose sizes and times are looked at; of more, the index alone counts

Fingerprint = dict[str, str]  # `index` of the content of a dataset.json, `files` of the sizes and times of its files


def write_dataset(path: str | os.PathLike, records: Iterable[dict], info: dict | None = None) -> None:
    """Write `records` as the default table of the TinyDB file `path`, atomically; `info` goes to its table `info`.

    The files that the records name are on disk before it is.
    """
    os.sync()  # all at once: for thousands of small files it takes a twentieth of the time of an fsync for each
    with replace_file(path) as temporary, TinyDB(temporary) as database:
        database.insert_multiple(records)
        if info is not None:
            database.table("info").insert(info)


def read_dataset(path: str | os.PathLike, required: tuple[str, ...]) -> tuple[list[dict], dict]:
    """Read the records and the info of a `dataset.json`; every record must hold the `required` keys, each a string."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such data set; give the path of a dataset.json")
    try:
        with TinyDB(path, access_mode="r") as database:
            records = [dict(record) for record in database.all()]
            info = dict((database.table("info").all() or [{}])[0])
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a dataset.json ({error}); make it with scripts.make_dataset") from None
    if not records:
        raise UserError(f"{path}: holds no records; make the data set again")
    for number, record in enumerate(records, 1):
        for key in required:
            if not isinstance(record.get(key), str):
                raise UserError(f"{path}: record {number} has no string {key!r}; make the data set again")
    return records, info


def checksum(content: bytes) -> str:
    """What a record keeps of the content of its file."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def is_whole(path: Path, expected: str) -> bool:
    """Whether a file is there and has this checksum."""
    return path.is_file() and checksum(path.read_bytes()) == expected


def fingerprint(path: Path, names: Iterable[str]) -> Fingerprint:
    """A fingerprint of the data set `path`, whose files have these names; raises `UserError` naming a missing file."""
    names, digest = list(names), hashlib.blake2b(digest_size=8)
    for name in names if len(names) <= MOST_FILES else ():
        try:
            status = (path.parent / name).stat()
        except FileNotFoundError:
            raise UserError(f"{path.parent / name}: no such file; make the data set again") from None
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns} ".encode())
    tables = json.loads(path.read_bytes())
    for record in tables["_default"].values():
        record.pop("image_path", None)  # of a feature map; it changes when either of them moves
    content = json.dumps(tables, sort_keys=True).encode()
    return {"index": checksum(content), "files": digest.hexdigest() if len(names) <= MOST_FILES else ""}


def check_same(where: Path, before: Mapping[str, str], now: Fingerprint, path: Path, *, verify: bool) -> None:
    """Raise `UserError` unless the data set `path` is the one, `before`, that `where` was made from.

    Where only times and sizes differ, as after a copy, `verify` reads all files once and compares their checksums.
    """
    if before["index"] != now["index"]:
        raise UserError(
            f"{where}: was made from another data set than {path} is now; give the former one, or start anew with "
            "--overwrite"
        )
    if before["files"] != now["files"]:
        if not verify:
            raise UserError(
                f"{path}: its files have other times or sizes than when {where} was written; add --verify to read them "
                "once and go on if they are the same, or start anew with --overwrite"
            )
        verify_files(path)


def verify_files(path: Path) -> None:
    """Read all files of a data set; raises `UserError` naming the first that is not as it was written."""
    for record in progress(read_dataset(path, ())[0], unit="file", desc=f"verifying {path.parent.name}"):
        file = path.parent / name_of(path, record)
        if "checksum" not in record:
            raise UserError(
                f"{path}: holds no checksums, so --verify cannot compare; make the data set again, or start anew with "
                "--overwrite"
            )
        if not is_whole(file, record["checksum"]):
            raise UserError(f"{file}: is not the file that was written; make the data set again")


def name_of(path: Path, record: dict) -> str:
    """The name of a record's file, relative to the folder of the data set `path`."""
    for key in KEYS:
        if isinstance(record.get(key), str):
            return record[key]
    raise UserError(f"{path}: a record has no {' and no '.join(map(repr, KEYS))}; make the data set again")


def check_size(path: Path, name: str, size: int) -> None:
    """Raise `UserError` unless the first image of the data set `path`, called `name`, has `size` × `size` pixels."""
    with Image.open(path.parent / name) as image:
        if image.size != (size, size):
            raise UserError(
                f"{path}: holds images of {image.width}×{image.height} ({name}), but IMAGE_SIZE in the recipe.sh is "
                f"{size}; make the images with --image-size {size}, or give another recipe"
            )


def main(dataset: Path, size: str = "") -> None:
    """Print the fingerprint of a data set, whose images should have `size` pixels a side, if that is given."""
    names = [name_of(dataset, record) for record in read_dataset(dataset, ())[0]]
    if size:
        check_size(dataset, names[0], int(size))
    found = fingerprint(dataset, names)
    print(found["index"] + found["files"])


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), *sys.argv[2:])
    except (UserError, OSError) as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
