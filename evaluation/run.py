"""A trained run: the models in the folder of scripts.train_cascade, as many as there are."""

from itertools import pairwise
from pathlib import Path

import torch

from models.autoencoder import Autoencoder
from models.cascade import Cascade
from models.codebook import Codebook
from models.requests import load_generation_config
from models.stage import Stage
from utils.core.config import read_json
from utils.core.files import UserError
from utils.core.provenance import Key, check_origin, same_images
from utils.data.dataset import FeatureMapDataset, ImageDataset
from utils.data.split import Bounds, Learned
from utils.runs.folders import ExportedFolder, RunFolder
from utils.runtime.device import choose_dtype


class TrainedRun:
    """The autoencoder, the codebooks and the stages of a run; `missing` lists what is not there, and why.

    `decoder` decodes quantized maps: it is the autoencoder, or the one whose decoder was trained further on such maps.
    """

    def __init__(self, folder: RunFolder, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.missing: list[str] = []
        path = folder.autoencoder.latest
        if not path.is_file():
            raise UserError(f"{folder.path}: nothing to evaluate, since {path} is missing; train the autoencoder")
        self.learned: dict[Path, Learned] = {}  # what the weights that were read have learned from
        self.autoencoder = self.decoder = Autoencoder.load(path).to(device)
        self.learned[path], decoding = self.autoencoder.learned, folder.decoding.latest
        if decoding != path:
            self.decoder = Autoencoder.load(decoding).to(device)
            self.learned[decoding] = self.decoder.learned
            check_origin(decoding, self.decoder.origin, self.autoencoder.origin)
        self.settings = read_json(folder.generation) if folder.generation.is_file() else {}
        self.maps: FeatureMapDataset | None = None
        if folder.feature_maps.dataset.is_file():
            self.maps = FeatureMapDataset(folder.feature_maps.dataset)
            self.maps.check_origin(self.autoencoder.origin)
        self.codebooks = self._load_codebooks()
        self.stages = self._load_stages()

    def _load_codebooks(self) -> dict[str, Codebook]:
        books = {}
        for step in self.folder.codebooks:
            if not step.codebook.is_file():
                self.missing.append(f"{step.name}: {step.codebook} is missing; train it")
                continue
            book = books[step.name] = Codebook.load(step.codebook).to(self.device)
            self.learned[step.codebook] = book.learned
            check_origin(step.codebook, book.origin, self.autoencoder.origin)
            if self.maps is not None:
                book.check_fits(step.codebook, self.maps.shape, self.maps.origin)
        return books

    def _load_stages(self) -> dict[int, tuple[Stage, Codebook, Codebook]]:
        stages = {}
        steps = zip(self.folder.transformers, pairwise(self.folder.codebooks), strict=True)
        for number, (step, pair) in enumerate(steps):
            books = [self.codebooks.get(book.name) for book in pair]
            if not step.best.is_file():
                self.missing.append(f"stage {number}: {step.best} is missing; train it")
            elif None in books:
                self.missing.append(f"stage {number}: its bits need both codebooks")
            else:
                stage = Stage.load(step.best, *books).to(self.device)
                self.learned[step.best] = stage.learned
                check_origin(step.best, stage.origin, self.autoencoder.origin)
                stages[number] = (stage, *books)
        if stages and isinstance(self.folder, ExportedFolder):
            self.missing.append("bits: an exported model has no feature maps; evaluate the run that it is from")
        elif stages and self.maps is None:
            self.missing.append(f"bits: {self.folder.feature_maps.dataset} is missing; make the feature maps again")
        return stages

    @property
    def sides(self) -> tuple[bool, ...]:
        """Of each image that it was trained on: whether it is mirrored."""
        is_flipped = self.autoencoder.flip if self.maps is None else self.maps.flipped.any()
        return (False, True) if is_flipped else (False,)

    @property
    def data(self) -> Key | None:
        """The identity of the data set that is evaluated: that behind the feature maps, else the autoencoder's."""
        images = None if self.maps is None else self.maps.records.images
        return {"images": images} if images else self.autoencoder.learned.data

    @property
    def bounds(self) -> Bounds:
        common = Bounds.common(learned.among(self.data) for learned in self.learned.values())
        return common if common.test < 1 else Bounds.common((common, Bounds()))  # nothing has learned from these images

    def why_no_test(self) -> str:
        for path, learned in self.learned.items():
            if not learned.may_be_of(self.data):
                return f"{path} has learned from other images, which may be among these"
            if not learned.bounds.has_test:
                return f"{path} held out none (--test-fraction 0), or began from weights that learned from other images"
        return "none of these images is one that every step held out as a test image"

    def images(self, path: Path | None) -> ImageDataset:
        path = path or self.folder.images
        if not path.exists():
            raise UserError(f"{path}: no such data set; name that of the run's images with --dataset-path")
        dataset = ImageDataset(path)
        self.autoencoder.check_image(dataset.shape, path)
        if self.data is not None and not same_images(self.data, dataset.fingerprint):
            raise UserError(
                f"{path}: is not the data set that the run was trained on, or was made anew since, so its split may be "
                "another; give the former one, or train the run again"
            )
        return dataset

    def cascade(self, batch_size: int) -> Cascade | None:
        """The cascade of generate.json: its stages before the first one that lacks a file, None if there are none.

        The reason is in `missing`. What it names may be of another folder, so its bounds count too.
        """
        path, folder = self.folder.generation, self.folder.path
        if not path.is_file():
            self.missing.append(f"samples: {path} is missing, and so are all levels; copy that of the recipe")
            return None
        configs = load_generation_config(path)
        for number, config in enumerate(configs):
            names = (config.lr_codebook_path, config.hr_codebook_path, config.model_path)
            if absent := [folder / name for name in names if not (folder / name).is_file()]:
                levels = f"the levels of stage {number} and finer ones"
                self.missing.append(f"samples: {absent[0]} is missing, and so are {levels}; train it")
                configs = configs[:number]
                break
        if not configs:
            return None
        cascade = Cascade(configs, folder, self.decoder, self.device, choose_dtype(self.device, "auto"), batch_size)
        paths = [configs[0].lr_codebook_path, *(each.hr_codebook_path for each in configs)]
        paths += [each.model_path for each in configs]
        models = [*cascade.codebooks, *cascade.stages]
        self.learned |= {folder / path: model.learned for path, model in zip(paths, models, strict=True)}
        return cascade
