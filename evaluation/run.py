"""A trained run: what scripts/train_cascade.sh has left in a folder, as far as it has come."""

from pathlib import Path

import numpy as np
import torch

from models.autoencoder import KIND as AUTOENCODER
from models.autoencoder import Autoencoder
from models.cascade import KIND as TRANSFORMER
from models.cascade import Stage
from models.codebook import Codebook
from models.generation import Cascade, load_generation_config
from models.tokens import read_tokens
from utils.checkpoint import check_origin, load_checkpoint
from utils.config import read_json
from utils.dataset import VAL_FRACTION, FeatureMapDataset, ImageDataset
from utils.device import choose_dtype
from utils.files import UserError
from utils.run_folder import StepFolder

WEIGHTS = "models_checkpoint"


class TrainedRun:
    """The autoencoder, the codebooks and the stages of a folder; `missing` says what is not there, and why."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.missing: list[str] = []
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give one that scripts/train_cascade.sh has written")
        path = folder / "autoencoder" / WEIGHTS / "latest.pt"
        if not path.is_file():
            raise UserError(f"{folder}: holds nothing to evaluate, since {path} is not there; train the autoencoder")
        self.autoencoder = Autoencoder.load(path).to(device)
        self.fractions = [held_out_fraction(path, AUTOENCODER)]
        self.generation_path = folder / "generate.json"
        self.settings = read_json(self.generation_path) if self.generation_path.is_file() else {}
        self.maps = self._load_maps()
        self.codebooks = self._load_codebooks()
        self.stages = self._load_stages()

    @property
    def num_stages(self) -> int:
        """Stages that the run has begun, or that its generation names; one at least."""
        paths = [path for kind in ("codebook", "transformer") for path in self.folder.glob(f"{kind}_[0-9]")]
        numbers = [int(path.name.split("_")[1]) for path in paths]
        return max([1, len(self.settings), *(number + 1 for number in numbers)])

    def _load_maps(self) -> FeatureMapDataset | None:
        path = self.folder / "feature_maps/dataset.json"
        if not path.is_file():
            return None
        maps = FeatureMapDataset(path)
        check_origin(path, "autoencoder", maps.autoencoder, self.autoencoder.fingerprint)
        return maps

    def _load_codebooks(self) -> dict[str, Codebook]:
        """The codebooks by the names of their folders, the coarsest first: pruned where that has been done."""
        found = {}
        for name in ("codebook_cond", *(f"codebook_{number}" for number in range(self.num_stages))):
            path = StepFolder(self.folder / name).codebook
            if not path.is_file():
                self.missing.append(f"{name}: {path} is not there; train it")
                continue
            found[name] = Codebook.load(path).to(self.device)
            check_origin(path, "autoencoder", found[name].autoencoder, self.autoencoder.fingerprint)
            if self.maps is not None:
                found[name].check_fits(path, self.maps)
        return found

    def _load_stages(self) -> dict[int, tuple[Stage, Codebook, Codebook]]:
        """The stages by their numbers, each with the codebooks that it reads and writes."""
        names = ("codebook_cond", *(f"codebook_{number}" for number in range(self.num_stages)))
        found = {}
        for number in range(self.num_stages):
            path = self.folder / f"transformer_{number}" / WEIGHTS / "best.pt"
            books = [self.codebooks.get(name) for name in names[number : number + 2]]
            if not path.is_file():
                self.missing.append(f"stage {number}: {path} is not there; train it")
            elif None in books:
                self.missing.append(f"stage {number}: the bits need its codebooks")
            else:
                stage = Stage.load(path, *books).to(self.device)
                check_origin(path, "autoencoder", stage.autoencoder, self.autoencoder.fingerprint)
                self.fractions.append(held_out_fraction(path, TRANSFORMER))
                found[number] = (stage, *books)
        if found and self.maps is None:
            self.missing.append(f"bits: {self.folder / 'feature_maps/dataset.json'} is not there; make the maps again")
        return found

    @property
    def val_fraction(self) -> float:
        """The share of images that no stage has learned from: what a smaller share holds out, a larger one does too."""
        return min(self.fractions)

    def images(self, path: Path | None) -> ImageDataset:
        """The run's images, at `path` or where the demo has them, checked to be of its size."""
        path = path or self.folder / "data/dataset.json"
        if not path.is_file():
            raise UserError(f"{path}: no such data set; name that of the run's images with --dataset-path")
        dataset = ImageDataset(path)
        self.autoencoder.check_image(dataset.shape, path)
        for name, codebook in self.codebooks.items():
            size = tuple(cells * self.autoencoder.scale for cells in codebook.fmap_shape[1:])
            if dataset.shape[1:] != size:
                height, width = dataset.shape[1:]
                raise UserError(
                    f"{path}: holds images of {height}×{width}, {name} is of {size[0]}×{size[1]}; give the run's own"
                )
        return dataset

    def kept_tokens(self, dataset: ImageDataset, indices: np.ndarray, codebook: Codebook) -> torch.Tensor | None:
        """The tokens (N, T) of images that training has kept beside their feature maps, or None where it has not."""
        try:
            tokens = None if self.maps is None else read_tokens(self.maps, self.maps.fingerprint, codebook)
        except UserError:  # a map is gone, so what was kept may be of others
            tokens = None
        if tokens is None:
            return None
        rows = {key: row for row, key in enumerate(self.maps.image_keys) if not self.maps.flipped[row]}
        found = [rows.get(key) for key in dataset.paths[indices]]
        return None if None in found else torch.from_numpy(tokens[found].astype(np.int64)).to(self.device)

    def cascade(self, batch_size: int) -> Cascade | None:
        """The cascade as generate.json has it, or None, with the reason in `missing`, where a part is not there."""
        if not self.generation_path.is_file():
            self.missing.append(f"samples: {self.generation_path} is not there; copy that of the recipe")
            return None
        searches = load_generation_config(self.generation_path)
        for search in searches:
            for name in (search.lr_codebook_path, search.hr_codebook_path, search.model_path):
                if not (self.folder / name).is_file():
                    self.missing.append(f"samples: {self.folder / name} is not there; train it")
                    return None
        dtype = choose_dtype(self.device, "auto")
        return Cascade(searches, self.folder, self.autoencoder, self.device, dtype, batch_size)


def held_out_fraction(path: Path, kind: str) -> float:
    """The share of images that was held out when this checkpoint was trained."""
    return load_checkpoint(path, kind, memory_map=True).get("settings", {}).get("--val-fraction", VAL_FRACTION)
