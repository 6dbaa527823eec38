"""Files that a test makes or changes: feature maps, JSON, and a pickle that runs code."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from utils.data.dataset_json import write_dataset


def map_folder(folder, arrays, info=None):
    """The dataset.json of feature maps, each an array, that are written into a folder."""
    records = []
    for number, array in enumerate(arrays):
        np.save(folder / f"{number}.npy", array)
        records.append({"fmap_path": f"{number}.npy", "image_path": f"{number}.png", "labels": [], "flipped": False})
    write_dataset(folder / "dataset.json", records, info)
    return folder / "dataset.json"


def contents(folder):
    """The content of every file of a folder, by its path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def edited(path):
    """The content of a JSON file, which is written back with what the block has changed in it."""
    content = json.loads(path.read_text())
    yield content
    path.write_text(json.dumps(content))


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
