"""The data sets behind `dataset.json` files."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from utils.core.files import UserError
from utils.core.provenance import Origin, check_origin
from utils.core.size import Size
from utils.data.checksums import Fingerprint, fingerprint
from utils.data.feature_maps import open_rows, read_map
from utils.data.images import open_rgb, to_floats
from utils.data.records import image_key, read_packed, verify_files
from utils.data.shards import entry_of, shown
from utils.data.split import Bounds, Split, split_indices


class FileDataset(Dataset):
    """The files of a `dataset.json`, each a tensor of the same shape (C, H, W). `dataset[indices]` is a batch.

    Raises `UserError` naming a file that is missing, unreadable or of another shape than the first.
    """

    shape: tuple[int, ...] | None = None  # of the first file

    required: tuple[str, ...]  # keys of a record, that of its file first

    def __init__(self, path: str | os.PathLike) -> None:
        """`path` is a dataset.json or its folder, or shards."""
        inside = Path(path) / "dataset.json"
        self.index = inside if inside.is_file() else Path(path)
        self.folder, self.records = self.index.parent, read_packed(self.index, self.required)
        self.shape = tuple(self.read_file(0).shape)

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        return fingerprint(self.index, *self.records.files, self.records.digest, self.records.images)

    def verify(self) -> None:
        """Read all files; raises `UserError` naming the first that is not as it was written."""
        verify_files(self.index)

    def path(self, index: int) -> Path:
        return self.folder / self.records[index][self.records.key]

    def label(self, index: int) -> list[str]:
        return self.records[index].get("labels", [])

    def image_key(self, index: int) -> str:
        """The name by which image `index`, or that of feature map `index`, is split."""
        return image_key(self.records[index])

    def original(self, index: int) -> str:
        """The file that image `index` was made from, as a person knows it; empty where that is not recorded."""
        return self.records[index].get("original_path", "")

    def split(self, bounds: Bounds) -> Split:
        """Indices of the training, validation and test files; a flip stays with its original, and a group together."""
        return split_indices(self.records.table["position"], bounds)


class ImageDataset(FileDataset):
    """Images (3, H, W), float32 in [−1, 1]."""

    required = ("image_fpath",)

    def __getitem__(self, indices: np.ndarray) -> torch.Tensor:
        return to_floats(np.stack([self._pixels(index) for index in indices]))

    def read_file(self, index: int) -> torch.Tensor:
        return to_floats(self._pixels(index))

    def _pixels(self, index: int) -> np.ndarray:
        record = self.records[index]
        path, entry = self.folder / record["image_fpath"], entry_of(record)
        pixels = np.asarray(open_rgb(path, entry=entry))
        if self.shape is not None and pixels.shape[:2] != self.shape[1:]:
            size, first = Size.of(pixels.shape[:2]), Size.of(self.shape)
            advice = f"make all one size with scripts.make_dataset --image-size {first}"
            raise UserError(f"{shown(path, entry)}: is {size.shown}, the first image is {first.shown}; {advice}")
        return pixels


class FeatureMapDataset(FileDataset):
    """Feature maps, float32; `origin` identifies the autoencoder that made them."""

    required = ("fmap_path", "image_path")

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path)
        self.origin: Origin = self.records.info
        self.flipped, self.rows = self.records.table["flipped"], self.records.table["row"]
        self.paths: dict[int, str] = {}  # of arrays, by the first record of their rows
        self.is_checked = np.zeros(len(self), dtype=bool)  # rows whose checksums this process has compared already

    def __getitem__(self, indices: np.ndarray) -> torch.Tensor:
        maps = np.empty((len(indices), *self.shape), dtype=np.float32)
        for row, index in enumerate(map(int, indices)):
            if self.is_checked[index]:
                first = int(self.records.table["first"][index])
                if first not in self.paths:
                    self.paths[first] = str(self.path(first))
                maps[row] = open_rows(self.paths[first])[self.rows[index]]
            else:
                maps[row] = self.read_file(index)
                self.is_checked[index] = self.rows[index] >= 0
        return torch.from_numpy(maps)

    def split(self, bounds: Bounds, *, with_moved: bool = False) -> Split:
        """As of images, without the moved ones; `with_moved` adds those of the training images."""
        split, moved = super().split(bounds), self.records.table["moved"]
        training, *held_out = (part[~moved[part]] for part in (split.training, split.validation, split.test))
        return Split(split.training if with_moved else training, *held_out)

    def check_origin(self, given: Origin) -> None:
        """Raise `UserError` if another autoencoder made the maps; else remember all that is known of this one."""
        check_origin(self.index, self.origin, given)
        self.origin = given

    def label_names(self, indices: np.ndarray) -> tuple[str, ...]:
        return tuple(sorted(set().union(*map(self.label, indices))))

    def label_sets(self, names: tuple[str, ...]) -> np.ndarray:
        """The labels of each map as sorted indices of `names` (N, L), padded by their number; others are left out."""
        number = {name: index for index, name in enumerate(names)}
        known = [sorted({number[name] for name in self.label(index) if name in number}) for index in range(len(self))]
        sets = np.full((len(known), max(map(len, known))), len(names), np.min_scalar_type(len(names)))
        for row, own in zip(sets, known, strict=True):
            row[: len(own)] = own
        return sets

    def with_image(self, indices: np.ndarray) -> np.ndarray:
        """Those of `indices` whose image still exists; feature maps may have been moved without their images."""
        paths = ((index, self.folder / self.records[index]["image_path"]) for index in indices)
        return np.array([index for index, path in paths if path.is_file()], dtype=np.int64)

    def images(self, indices: np.ndarray, scale: int) -> torch.Tensor:
        """The images of feature maps, mirrored where the map is, `scale` pixels to a cell: (B, 3, H, W).

        Raises `UserError` naming an image that is missing, unreadable or no longer of that size.
        """
        images, (height, width) = [], (side * scale for side in self.shape[1:])
        for index in indices:
            record = self.records[index]
            entry, path = entry_of(record), self.folder / record["image_path"]
            image = to_floats(np.asarray(open_rgb(path, entry=entry)))
            if image.shape[1:] != (height, width):
                raise UserError(
                    f"{shown(path, entry)}: is {Size.of(image.shape).shown}, its feature map was made from "
                    f"{Size(width, height).shown}; make the maps again with generate_fmap_dataset.py"
                )
            images.append(image.flip(-1) if self.flipped[index] else image)
        return torch.stack(images)

    def unflipped(self, indices: np.ndarray) -> np.ndarray:
        return indices[~self.flipped[indices]]

    def read_file(self, index: int) -> torch.Tensor:
        record = self.records[index]
        path = self.folder / record["fmap_path"]
        fmap = read_map(path, record.get("checksum", "") if self.shape else "", record.get("row", -1))
        if self.shape not in (None, tuple(fmap.shape)):
            raise UserError(f"{path}: has shape {tuple(fmap.shape)}, the first map {self.shape}; make the maps again")
        return fmap
