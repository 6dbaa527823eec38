"""The checkpoint format: written atomically, read without executing code, checked before use."""

import dataclasses
import functools
import hashlib
import logging
import os
import shutil
import struct
import zlib
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from utils.exported import SUFFIX, read_exported
from utils.files import UserError, replace_file

log = logging.getLogger(__name__)

FORMAT_VERSION, WITHOUT_DIGEST = 2, 1  # both are read
PARTS = {"kind", "format_version", "config", "fingerprint", "model", "trained_from"}

State = dict[str, torch.Tensor]
Origin = dict[str, str | None]  # the fingerprints of the models that made the data


def fingerprint(state: State) -> str:
    """A short hash of a state dict, over the names, shapes and bytes of its tensors: the identity of these weights."""
    found = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        found.update(value.flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def digest(content: dict) -> str:
    """A short hash of all that a checkpoint holds but its `digest`, in an order that does not depend on how it is kept.

    A value is written after its type and its length, so that no two contents are written alike; a float as its bits,
    since NaN and -0.0 count too; a tensor as the CRC-32 of its bytes, which takes half the time of a blake2b, and its
    place in a storage, since those that share one change together.
    """
    found, storages = hashlib.blake2b(digest_size=8), {}

    def add(value: object) -> None:
        text, parts = "", ()
        match value:
            case None | bool() | int() | str():
                text = str(value)
            case float():
                text = struct.pack("<d", value).hex()
            case torch.Tensor():
                octets = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                storage = storages.setdefault(value.untyped_storage().data_ptr(), len(storages)) if len(octets) else -1
                layout = f"{list(value.shape)} {value.stride()} {value.storage_offset()} {storage}"
                text = f"{value.dtype} {layout} {value.requires_grad} {zlib.crc32(octets)}"
            case list() | tuple():
                text, parts = str(len(value)), value
            case dict():  # that of a state dict has an attribute, the versions of its modules
                pairs = sorted(value.items(), key=lambda pair: (type(pair[0]).__name__, str(pair[0])))
                text, parts = str(len(value)), (*chain(*pairs), getattr(value, "__dict__", None))
            case _:
                raise TypeError(f"a checkpoint holds no {type(value).__name__}")
        octets = text.encode("utf-8", "surrogatepass")
        found.update(f"{type(value).__name__} {len(octets)} ".encode() + octets)
        for part in parts:
            add(part)

    add({key: value for key, value in content.items() if key != "digest"})
    return found.hexdigest()


def save_checkpoint(path: Path, kind: str, config: object, model: State, trained_from: Origin, **rest: object) -> None:
    """Write a checkpoint of plain types and tensors to `path`, completely or not at all.

    `config` is a dataclass, `rest` whatever else this kind of checkpoint keeps (`ema`, `optimizer`, `step`, …). The
    checkpoint's own fingerprint is that of the weights that later steps use: the averaged weights if there are any.
    """
    head = {"kind": kind, "format_version": FORMAT_VERSION, "config": dataclasses.asdict(config)}
    weights = {"fingerprint": fingerprint(rest.get("ema") or model), "model": model}
    content = {**head, **weights, "trained_from": trained_from, **rest}
    with replace_file(path) as temporary:
        try:
            torch.save(content | {"digest": digest(content)}, temporary)
        except RuntimeError as error:  # what torch makes of a disk that is full
            raise UserError(f"{path}: cannot be written ({str(error).splitlines()[0]}); is the disk full?") from None


def load_checkpoint(path: Path, kind: str, *, memory_map: bool = False) -> dict:
    """Read a checkpoint of this kind, or a part of an exported model, onto the CPU.

    With `memory_map` the tensors of a checkpoint stay in the file.

    Raises `UserError` naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    content = read_exported(path) if path.suffix == SUFFIX else _read(path, memory_map)
    if content["kind"] != kind:
        raise UserError(f"{path}: holds a {content['kind']}, expected a {kind}")
    _check_content(path, content)
    return content


def _read(path: Path, memory_map: bool) -> dict:
    try:
        with path.open("rb") as file:
            # torch reads anything but a zip in its old format, a pickle, even one with a zip behind it.
            is_zip = file.read(4) == b"PK\x03\x04"
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=memory_map) if is_zip else None
    except Exception as error:  # of damaged files torch raises all kinds
        text = str(error)  # of torch's advice to read it without `weights_only` not a word
        reason = text.splitlines()[0] if text and "weights_only" not in text else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason}); it may be damaged or cut short") from None
    if not isinstance(content, dict) or not content.keys() >= {"kind", "model"}:
        raise UserError(f"{path}: not a checkpoint of this project; give a .pt file that one of its scripts wrote")
    if (version := content.get("format_version")) not in (FORMAT_VERSION, WITHOUT_DIGEST):
        raise UserError(f"{path}: format version {version}, this code reads {WITHOUT_DIGEST} and {FORMAT_VERSION}")
    if missing := PARTS - content.keys():
        raise UserError(f"{path}: damaged, without {', '.join(sorted(missing))}; use another checkpoint")
    return content


@functools.cache  # once for each file
def _warn_of_age(path: Path) -> None:
    log.warning("%s: was written before checkpoints had a digest; only its weights can be checked", path)


def _check_content(path: Path, content: dict) -> None:
    """Raise `UserError` unless this is what was saved; of older files only the weights can be checked."""
    try:
        if "weights" in content:
            is_whole = fingerprint(content["model"]) == content["weights"]
        elif content["format_version"] == WITHOUT_DIGEST:
            _warn_of_age(path)
            is_whole = fingerprint(content.get("ema") or content["model"]) == content["fingerprint"]
        else:
            is_whole = digest(content) == content.get("digest")
    except Exception:  # damage makes all kinds of values
        is_whole = False
    if not is_whole:
        raise UserError(f"{path}: damaged, it does not hold what was saved; use another checkpoint")


def load_weights(model: nn.Module, checkpoint: dict, path: Path, *, averaged: bool = True) -> None:
    """Load the weights of a checkpoint, by default the averaged ones if there are any; names and shapes must match."""
    state = (averaged and checkpoint.get("ema")) or checkpoint["model"]
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: its weights do not fit this config, or an older version of this code wrote them; train again in "
            f"an empty folder: {reason[:300]}"
        ) from None


def check_origin(path: Path, what: str, made_with: str | None, given: str | None) -> None:
    """Raise `UserError` if `path` was made with another `what` (a codebook, an autoencoder) than the one given."""
    if made_with is not None and given is not None and made_with != given:
        raise UserError(
            f"{path}: does not belong with this {what} (made with {made_with}, given {given}); "
            "give the files of one run, or train the later step again"
        )


def check_origins(path: Path, made_with: Origin, given: Origin) -> None:
    """Apply `check_origin` to everything that `path` was made with."""
    for what, made in made_with.items():
        check_origin(path, what.replace("_", " "), made, given.get(what))


def link_checkpoint(checkpoint: Path, name: str) -> None:
    """Make `name` beside `checkpoint` the same file, by a hard link where the disk can, else by a copy."""
    with replace_file(checkpoint.with_name(name)) as temporary:
        try:
            os.link(checkpoint, temporary)
        except (AttributeError, OSError):  # no system or no disk for links
            shutil.copyfile(checkpoint, temporary)
