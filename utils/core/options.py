"""Options: dataclass fields that are the flags of a script or the keys of a JSON config.

A field states its meaning, default and range once. Flags, help, the checks of configs and docs/reference.md are derived
from it.
"""

import argparse
import dataclasses
import inspect
import itertools
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar

from utils.core.config import check
from utils.core.files import UserError

Options = TypeVar("Options")

LIMITS = {
    "low": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "high": ("at most", operator.le),
    "below": ("less than", operator.lt),
}
PRECISIONS = ("auto", "fp32", "bf16")
KINDS = {int: "a whole number", float: "a number"}


@dataclass(frozen=True, kw_only=True)
class Option:
    """The attributes of a field besides its name, type and default. Those from `short` on are for flags only."""

    meaning: str
    low: float | None = None  # the smallest allowed value
    above: float | None = None  # the value must be above this
    high: float | None = None  # the largest allowed value
    below: float | None = None  # the value must be below this
    choices: Iterable[str] | None = None
    unset: str = ""  # what happens without the flag or key, if that is no value of its own
    shown: str | None = None  # the default as shown in help, if it differs from the value
    is_fixed: bool = False  # results depend on it, so a resume must give the same value
    short: str | None = None  # a short name, such as -c
    positional: bool = False
    const: str | None = None  # the value of the flag if it is given without one
    convert: Callable[[str], Any] | None = None  # text to value, if calling the type is not enough
    exclusive: str | None = None  # only one of the flags that share this word may be given

    def expectation(self, value: object) -> str | None:
        """The expected range in words if `value` is outside it, otherwise None."""
        if value is None:
            return None
        if self.choices is not None:
            return None if value in self.choices else f"one of {', '.join(self.choices)}"
        limits = [(*LIMITS[name], getattr(self, name)) for name in LIMITS if getattr(self, name) is not None]
        if all(holds(value, limit) for _, holds, limit in limits) and value not in (math.inf, -math.inf):
            return None
        if self.above is not None and self.below is not None:
            return f"a number between {self.above} and {self.below}"
        return " and ".join(f"{word} {limit:g}" for word, _, limit in limits)


MOST_WORKERS = 1024  # processes, each of which is started


def option(meaning: str, default: Any = MISSING, **more: Any) -> Any:
    """A field of a dataclass, with the attributes of `Option`; required unless it has a default."""
    return dataclasses.field(default=default, metadata={"option": Option(meaning=meaning, **more)})


def check_ranges(config: object) -> None:
    for field in dataclasses.fields(config):
        value, spec = getattr(config, field.name), field.metadata.get("option")
        if spec is not None and (expected := spec.expectation(value)):
            raise ValueError(f"{field.name!r} is {value!r}, expected {expected}")


def fixed_options(options: object) -> dict[str, str]:
    return {field.name: flag_of(field) for field in dataclasses.fields(options) if field.metadata["option"].is_fixed}


def repeated(cls: type, name: str, **more: Any) -> type:
    """A dataclass with the same options, each a tuple of values or None if it is not given.

    `more` overrides attributes of `Option`.
    """
    hints, fields = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        spec = dataclasses.replace(field.metadata["option"], **more)
        hint = tuple[_scalar(hints[field.name]), ...] | None
        fields.append((field.name, hint, dataclasses.field(default=None, metadata={"option": spec})))
    return dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True)


def flag_of(field: dataclasses.Field) -> str:
    return field.name.upper() if field.metadata["option"].positional else f"--{field.name.replace('_', '-')}"


def default_of(field: dataclasses.Field) -> str:
    if field.default is MISSING:
        return field.metadata["option"].unset or "required"
    if field.default is None:
        return field.metadata["option"].unset
    if field.metadata["option"].shown is not None:
        return field.metadata["option"].shown
    return "" if field.default is False or field.default == () else str(field.default)


def make_parser(cls: type, doc: str) -> argparse.ArgumentParser:
    """A parser for the flags of a dataclass, in groups by the classes that define them; its help begins with `doc`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints, fields = typing.get_type_hints(cls), {field.name: field for field in dataclasses.fields(cls)}
    for base in reversed(cls.__mro__):
        own = [fields.pop(name) for name in inspect.get_annotations(base) if name in fields]
        kind = base.__name__.removesuffix("Options").lower() or "own"
        group = parser.add_argument_group(f"{kind} options") if own else None
        containers: dict[str | None, argparse._ActionsContainer] = {None: group}
        for field in own:
            word = field.metadata["option"].exclusive
            if word not in containers:
                containers[word] = group.add_mutually_exclusive_group()
            _add(containers[word], field, hints[field.name])
    return parser


def words_of(values: dict[str, object]) -> list[str]:
    words = []
    for name, value in values.items():
        given = value if isinstance(value, list | tuple) else [] if value is True else [value]
        if value is not None and value is not False and (given or value is True):
            words += [f"--{name.replace('_', '-')}", *map(str, given)]
    return words


def parse_options(cls: type[Options], doc: str, argv: list[str] | None) -> Options:
    """Parse options from `argv`, by default that of this process; invalid ones exit with status 2."""
    values = vars(make_parser(cls, doc).parse_args(argv))
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def options_from(cls: type[Options], values: dict[str, object], where: str) -> Options:
    """Options from values of JSON, or of Python; every error is a `UserError` that begins with `where`."""
    hints, specs = typing.get_type_hints(cls), {each.name: each.metadata["option"] for each in dataclasses.fields(cls)}
    given: dict[str, object] = {}
    for name, value in values.items():
        many, is_path = isinstance(value, list | tuple), _scalar(hints[name]) is Path
        parts = [Path(part) if is_path and isinstance(part, str) else part for part in (value if many else [value])]
        parts = parts if many or _is_many(hints[name]) else parts[0]
        given[name] = check(parts, hints[name], f"{where}: {name!r}")
        for part in given[name] if isinstance(given[name], tuple) else [given[name]]:
            if expected := specs[name].expectation(part):
                raise UserError(f"{where}: {name!r} is {part!r}, expected {expected}")
    groups = [(word, name) for name in given if (word := specs[name].exclusive)]
    if both := next((pair for pair in itertools.combinations(groups, 2) if pair[0][0] == pair[1][0]), None):
        raise UserError(f"{where}: {both[0][1]!r} and {both[1][1]!r} exclude each other; leave one of them out")
    try:
        return cls(**given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _add(container: argparse._ActionsContainer, field: dataclasses.Field, hint: object) -> None:
    spec = field.metadata["option"]
    shown = default_of(field).replace("%", "%%")
    help_ = spec.meaning.replace("%", "%%") + (f" [{shown}]" if shown and field.default is not MISSING else "")
    if hint is bool:
        container.add_argument(flag_of(field), action="store_true", help=help_)
        return
    settings: dict[str, Any] = {"help": help_, "type": lambda text: _parse(text, hint, spec)}
    if spec.choices is not None:
        settings |= {"choices": list(spec.choices)}
    if _is_many(hint) and spec.convert is None:
        settings["nargs"] = "+"
    if spec.const is not None:
        settings |= {"nargs": "?", "const": spec.const}
    if spec.positional:
        optional = {} if field.default is MISSING else {"nargs": "?", "default": field.default}
        container.add_argument(field.name, metavar=flag_of(field), **settings | optional)
        return
    names = [name for name in (spec.short, flag_of(field)) if name]
    container.add_argument(*names, required=field.default is MISSING, default=field.default, **settings)


def _parse(text: str, hint: object, spec: Option) -> object:
    kind = _scalar(hint)
    if kind is Path and not text:  # an unset variable of a shell: it would be the current folder
        raise argparse.ArgumentTypeError("the path is empty")
    try:
        value = spec.convert(text) if spec.convert else kind(text)
    except ValueError as error:
        problem = str(error) if spec.convert else f"{text!r} is not {KINDS.get(kind, 'valid')}"
        raise argparse.ArgumentTypeError(problem) from None
    if spec.choices is None and (expected := spec.expectation(value)):
        raise argparse.ArgumentTypeError(f"{text}: expected {expected}")
    return value


def _is_many(hint: object) -> bool:
    return any(typing.get_origin(one) is tuple for one in (hint, *typing.get_args(hint)))


def _scalar(hint: object) -> Callable[[str], object]:
    """The type of one value: `int` of `int | None` and of `tuple[int, ...]`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is tuple:
        return _scalar(typing.get_args(hint)[0])
    return hint


@dataclass(frozen=True, kw_only=True)
class ScriptOptions:
    """Options of every step."""

    out_dir: Path = option("folder to write to")
    device: str = option("auto (cuda, mps or cpu), or a torch device", "auto")
    overwrite: bool = option("replace results made from different inputs or options", False)
    verify: bool = option("if only timestamps changed (e.g. after copying), compare checksums once", False)


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """Options of scripts that run a large model."""

    precision: str = option(
        "precision of matrix products; auto: bf16 where it is native", "auto", choices=PRECISIONS, is_fixed=True
    )
    compile: bool = option("use torch.compile: slow start, may be faster on a GPU, slower generation on a CPU", False)
