"""Feature maps on disk: a file each, or rows of one array for each folder of them."""

import hashlib
import io
import os
import tokenize
import zipfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from utils.core.files import UserError, file_at, make_folder, write_file
from utils.core.provenance import Key, digest
from utils.data.checksums import checksum

AGAIN = "make the maps again with generate_fmap_dataset.py"
NO_ARRAY = (ValueError, TypeError, EOFError, SyntaxError, OverflowError, IndexError)  # what NumPy raises of one
NO_ARRAY += (zipfile.BadZipFile, tokenize.TokenError)


def read_map(path: Path, expected: str = "", row: int = -1) -> torch.Tensor:
    """Read a feature map (C, H, W), float32, from its file or from a row of the array in it.

    `expected` is the checksum of the file or row, where it is known. Raises `UserError` naming a file that is missing,
    broken, not finite, or has changed since it was written.
    """
    try:
        fmap = open_rows(str(path))[row] if row >= 0 else None
        content = file_at(path).read_bytes() if fmap is None else fmap.tobytes()
        is_right = not expected or checksum(content) == expected
        if fmap is None and is_right:
            fmap = np.load(io.BytesIO(content), allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such feature map; {AGAIN}") from None
    except NO_ARRAY as error:
        raise UserError(f"{path}: not a feature map ({error}); {AGAIN}") from None
    if not is_right:
        raise UserError(f"{path}: has changed since it was written; {AGAIN}")
    if not isinstance(fmap, np.ndarray) or fmap.ndim != 3 or not np.issubdtype(fmap.dtype, np.floating):
        raise UserError(f"{path}: not a (C, H, W) array of floats; {AGAIN}")
    if not np.isfinite(fmap).all():
        raise UserError(f"{path}: holds NaN or infinity; train the autoencoder with a lower 'model_lr', then {AGAIN}")
    return torch.from_numpy(np.array(fmap, dtype=np.float32))


@lru_cache(maxsize=256)
def open_rows(path: str) -> np.ndarray:
    """The array in a file, mapped into memory; few at once, since each keeps a file open."""
    return np.load(file_at(Path(path)), mmap_mode="r", allow_pickle=False)


class MapFiles:
    """Maps of a data set, a file each, named by their content: an earlier data set stays whole until it is replaced."""

    def __init__(self, folder: Path, per_folder: int) -> None:
        self.folder, self.per_folder = folder, per_folder

    def write(self, fmaps: np.ndarray, first: int) -> dict:
        """Write maps, the first as number `first`; return their entry of a journal."""
        places = []
        for number, fmap in enumerate(fmaps, first):
            file = io.BytesIO()
            np.save(file, fmap)
            content = file.getvalue()
            hashed = hashlib.blake2b(f"{number} ".encode() + content, digest_size=12).hexdigest()
            name = f"{number // self.per_folder:04d}/{hashed}.npy"
            write_file(self.folder / name, content, durable=False)
            places.append((name, None, checksum(content)))
        return {"places": places}


class PackedMaps:
    """`total` maps as the rows of an array for each folder, named by the `key` of the content, as `MapFiles` are."""

    def __init__(self, folder: Path, per_folder: int, total: int, shape: tuple[int, ...], dtype: str, key: Key) -> None:
        self.folder, self.per_folder, self.total, self.shape, self.dtype = folder, per_folder, total, shape, dtype
        self.digest = digest(key)

    def name(self, first: int) -> str:
        return f"{first // self.per_folder:04d}/{self.digest}.npy"

    def make(self) -> None:
        for first in range(0, self.total, self.per_folder):
            path, shape = self.folder / self.name(first), (min(self.per_folder, self.total - first), *self.shape)
            with suppress(OSError, ValueError):
                array = np.load(file_at(path), mmap_mode="r", allow_pickle=False)
                if array.shape == shape and array.dtype == self.dtype:
                    continue
            make_folder(path.parent)
            try:
                np.lib.format.open_memmap(path, mode="w+", dtype=self.dtype, shape=shape)
                if hasattr(os, "posix_fallocate"):  # to write to a sparse file on a full disk would kill this process
                    with path.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                path.unlink(missing_ok=True)
                raise UserError(f"{path}: cannot be written ({error.strerror}); make room and run this again") from None

    def write(self, fmaps: np.ndarray, first: int) -> dict:
        """Write maps, the first as number `first`; return their entry of a journal."""
        places = []
        for start in range(first - first % self.per_folder, first + len(fmaps), self.per_folder):
            name, begin = self.name(start), max(first, start)
            part = fmaps[begin - first : start + self.per_folder - first]
            array = np.load(self.folder / name, mmap_mode="r+", allow_pickle=False)
            array[begin - start :][: len(part)] = part
            places += [(name, row, checksum(fmap.tobytes())) for row, fmap in enumerate(part, begin - start)]
        return {"places": places}
