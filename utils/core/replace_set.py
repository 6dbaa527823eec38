"""A set of files that belong together, made in `.next/` and then put in the place of the one before, as a whole.

A process that dies in here leaves what the next one needs to go on.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from utils.core.files import flush, flush_all, make_folder, write_file

NEXT, WHOLE = ".next", ".whole"  # the folder of the set to come; its file that says what the set is, once that is whole


def finish_set(folder: Path, names: Iterable[str], last: str, before: Iterable[str]) -> None:
    """Say that the set in `folder`/.next is whole: files of these `names`, and the one without which there is no set.

    They are on disk before it says so. `before` names the files of the set that it is to replace.
    """
    flush_all(folder / NEXT)
    names = sorted({*names} - {last})
    content = {"names": [*names, last], "old": sorted({*before, *names} - {last})}
    write_file(folder / NEXT / WHOLE, json.dumps(content))


def replace_set(folder: Path) -> None:
    """Put the set in `folder`/.next, if it is whole, in the place of the one before; its last file comes last.

    No file of one is ever beside a file of the other, but for those that stay the same.
    """
    new = folder / NEXT
    if not (new / WHOLE).is_file():
        return
    content = json.loads((new / WHOLE).read_text(encoding="utf-8"))
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
