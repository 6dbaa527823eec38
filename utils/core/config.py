"""JSON file → dataclass. Errors name the unknown, missing or ill-typed key."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from utils.core.files import UserError, file_at

Config = TypeVar("Config")
SHOWN = 60  # characters of a value that is shown; of a longer one the type is


def read_json(path: Path) -> dict:
    """Read the JSON object in `path`; raises `UserError` naming a file that is missing or broken."""
    file = file_at(Path(path))
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # also numbers with too many digits, and nesting that is too deep
        raise UserError(f"{path}: not valid JSON ({error}); fix it or write it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def load_config(path: Path, cls: type[Config]) -> Config:
    return build_config(cls, read_json(path), str(path))


def build_config(cls: type[Config], values: object, where: str) -> Config:
    """Build dataclass `cls` from `values`; every error is a `UserError` that starts with `where`."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a JSON object, found {values!r}")
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    refuse_unknown(values, defaults, where, f"known keys: {', '.join(defaults)}")
    for name, default in defaults.items():
        if name not in values and default is dataclasses.MISSING:
            raise UserError(f"{where}: missing key {name!r}; add it")
    hints = typing.get_type_hints(cls)
    values = {key: check(value, hints[key], f"{where}: {key!r}") for key, value in values.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def refuse_unknown(keys: Iterable[str], known: Collection[str], where: str, advice: str) -> None:
    """Raise `UserError` for the first unknown key: it names a similar known one, or gives the advice."""
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise UserError(f"{where}: unknown key {key!r}; {f'did you mean {near[0]!r}?' if near else advice}")


def check_fields(instance: object) -> None:
    """Take the fields of a frozen dataclass through `check`: for its `__post_init__`."""
    for name, hint in typing.get_type_hints(type(instance)).items():
        object.__setattr__(instance, name, check(getattr(instance, name), hint, name))


def check(value: object, hint: object, where: str) -> object:
    """The value as type `hint`, else `UserError`.

    Lists become tuples, numbers of NumPy and PyTorch those of Python, and JSON objects dataclasses.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if not any(fits(value, option) for option in options) and getattr(value, "ndim", 2) < 2:
        value = value.tolist()
    nested = next((option for option in options if dataclasses.is_dataclass(option)), None)
    if nested is not None and isinstance(value, dict):
        return build_config(nested, value, where)
    items = next((option for option in options if typing.get_origin(option) is tuple), None)
    if items is not None and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(check(item, typing.get_args(items)[0], f"{where}, entry {n}") for n, item in enumerate(value))
    if not any(fits(value, option) for option in options):
        shown = repr(value)
        shown = shown if len(shown) <= SHOWN and "\n" not in shown else f"of type {type(value).__name__}"
        raise UserError(f"{where} is {shown}, expected {_type_name(hint)}")
    return value


def fits(value: object, hint: type) -> bool:
    """Whether a value is of this type, of which only the outermost counts; True and False are no numbers."""
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else typing.get_origin(hint) or hint)


def _type_name(hint: object) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(map(_type_name, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"a list, each {_type_name(typing.get_args(hint)[0])}"
    if dataclasses.is_dataclass(hint):
        return "a JSON object"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", dict: "a JSON object"}
    return names.get(typing.get_origin(hint) or hint, "null" if hint is types.NoneType else f"a {hint.__name__}")
