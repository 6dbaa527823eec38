"""The keys of results, and the one question whether a result would be made from the same inputs and options again.

A key holds all that a result depends on, by name: the fingerprints of what was read, and the options that matter. It is
kept beside the result. `data` is the fingerprint of a data set. Its `index` counts; its `files` are timestamps and
sizes, which may differ where files were copied, and its `images` say which pictures are behind it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping

from utils.core.files import UserError
from utils.core.options import fixed_options

Key = Mapping[str, object]
Origin = dict[str, str | None]  # the part of a key that goes from step to step: fingerprints of models


def plain(values: object) -> object:
    """Values as JSON keeps them: a key that was read from a file then equals one that was not."""
    return json.loads(json.dumps(values, default=str))


def options_key(options: object) -> dict:
    return plain({flag: getattr(options, name) for name, flag in fixed_options(options).items()})


def digest(key: object) -> str:
    return hashlib.blake2b(json.dumps(plain(key), sort_keys=True).encode(), digest_size=12).hexdigest()


def same_key(before: Key, now: Key) -> bool:
    """Whether two keys are equal, but for timestamps and sizes of files."""
    return difference(before, now) is None


def difference(before: Key, now: Key) -> str | None:
    """The first name with another value, if there is one; the value of a missing name is None."""
    before, now = plain(before), plain(now)
    return next((name for name in before | now if _value(before, name) != _value(now, name)), None)


def check(where: object, before: Key, now: Key, remedy: str = "", verify: Callable[[], None] | None = None) -> None:
    """Raise `UserError` unless the key of `where` is the same now: it names the first difference, and the `remedy`.

    If only timestamps or sizes of files differ, `verify` is called, which reads them and raises if they have changed.
    """
    if (name := difference(before, now)) is not None:
        values = [_value(key, name) for key in (before, now)]
        then, value = ("not given" if each is None else each for each in values)
        name = "data set" if name == "data" else name
        remedy = remedy or "give what it was made with, or --overwrite to make it anew"
        raise UserError(f"{where}: was made with another {name} ({then}, now {value}); {remedy}")
    then, value = ((key.get("data") or {}).get("files") for key in (before, now))
    if then != value:
        if verify is None:
            change = "the files of its data set have other times or sizes than when it was written"
            remedy = "add --verify to read them once and go on if they are the same, or start anew with --overwrite"
            raise UserError(f"{where}: {change}; {remedy}")
        verify()


def check_origin(where: object, before: Key, now: Key) -> None:
    """Raise `UserError` if `where` was made with another model than one that `now` names too."""
    shared = before.keys() & now.keys()
    remedy = "give the files of one run, or train the later step again"
    check(where, *({name: key[name] for name in key if name in shared} for key in (before, now)), remedy)


def same_images(before: Key | None, now: Key | None) -> bool | None:
    """Whether two data sets, by their fingerprints, hold the same pictures under the same names; None if unknown.

    One may hold feature maps of what is in the other.
    """
    before, now = before or {}, now or {}
    if before.get("index", "") == now.get("index"):
        return True
    images = before.get("images"), now.get("images")
    return None if None in images else images[0] == images[1]


def _value(key: Key, name: str) -> object:
    value = key.get(name)
    return value["index"] if isinstance(value, dict) and value.keys() >= {"index", "files"} else value
