"""The arguments of Python methods, checked by their type hints: a wrong one is a `UserError` in one line."""

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType

from utils.core.config import fits
from utils.core.files import UserError
from utils.core.options import KINDS

LISTS = (tuple, list, Sequence)
SHOWN = 60  # characters of a value that is shown; of a longer one the type is
WORDS = KINDS | {bool: "True or False", str: "a string", os.PathLike: "a path", Path: "a path", Callable: "a function"}


def check_methods(cls: type) -> type:
    """A class whose public methods are all `checked`."""
    for name, method in list(vars(cls).items()):
        if not name.startswith("_") and isinstance(method, classmethod | types.FunctionType):
            is_plain = isinstance(method, types.FunctionType)
            setattr(cls, name, checked(method) if is_plain else classmethod(checked(method.__func__)))
    return cls


def checked(function: Callable) -> Callable:
    """A function that takes its arguments through `check_type`, but for those of a `**name`."""
    signature = inspect.signature(function)
    named = [name for name, each in signature.parameters.items() if each.kind != inspect.Parameter.VAR_KEYWORD]

    @functools.wraps(function)
    def call(*args: object, **more: object) -> object:
        given, hints = signature.bind(*args, **more), _hints_of(function)
        for name in named:
            if name in given.arguments and name in hints:
                given.arguments[name] = check_type(given.arguments[name], hints[name], name)
        return function(*given.args, **given.kwargs)

    return call


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
