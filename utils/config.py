"""JSON file → config dataclass. Unknown, missing and ill-typed keys are refused by name."""

import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path
from typing import TypeVar

from utils.files import UserError

Config = TypeVar("Config")


def read_json(path: Path) -> dict:
    """The JSON object in `path`; a missing file, broken JSON or another type is a `UserError` that names the file."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); mend it or write it anew") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def load_config(path: Path, cls: type[Config]) -> Config:
    """Build dataclass `cls` from the JSON object in `path`."""
    return build_config(cls, read_json(path), str(path))


def build_config(cls: type[Config], values: object, where: str) -> Config:
    """Build dataclass `cls` from `values`; every error is a `UserError` that starts with `where`."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a JSON object, found {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise UserError(f"{where}: missing key {name!r}; add it")
    hints = typing.get_type_hints(cls)
    nested = {key: hint for key, hint in hints.items() if dataclasses.is_dataclass(hint)}
    values = {key: build_config(nested[key], value, where) if key in nested else value for key, value in values.items()}
    for key, value in values.items():
        if typing.get_origin(hints[key]) is tuple and isinstance(value, list):
            values[key] = value = tuple(value)
        if not _fits(value, hints[key]):
            raise UserError(f"{where}: {key!r} is {value!r}, expected {_type_name(hints[key])}")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def check_at_least(config: object, low: float, *keys: str) -> None:
    """Raise `ValueError` naming the first of `keys` whose value in `config` is below `low` or not finite."""
    for key in keys:
        value = getattr(config, key)
        if value is not None and not low <= value < float("inf"):
            raise ValueError(f"{key!r} is {value}, expected at least {low}")


def check_choice(config: object, choices: typing.Iterable[str], *keys: str) -> None:
    """Raise `ValueError` naming the first of `keys` whose value in `config` is not among `choices`."""
    for key in keys:
        if getattr(config, key) not in choices:
            raise ValueError(f"{key!r} is {getattr(config, key)!r}, expected one of {', '.join(choices)}")


def _fits(value: object, hint: object) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _type_name(hint: object) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(_type_name(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a list, each {_type_name(typing.get_args(hint)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}.get(hint, "null")
