"""What a result is made of, and the one question whether it would be made of the same again.

A key holds all that a result depends on, by name: the fingerprints of what was read, and the options that matter. It is
kept beside the result. `data` is the fingerprint of a data set, whose `files` are times and sizes: those alone may
differ where files were copied.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from utils.files import UserError
from utils.index import verify_files
from utils.options import fixed_options

Key = Mapping[str, object]
AGAIN = "give what it was made with, or --overwrite to make it anew"


def plain(values: object) -> object:
    """Values as JSON keeps them: a key that was read from a file then equals one that was not."""
    return json.loads(json.dumps(values, default=str, sort_keys=True))


def options_key(options: object) -> dict:
    """The options that results depend on, by their flags."""
    return plain({flag: getattr(options, name) for name, flag in fixed_options(options).items()})


def digest(key: Key) -> str:
    """A short hash of a key, for the name of a file."""
    return hashlib.blake2b(json.dumps(plain(key), sort_keys=True).encode(), digest_size=12).hexdigest()


def same(before: Key | None, now: Key) -> bool:
    """Whether two keys are equal in all but the times of data sets."""
    return before is not None and difference(before, now) is None


def difference(before: Key, now: Key) -> str | None:
    """The first name whose value is another, if there is one; what a key does not name is None."""
    before, now = plain(before), plain(now)
    names = {**before, **now}
    return next((name for name in names if _content(before.get(name)) != _content(now.get(name))), None)


def check(
    where: object, before: Key, now: Key, remedy: str = AGAIN, *, dataset: Path | None = None, verify: bool = False
) -> None:
    """Raise `UserError` unless `where` was made of the same: it names the first that differs, and the `remedy`.

    Where only the times or sizes of the files of `dataset` differ, `verify` reads them once and compares checksums.
    """
    if (name := difference(before, now)) is not None:
        then, value = (_shown(key.get(name)) for key in (before, now))
        raise UserError(f"{where}: was made with another {name} ({then}, now {value}); {remedy}")
    if plain(before.get("data")) == plain(now.get("data")):
        return
    if not verify:
        raise UserError(
            f"{dataset}: its files have other times or sizes than when {where} was written; add --verify to read them "
            "once and go on if they are the same, or start anew with --overwrite"
        )
    verify_files(dataset)


def _content(value: object) -> object:
    """A value without the times of files."""
    return value["index"] if isinstance(value, dict) and value.keys() == {"index", "files"} else value


def _shown(value: object) -> object:
    return "not given" if value is None else _content(plain(value))
