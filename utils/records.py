"""The records of a data set of any size, packed in a few arrays instead of an object each."""

import dataclasses
import json
import logging
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.files import UserError
from utils.index import DEFAULT, INFO, IndexDigest, read_records
from utils.lock import lock
from utils.shards import are_meant, expand
from utils.split import position

log = logging.getLogger(__name__)

KIND = "records"
LAYOUT = 2  # to be raised with each change of what is kept
KEPT_FROM = 50_000  # records of a data set whose packed form is kept on disk
LARGE = 2**22  # bytes of a data set that one process reads while others wait


class Strings(Sequence[str]):
    """Strings of any length in one array of bytes (uint8) with their ends (int64), which processes share."""

    def __init__(self, content: np.ndarray, ends: np.ndarray) -> None:
        self.content, self.ends = content, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        end = self.ends[index]  # an IndexError ends an iteration
        return self.content[self.ends[index - 1] if index else 0 : end].tobytes().decode()


class Packer:
    """Packs strings, one after another."""

    def __init__(self) -> None:
        self.content, self.ends = bytearray(), array("q")

    def add(self, string: str) -> None:
        """Add a string."""
        self.content += string.encode()
        self.ends.append(len(self.content))

    def pack(self) -> Strings:
        """All that were added."""
        return Strings(np.frombuffer(self.content, np.uint8), np.frombuffer(self.ends, np.int64))


@dataclass(frozen=True)
class Records:
    """N records. What a record lacks is empty."""

    names: Strings  # of files, relative to the data set
    checksums: Strings  # of their contents
    labels: Strings  # lists in JSON
    groups: Strings
    image_keys: Strings  # the names of images by which they are split, also of those of feature maps
    image_paths: Strings  # of a feature map: where that lies
    flipped: np.ndarray  # bool
    rows: np.ndarray  # int64, of the array in a file; -1 of a file that is one map
    offsets: np.ndarray  # int64, of the image in a shard; -1 of a file of its own
    sizes: np.ndarray  # int64, of the image in a shard
    positions: np.ndarray  # float64, what decides the side in a split: hashes of groups or images
    info: dict  # of the data set
    digest: str  # of all records: the first part of a fingerprint
    required: tuple[str, ...]  # keys that all of them hold: they say what the files are

    def __len__(self) -> int:
        return len(self.names)


NUMBERS = {"rows": "row", "offsets": "offset", "sizes": "size"}  # columns, and their keys in a record
COLUMNS = ("names", "checksums", "labels", "groups", "image_keys", "image_paths")
ARRAYS = ("flipped", "rows", "offsets", "sizes", "positions")


def read_packed(path: Path, required: tuple[str, ...], spare: Path | None = None) -> Records:
    """The records of a `dataset.json` or of shards, each of which holds the `required` keys.

    Those of a large one are kept beside it, in `.index/`, and mapped into memory until the file changes; where its
    folder is read-only they are kept in `spare`. Raises `UserError` naming a record that lacks a key, or whose group or
    labels are of another type.
    """
    places = [kept_path(path), *([kept_path(path, spare)] if spare else [])]
    source = Source.of(path)  # before it is read: it may change meanwhile
    if kept := _find_kept(places, source, required):
        return kept
    with _alone(source, places) as has_waited:
        if has_waited:  # another process may have read it meanwhile
            source = Source.of(path)
            if kept := _find_kept(places, source, required):
                return kept
        records = pack(path, required)
        if len(records) >= KEPT_FROM or are_meant(path):
            _keep(places, source, records)
    return records


@contextmanager
def _alone(source: "Source", places: list[Path]) -> Iterator[bool]:
    """Let one process at a time read what is large and can be kept; say whether it may have waited for another."""
    has_waited = False
    with ExitStack() as stack:
        for place in places if source.size >= LARGE else ():
            with suppress(OSError):  # of a folder that is read-only
                stack.enter_context(lock(place.parent, wait=True))
                has_waited = True
                break
        yield has_waited


def pack(path: Path, required: tuple[str, ...]) -> Records:
    """Read a `dataset.json` once, in pieces."""
    packers = {name: Packer() for name in COLUMNS}
    flipped, positions = bytearray(), array("d")
    numbers = {name: array("q") for name in NUMBERS}
    info, digest, holds_maps = {}, IndexDigest(), "fmap_path" in required
    for table, number, record in read_records(path, required):
        digest.add(table, number, record)
        if table == INFO:
            info = info or record
        if table != DEFAULT:
            continue
        name = record["fmap_path" if holds_maps else "image_fpath"]
        image = record.get("image_key", record.get("image_path", name)) if holds_maps or "offset" in record else name
        group, labels = _group(path, number, record), _labels(path, number, record)
        text = partial(_text, path, number, record)
        values = (name, text("checksum"), labels, group, image, text("image_path"))
        for packer, value in zip(packers.values(), values, strict=True):
            packer.add(value)
        flipped.append(bool(record.get("flipped")))
        for key, values in numbers.items():
            values.append(_number(path, number, record, NUMBERS[key]))
        positions.append(position(group or image))
    columns = {name: packer.pack() for name, packer in packers.items()}
    arrays = {name: np.frombuffer(values, np.int64) for name, values in numbers.items()}
    arrays |= {"flipped": np.frombuffer(flipped, np.bool_), "positions": np.frombuffer(positions)}
    return Records(**columns, **arrays, info=info, digest=digest.hexdigest(), required=required)


def _group(path: Path, number: str, record: dict) -> str:
    group = record.get("group", "")
    if "group" in record and not (isinstance(group, str) and group):
        raise UserError(f"{path}: 'group' of record {number} is no name; make the data set again")
    return group


def _labels(path: Path, number: str, record: dict) -> str:
    labels = record.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{path}: 'labels' of record {number} is no list of strings; make the data set again")
    return json.dumps(labels)


def _text(path: Path, number: str, record: dict, key: str) -> str:
    found = record.get(key, "")
    if not isinstance(found, str):
        raise UserError(f"{path}: {key!r} of record {number} is no string; make the data set again")
    return found


def _number(path: Path, number: str, record: dict, key: str) -> int:
    found = record.get(key, -1)
    if key in record and not (isinstance(found, int) and 0 <= found < 2**63):
        raise UserError(f"{path}: {key!r} of record {number} is no number from 0 on; make the data set again")
    return found


@dataclass(frozen=True)
class Source:
    """The files that packed records are of: their size, and the last change in ns; how the records are packed."""

    size: int
    time: int
    layout: int

    @classmethod
    def of(cls, path: Path) -> "Source":
        """The files as they are now."""
        files = expand(path) if are_meant(path) else [path] if path.is_file() else []
        found = [file.stat() for file in files]
        return cls(sum(each.st_size for each in found), max((each.st_mtime_ns for each in found), default=0), LAYOUT)


def kept_path(path: Path, folder: Path | None = None) -> Path:
    """Where the packed records of a data set are kept, beside it or in another folder."""
    return (folder or (path if path.is_dir() else path.parent)) / ".index" / f"{path.stem}.pt"


def _find_kept(places: list[Path], source: Source, required: tuple[str, ...]) -> Records | None:
    """The packed records that are kept of a data set for these keys, unless it has changed since."""
    found = (_open_kept(place, source) for place in places if place.is_file())
    return next((kept for kept in found if kept is not None and kept.required == required), None)


def _open_kept(place: Path, source: Source) -> Records | None:
    try:
        content = load_checkpoint(place, KIND, memory_map=True)
    except UserError as error:
        log.warning("%s; reading the data set again", error)
        return None
    if content["config"] != dataclasses.asdict(source):
        return None
    arrays = {name: part.numpy() for name, part in content["model"].items()}
    columns = {name: Strings(arrays[name], arrays[f"{name}.ends"]) for name in COLUMNS}
    rest = {name: arrays[name] for name in ARRAYS}
    return Records(**columns, **rest, info=content["info"], digest=content["records"], required=content["required"])


def _keep(places: list[Path], source: Source, records: Records) -> None:
    """Keep packed records in the first of these places where that is possible."""
    arrays = {name: getattr(records, name) for name in ARRAYS}
    for name in COLUMNS:
        column = getattr(records, name)
        arrays |= {name: column.content, f"{name}.ends": column.ends}
    state = {name: torch.from_numpy(part) for name, part in arrays.items()}
    rest = {"info": records.info, "records": records.digest, "required": records.required}
    for place in places:
        with suppress(OSError, UserError):  # of a folder or a disk without space for it
            save_checkpoint(place, KIND, source, state, {}, **rest)
            return
