"""The fields of a dataclass, checked by their type hints: a wrong one is a `UserError` in one line."""

import functools
import types
import typing
from collections.abc import Sequence
from types import NoneType

from utils.core.config import fits
from utils.core.files import UserError
from utils.core.options import KINDS

LISTS = (tuple, list, Sequence)
SHOWN = 60  # characters of a value that is shown; of a longer one the type is
WORDS = KINDS | {bool: "True or False", str: "a string"}


def check_fields(instance: object) -> None:
    """Take the fields of a frozen dataclass through `check_type`: for its `__post_init__`."""
    for name, hint in _hints_of(type(instance)).items():
        object.__setattr__(instance, name, check_type(getattr(instance, name), hint, name))


def check_type(value: object, hint: object, name: str) -> object:
    """The value as type `hint`, else `UserError`: lists as tuples, numbers of NumPy and PyTorch as those of Python."""
    options = _options(hint)
    if any(fits(value, option) for option in options if typing.get_origin(option) not in LISTS):
        return value
    plain = value.tolist() if getattr(value, "ndim", 2) < 2 else value
    for option in options:
        if typing.get_origin(option) in LISTS and isinstance(plain, Sequence) and not isinstance(plain, str | bytes):
            item = typing.get_args(option)[0]
            return tuple(check_type(each, item, f"{name}, entry {number}") for number, each in enumerate(plain))
    if plain is not value:
        return check_type(plain, hint, name)
    shown = repr(value)
    shown = f"of type {type(value).__name__}" if len(shown) > SHOWN or "\n" in shown else shown
    raise UserError(f"{name} is {shown}, expected {_words(hint)}")


_hints_of = functools.cache(typing.get_type_hints)


def _options(hint: object) -> tuple:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _words(hint: object) -> str:
    """A hint in words, without None, which means that a value is not given."""
    words: list[str] = []
    for option in _options(hint):
        origin = typing.get_origin(option)
        if origin in LISTS:
            each = _words(typing.get_args(option)[0])
            words.append("a list of them" if each == _either(words) else f"a list, each {each}")
        elif option is not NoneType:
            kind = origin or option
            article = "an" if kind.__name__[0] in "AEIOU" else "a"
            words.append(WORDS.get(kind, f"{article} {kind.__name__}"))
    return _either(words)


def _either(words: list[str]) -> str:
    words = list(dict.fromkeys(words))
    return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
