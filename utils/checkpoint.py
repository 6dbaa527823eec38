"""The checkpoint format: written atomically, read without executing code, checked before use."""

import dataclasses
import hashlib
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import torch
from torch import nn

from utils.files import UserError, replace_file

FORMAT_VERSION = 1
PARTS = {"kind", "format_version", "config", "fingerprint", "model", "trained_from"}

State = dict[str, torch.Tensor]
Origin = dict[str, str | None]  # the fingerprints of the models that made the data


def fingerprint(state: State) -> str:
    """A short hash of a state dict, over the names, shapes and bytes of its tensors: the identity of these weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_checkpoint(path: Path, kind: str, config: object, model: State, trained_from: Origin, **rest: object) -> None:
    """Write a checkpoint of plain types and tensors to `path`, completely or not at all.

    `config` is a dataclass, `rest` whatever else this kind of checkpoint keeps (`ema`, `optimizer`, `step`, …). The
    checkpoint's own fingerprint is that of the weights that later steps use: the averaged weights if there are any.
    """
    head = {"kind": kind, "format_version": FORMAT_VERSION, "config": dataclasses.asdict(config)}
    weights = {"fingerprint": fingerprint(rest.get("ema") or model), "model": model}
    with replace_file(path) as temporary:
        torch.save({**head, **weights, "trained_from": trained_from, **rest}, temporary)


def load_checkpoint(path: Path, kind: str, *, memory_map: bool = False) -> dict:
    """Read a checkpoint of this kind onto the CPU; with `memory_map` its tensors stay in the file.

    Raises `UserError` naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        # torch would read anything else in its old format, which can fail in any way.
        options = {"map_location": "cpu", "weights_only": True, "mmap": memory_map}
        content = torch.load(path, **options) if zipfile.is_zipfile(path) else None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason}); it may be damaged or cut short") from None
    if not isinstance(content, dict) or not content.keys() >= {"kind", "model"}:
        raise UserError(f"{path}: not a checkpoint of this project; give a .pt file that one of its scripts wrote")
    if content["kind"] != kind:
        raise UserError(f"{path}: holds a {content['kind']}, expected a {kind}")
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path}: format version {content.get('format_version')}, this code reads {FORMAT_VERSION}")
    if missing := PARTS - content.keys():
        raise UserError(f"{path}: damaged, without {', '.join(sorted(missing))}; use another checkpoint")
    if fingerprint(content.get("ema") or content["model"]) != content["fingerprint"]:
        raise UserError(f"{path}: damaged, its weights are not those that were saved; use another checkpoint")
    return content


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
        except OSError:
            shutil.copyfile(checkpoint, temporary)
