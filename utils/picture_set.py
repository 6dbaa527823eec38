"""A set of generated pictures: made in a folder of its own, `.next/`, and then put in the place of the one before."""

import shutil

from utils.files import flush, make_folder
from utils.run_folder import StepFolder


def replace_set(folder: StepFolder) -> None:
    """Put the set in `.next/`, if it is complete, in the place of the one before: all pictures, then tokens.npz.

    A process that died in here leaves what the next one needs to go on.
    """
    new = folder.next
    if new.tokens.is_file():  # which is written last
        make_folder(folder.images)
        if new.unfinished.is_file():  # else the pictures that are there are new ones already
            folder.tokens.unlink(missing_ok=True)
            for path in folder.pictures:
                path.unlink()
            flush(folder.path)
            flush(folder.images)
            new.unfinished.unlink()
            flush(new.path)
        for path in new.pictures:
            path.replace(folder.images / path.name)
        flush(folder.images)
        new.tokens.replace(folder.tokens)
        flush(folder.path)
    if not new.unfinished.is_file():  # nothing to go on with
        shutil.rmtree(new.path, ignore_errors=True)
