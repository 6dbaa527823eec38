"""The whole evaluation of a run: what is measured, on which images, and in which order."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from evaluation.distances import frechet_distance, interval, kernel_distance, precision_and_recall
from evaluation.features import features_of
from evaluation.likelihood import stage_bits
from evaluation.novelty import Nearest, picture, summary
from evaluation.reconstruction import quality, reconstruct
from evaluation.run import TrainedRun
from models.cascade import bits_before
from models.codebook import Codebook
from models.generation import Cascade, Request
from utils.dataset import BatchLoader, ImageDataset, chunks
from utils.device import choose_workers
from utils.files import UserError
from utils.images import save_grid
from utils.progress import progress
from utils.training import MAX_VALIDATION

FEWEST = 4  # images whose distance can be told: each must have a third neighbour, and their half a variance
PAIRS_NAME = "pairs.png"
COLUMNS, PAIRS = 10, 20  # in it


@dataclass(frozen=True)
class Settings:
    """What a person can choose."""

    num_images: int
    num_training: int | None
    seed: int
    batch_size: int
    out_dir: Path


class Evaluation:
    """A run, its images and an extractor of features, ready to be measured."""

    def __init__(self, run: TrainedRun, dataset: ImageDataset, extractor: nn.Module, options: Settings) -> None:
        self.run, self.dataset, self.options = run, dataset, options
        self.extractor = extractor.to(run.device)
        training, held_out = dataset.split(run.val_fraction)
        if len(held_out) == 0:
            raise UserError("no image was held out in training, so there is nothing to measure on; add images")
        self.num_held_out = len(held_out)
        self.held_out = held_out[: options.num_images]  # shuffled already
        order = np.random.default_rng(options.seed & 0xFFFFFFFF).permutation(training)
        self.training = order[: options.num_training]
        self.number = min(len(self.held_out), len(self.training))  # images a set

    def measure(self) -> dict:
        """All there is to tell: the content of evaluation.json but for the time that it took."""
        run = self.run
        reconstruction, bits = self.reconstruction(), self.bits()
        cascade = run.cascade(self.options.batch_size)
        distances, found = [], None
        if self.number < FEWEST:
            run.missing.append(f"distances: {self.number} images a set are too few, {FEWEST} are needed; add images")
        else:
            distances, found = self.compare(cascade)
        return {
            "extractor": self.extractor.description,
            "num_images": self.number,
            "num_held_out": self.num_held_out,
            "num_training": len(self.training) if found else self.number,
            "seed": self.options.seed,
            "settings": run.settings,
            "reconstruction": reconstruction,
            "bits": bits,
            "distances": distances,
            "novelty": found,
            "missing": run.missing,
        }

    def batches(self, indices: np.ndarray) -> BatchLoader:
        """Images of the data set, batch by batch."""
        parts = chunks(indices, self.options.batch_size)
        return BatchLoader(self.dataset, parts, choose_workers(None, self.run.device))

    def reconstructed(
        self, indices: np.ndarray, codebook: Codebook | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of images, and what the autoencoder, or a codebook too, leaves of them."""
        for images in self.batches(indices):
            images = images.to(self.run.device)
            yield images, reconstruct(images, self.run.autoencoder, codebook)

    def reconstruction(self) -> list[dict]:
        """PSNR and SSIM of held-out images, before and after each codebook."""
        kinds = {"autoencoder": None} | {f"after {name}": book for name, book in self.run.codebooks.items()}
        bar = progress(kinds.items(), unit="set", desc="reconstructions")
        return [{"name": name, **quality(self.reconstructed(self.held_out, codebook))} for name, codebook in bar]

    def bits(self) -> list[dict]:
        """Bits of the condition's token, whose mean cost is the entropy of its use, and of each stage's tokens."""
        run, rows = self.run, []
        if run.maps is None or not run.stages:
            return rows
        held_out = run.maps.split(run.val_fraction)[1][:MAX_VALIDATION]
        for number, (stage, coarse, fine) in run.stages.items():
            if number == 0 and (entropy := bits_before(coarse, None, is_base=True)) is not None:
                rows.append({"name": "condition", "tokens": 1, "bits": entropy})
            bits = stage_bits(stage, coarse, fine, run.maps, held_out, self.options.batch_size)
            rows.append({"name": f"stage {number}", "tokens": stage.config.fine.length, "bits": bits})
        return rows

    def compare(self, cascade: Cascade | None) -> tuple[list[dict], dict | None]:
        """The distances of each set to the held-out images, and the novelty of the samples if there is a cascade."""
        held_out, number = self.held_out[: self.number], self.number
        real = self.features(self.batches(held_out), number, "held-out images")
        sets = {"training images": self.features(self.batches(self.training[:number]), number, "training images")}
        sets["reconstructions"] = self.written(held_out, None, "reconstructions")
        books = cascade.codebooks if cascade else list(self.run.codebooks.values())
        if books:
            sets["quantized reconstructions"] = self.written(held_out, books[-1], "quantized reconstructions")
        found = None
        if cascade is not None:
            tokens = self.draw(cascade)
            sets["samples"] = self.features(self.decoded(cascade, tokens), number, "samples")
            found = self.novelty(cascade, tokens, sets["samples"], sets["quantized reconstructions"])
        rows = [
            self.row(name, features, real) for name, features in progress(sets.items(), unit="set", desc="distances")
        ]
        return rows, found

    def features(self, batches: Iterator[torch.Tensor] | BatchLoader, number: int, name: str) -> torch.Tensor:
        """Features (N, D) of images that come in batches."""
        return features_of(self.extractor, batches, number, name)

    def written(self, indices: np.ndarray, codebook: Codebook | None, name: str) -> torch.Tensor:
        """Features (N, D) of what the autoencoder, or a codebook too, leaves of images."""
        pictures = (pictures for _, pictures in self.reconstructed(indices, codebook))
        return self.features(pictures, len(indices), name)

    def row(self, name: str, features: torch.Tensor, real: torch.Tensor) -> dict:
        """The distances of a set of images to the real ones."""
        row = {"name": name}
        for key, distance in (("kernel", kernel_distance), ("frechet", frechet_distance)):
            value, low, high = interval(distance, features, real, self.options.seed)
            row |= {key: value, f"{key}_low": low, f"{key}_high": high}
        row["precision"], row["recall"] = precision_and_recall(features, real)
        return row

    def draw(self, cascade: Cascade) -> torch.Tensor:
        """The finest tokens (N, T) of as many samples as a set has images."""
        batches = cascade.batches(Request(self.options.seed), self.number, "samples")
        return torch.cat([tokens[-1] for _, tokens, _ in batches])

    def decoded(self, cascade: Cascade, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
        """The images of the finest tokens, batch by batch."""
        for part in tokens.split(self.options.batch_size):
            yield cascade.decode(part, -1).clamp(-1, 1)

    def novelty(self, cascade: Cascade, tokens: torch.Tensor, samples: torch.Tensor, held_out: torch.Tensor) -> dict:
        """How near samples come to training images; where a run has learned mirror images too, to those as well.

        Training and held-out images are compared as the finest codebook leaves them, which is what a cascade that
        has learned an image by heart would write: from the image itself even that stands far away.
        """
        training = self.quantized_training(cascade)
        sides: list[torch.Tensor | None] = [None, None]
        if self.run.maps is not None and self.run.maps.flipped.any():
            mirrored = (images.flip(-1) for images in self.decoded(cascade, tokens))
            sides[0] = self.features(mirrored, self.number, "mirrored samples")
            pairs = self.reconstructed(self.held_out[: self.number], cascade.codebooks[-1])
            mirrored = (pictures.flip(-1) for _, pictures in pairs)
            sides[1] = self.features(mirrored, self.number, "mirrored quantized reconstructions")
        near = Nearest.among(training, samples, sides[0])
        self.draw_pairs(cascade, tokens, near)
        paths = [self.dataset.paths[index].decode() for index in self.training]
        return summary(near, Nearest.among(training, held_out, sides[1]), paths, PAIRS_NAME)

    def quantized_training(self, cascade: Cascade) -> torch.Tensor:
        """Features (N, D) of the training images, decoded from the tokens that training has kept if it has."""
        name, codebook = "quantized training images", cascade.codebooks[-1]
        tokens = self.run.kept_tokens(self.dataset, self.training, codebook)
        if tokens is None:
            return self.written(self.training, codebook, name)
        return self.features(self.decoded(cascade, tokens), len(tokens), name)

    def draw_pairs(self, cascade: Cascade, tokens: torch.Tensor, near: Nearest) -> None:
        """Write the samples that are nearest to a training image, above each that image."""
        columns = min(COLUMNS, self.number)
        shown = near.distance.argsort(stable=True)[: min(PAIRS, self.number) // columns * columns]  # full rows
        originals = self.dataset[self.training[near.index[shown].numpy()]]
        originals = torch.where(near.mirrored[shown][:, None, None, None], originals.flip(-1), originals)
        copies = torch.cat(list(self.decoded(cascade, tokens[shown.to(tokens.device)]))).cpu()
        save_grid(picture(copies, originals, columns), self.options.out_dir / PAIRS_NAME, columns)
