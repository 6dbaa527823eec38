"""The records of a data set of any size, packed in a few arrays instead of an object each."""

import dataclasses
import json
import logging
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.files import UserError
from utils.index import DEFAULT, INFO, KEYS, IndexDigest, name_of, read_records
from utils.split import position

log = logging.getLogger(__name__)

KIND = "records"
LAYOUT = 1  # to be raised with each change of what is kept
KEPT_FROM = 50_000  # records of a data set whose packed form is kept on disk


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
    image_keys: Strings  # of a feature map: how the data set of images writes the name of its image
    image_paths: Strings  # of a feature map: where that lies
    flipped: np.ndarray  # bool
    rows: np.ndarray  # int64, of the array in a file; -1 of a file that is one map
    positions: np.ndarray  # float64, what decides the side in a split: hashes of groups or images
    info: dict  # of the data set
    digest: str  # of all records: the first part of a fingerprint
    keys: tuple[str, ...]  # that all of them hold

    def __len__(self) -> int:
        return len(self.names)


COLUMNS = ("names", "checksums", "labels", "groups", "image_keys", "image_paths")
ARRAYS = ("flipped", "rows", "positions")


def read_packed(path: Path, required: tuple[str, ...]) -> Records:
    """The records of a `dataset.json`, each of which holds the `required` keys.

    Those of a large one are kept beside it, in `.index/`, and mapped into memory until the file changes. Raises
    `UserError` naming a record that lacks a key, or whose group or labels are of another type.
    """
    kept = _open_kept(path)
    if kept is not None and set(required) <= set(kept.keys):
        return kept
    source = Source.of(path) if path.is_file() else None  # before it is read: it may change meanwhile
    records = pack(path, required)
    if len(records) >= KEPT_FROM:
        _keep(path, source, records)
    return records


def pack(path: Path, required: tuple[str, ...]) -> Records:
    """Read a `dataset.json` once, in pieces."""
    packers = {name: Packer() for name in COLUMNS}
    flipped, rows, positions = bytearray(), array("q"), array("d")
    info, digest, keys = {}, IndexDigest(), (*KEYS, "image_path")
    for table, number, record in read_records(path, required):
        digest.add(table, number, record)
        if table == INFO:
            info = info or record
        if table != DEFAULT:
            continue
        name, keys = name_of(path, record), tuple(key for key in keys if isinstance(record.get(key), str))
        image = record.get("image_key", record.get("image_path", name))
        group, labels = _group(path, number, record), _labels(path, number, record)
        values = (name, record.get("checksum", ""), labels, group, image, record.get("image_path", ""))
        for packer, value in zip(packers.values(), values, strict=True):
            packer.add(value)
        flipped.append(bool(record.get("flipped")))
        rows.append(_row(path, number, record))
        positions.append(position(group or image))
    columns = {name: packer.pack() for name, packer in packers.items()}
    found = ((flipped, np.bool_), (rows, np.int64), (positions, np.float64))
    arrays = {name: np.frombuffer(*pair) for name, pair in zip(ARRAYS, found, strict=True)}
    return Records(**columns, **arrays, info=info, digest=digest.hexdigest(), keys=keys)


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


def _row(path: Path, number: str, record: dict) -> int:
    row = record.get("row", -1)
    if "row" in record and not (isinstance(row, int) and 0 <= row < 2**63):
        raise UserError(f"{path}: 'row' of record {number} is no row; make the data set again")
    return row


@dataclass(frozen=True)
class Source:
    """The file that packed records are of: its size, and the time of its last change in ns; how they are packed."""

    size: int
    time: int
    layout: int

    @classmethod
    def of(cls, path: Path) -> "Source":
        """The file as it is now."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, LAYOUT)


def kept_path(path: Path) -> Path:
    """Where the packed records of a `dataset.json` are kept."""
    return path.parent / ".index" / f"{path.stem}.pt"


def _open_kept(path: Path) -> Records | None:
    """The packed records that are kept of a data set, unless it has changed since."""
    if not kept_path(path).is_file() or not path.is_file():
        return None
    try:
        content = load_checkpoint(kept_path(path), KIND, memory_map=True)
    except UserError as error:
        log.warning("%s; reading the data set again", error)
        return None
    if content["config"] != dataclasses.asdict(Source.of(path)):
        return None
    arrays = {name: part.numpy() for name, part in content["model"].items()}
    columns = {name: Strings(arrays[name], arrays[f"{name}.ends"]) for name in COLUMNS}
    rest = {name: arrays[name] for name in ARRAYS}
    return Records(**columns, **rest, info=content["info"], digest=content["records"], keys=content["keys"])


def _keep(path: Path, source: Source, records: Records) -> None:
    """Keep packed records beside their data set, where that is possible."""
    arrays = {name: getattr(records, name) for name in ARRAYS}
    for name in COLUMNS:
        column = getattr(records, name)
        arrays |= {name: column.content, f"{name}.ends": column.ends}
    state = {name: torch.from_numpy(part) for name, part in arrays.items()}
    rest = {"info": records.info, "records": records.digest, "keys": records.keys}
    with suppress(OSError, UserError):  # of a folder or a disk without space for it
        save_checkpoint(kept_path(path), KIND, source, state, {}, **rest)
