"""The checkpoint format: written once, read without executing code, checked before use."""

import dataclasses
import hashlib
import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from utils.core.config import read_json
from utils.core.files import UserError, replace_file
from utils.core.provenance import Origin
from utils.runs.exported import State, read_exported
from utils.runs.folders import MEASURED, SUFFIX, RunFolder

log = logging.getLogger(__name__)

FORMAT_VERSION = 3
PARTS = {"kind": str, "format_version": int, "config": dict, "fingerprint": str, "model": dict, "trained_from": dict}
MALFORMED = AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError  # raised by such content

MISFIT = (
    "its weights do not fit this config, or an older version of this code wrote them; train again in an empty folder"
)

Model = TypeVar("Model", bound=nn.Module)


def fingerprint(state: State) -> str:
    """A short hash of a state dict, over the names, shapes and bytes of its tensors: the identity of these weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_checkpoint(path: Path, kind: str, config: object, model: State, trained_from: Origin, **rest: object) -> str:
    """Write a checkpoint of plain types and tensors to `path`, completely or not at all; return its fingerprint.

    `config` is a dataclass, `rest` whatever else this kind of checkpoint keeps (`ema`, `optimizer`, `step`, …). The
    fingerprint is that of the weights that later steps use: the averaged weights if there are any.
    """
    content = {"kind": kind, "format_version": FORMAT_VERSION, "config": dataclasses.asdict(config)}
    content |= {"fingerprint": fingerprint(rest.get("ema") or model), "model": model, "trained_from": trained_from}
    with replace_file(path) as temporary:
        try:
            torch.save(content | rest, temporary)
        except RuntimeError as error:  # what torch raises when the disk is full
            raise UserError(f"{path}: cannot be written ({str(error).splitlines()[0]}); is the disk full?") from None
    return content["fingerprint"]


def fingerprints_of(run: RunFolder) -> dict[str, str | None]:
    """The fingerprints in the checkpoints of a run, those that its generate.json names among them, by their paths.

    None stands for a file that cannot be read.
    """
    files = [run.autoencoder.latest, run.decoder.latest, *(step.codebook for step in run.codebooks)]
    files += [step.best for step in run.transformers]
    stages = read_json(run.generation).values() if run.generation.is_file() else ()
    files += [run.path / value for stage in stages for key, value in stage.items() if key.endswith("_path")]
    names = {path: path.relative_to(run.path).as_posix() for path in files if path.is_relative_to(run.path)}
    return {names.get(path, str(path)): fingerprint_in(path) for path in filter(Path.is_file, files)}


def fingerprint_in(path: Path) -> str | None:
    """The fingerprint in a checkpoint, whose tensors are not read or checked; None of a file that cannot be read."""
    with suppress(UserError):
        content = read_exported(path) if path.suffix == SUFFIX else _read(path, memory_map=True, check=False)
        return content["fingerprint"]
    return None


def load_checkpoint(path: Path, kind: str, *, memory_map: bool = False) -> dict:
    """Read a checkpoint of this kind, or a part of an exported model, onto the CPU.

    With `memory_map` its tensors stay in the file. Raises `UserError` naming the file and what is wrong with it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    content = read_exported(path) if path.suffix == SUFFIX else _read(path, memory_map)
    if content["kind"] != kind:
        raise UserError(f"{path}: holds a {content['kind']}, expected a {kind}")
    if "weights" in content and fingerprint(content["model"]) != content["weights"]:
        raise UserError(f"{path}: damaged, it does not hold what was exported; export the run again")
    return content


def _read(path: Path, memory_map: bool, check: bool = True) -> dict:
    """The content of a checkpoint; without `check` damage to its tensors goes unseen, and they need not be read."""
    try:
        content = None
        with path.open("rb") as file:
            # torch reads anything but a zip in its old format, a pickle, even one with a zip behind it.
            is_zip = file.read(4) == b"PK\x03\x04"
        if is_zip:
            if check:
                _check_zip(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=memory_map)
    except Exception as error:  # damaged files make torch raise errors of all kinds
        text = str(error)  # without torch's advice to turn off `weights_only`
        reason = text.splitlines()[0] if text and "weights_only" not in text else type(error).__name__
        reason = f"not a readable checkpoint ({reason})"
        raise UserError(f"{path}: {reason}; it is damaged or cut short, use another one") from None
    if not isinstance(content, dict) or not content.keys() >= {"kind", "model"}:
        raise UserError(f"{path}: not a checkpoint of this project; give a .pt file that one of its scripts wrote")
    if (version := content.get("format_version")) != FORMAT_VERSION:
        raise UserError(f"{path}: format version {version}, this code reads {FORMAT_VERSION}; train again")
    if missing := [name for name, kind in PARTS.items() if not isinstance(content.get(name), kind)]:
        raise UserError(f"{path}: damaged, without {', '.join(sorted(missing))}; use another checkpoint")
    bounds = content.get("bounds", (0, 0))
    parts = bounds if isinstance(bounds, list | tuple) else ()
    if len(parts) != 2 or not all(isinstance(part, int | float) for part in parts):
        raise UserError(f"{path}: damaged, its 'bounds' are {bounds!r:.40}; use another checkpoint")
    if not isinstance(content.get("data"), dict | None):
        raise UserError(f"{path}: damaged, its 'data' is {content['data']!r:.40}; use another checkpoint")
    return content


def _check_zip(path: Path) -> None:
    """Compare every part of a file with its CRC-32, which torch does not."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        # By a bit that no CRC-32 covers, torch takes a part for a folder, which is empty.
        folders = [part.filename for part in archive.infolist() if part.external_attr]
    if damaged is not None or folders:
        raise ValueError(f"{damaged or folders[0]} has changed")


def build_model(build: Callable[[], Model], checkpoint: dict, path: Path) -> Model:
    """Build a model with the weights of a checkpoint.

    Raises `UserError` if they do not fit, before it needs memory: a config may come from a stranger.
    """
    with torch.device("meta"):
        expected = {name: value.shape for name, value in build().state_dict().items()}
    shapes = {name: value.shape for name, value in (checkpoint.get("ema") or checkpoint["model"]).items()}
    if wrong := [name for name in expected | shapes if expected.get(name) != shapes.get(name)]:
        raise UserError(f"{path}: {MISFIT}: {wrong[0]} is {_size(shapes, wrong[0])}, not {_size(expected, wrong[0])}")
    model = build()
    load_weights(model, checkpoint, path)
    return model


def _size(shapes: dict[str, torch.Size], name: str) -> str:
    return str(tuple(shapes[name])) if name in shapes else "missing"


def load_weights(model: nn.Module, checkpoint: dict, path: Path, *, averaged: bool = True) -> None:
    """Load the weights of a checkpoint, by default the averaged ones if there are any; names and shapes must match."""
    state = (averaged and checkpoint.get("ema")) or checkpoint["model"]
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: {MISFIT}: {reason}") from None


def link_checkpoint(checkpoint: Path, name: str) -> None:
    """Make `name` beside `checkpoint` the same file, by a hard link where the disk can, else by a copy."""
    with replace_file(checkpoint.with_name(name)) as temporary:
        try:
            os.link(checkpoint, temporary)
        except (AttributeError, OSError):  # no system or no disk for links
            shutil.copyfile(checkpoint, temporary)


def measured(checkpoint: Path, fingerprint: str) -> dict[str, float]:
    """The numbers in the JSON beside a checkpoint that were measured of the weights with this fingerprint, if any."""
    numbers = read_measured(checkpoint.with_name(MEASURED)).get(fingerprint)
    return numbers if isinstance(numbers, dict) else {}


def read_measured(path: Path) -> dict[str, dict]:
    """The measured numbers of all checkpoints in a folder by their fingerprints; none if the file is damaged."""
    try:
        return read_json(path) if path.is_file() else {}
    except UserError as error:
        log.warning("%s", error)
        return {}
