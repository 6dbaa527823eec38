"""Replaces a set of files as a whole by the one in `.next/`; after a crash the next start completes that."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from utils.core.config import read_json
from utils.core.files import UserError, flush, flush_all, make_folder, write_file

NEXT, WHOLE = ".next", ".whole"  # the folder of the next set, and its file with the names of a whole one


def finish_set(folder: Path, names: Iterable[str], last: str, before: Iterable[str]) -> None:
    """Mark the set in `folder`/.next as whole: files of these `names` and the `last`, without which there is no set.

    They are on disk before the mark. `before` names the files of the set that it is to replace.
    """
    flush_all(folder / NEXT)
    names = sorted({*names} - {last})
    content = {"names": [*names, last], "old": sorted({*before, *names} - {last})}
    write_file(folder / NEXT / WHOLE, json.dumps(content))


def replace_set(folder: Path) -> None:
    """Replace the set in `folder` by that in `folder`/.next, if it is whole; the two are never mixed."""
    new = folder / NEXT
    if not (new / WHOLE).is_file():
        return
    content = read_json(new / WHOLE)
    if not all(_are_inside(folder, content.get(key)) for key in ("names", "old")) or not content["names"]:
        raise UserError(f"{new / WHOLE}: damaged; remove {new}, and run this again")
    *names, last = content["names"]
    folders = {(folder / name).parent for name in (*content["names"], *content["old"])}
    for name in (last, *content["old"]):
        if name not in content["names"] or (new / name).is_file():
            (folder / name).unlink(missing_ok=True)
    for path in folders:
        make_folder(path)
        flush(path)
    for name in (*names, last):
        if name == last:
            for path in folders:
                flush(path)
        if (new / name).is_file():  # else a process that died has moved it
            (new / name).replace(folder / name)
    flush(folder)
    shutil.rmtree(new, ignore_errors=True)


def _are_inside(folder: Path, names: object) -> bool:
    """Whether these are names of files in a folder: nothing else may be replaced or removed."""
    if not isinstance(names, list) or not all(isinstance(name, str) and "\0" not in name for name in names):
        return False
    return all((folder / name).resolve().is_relative_to(folder.resolve()) for name in names)
