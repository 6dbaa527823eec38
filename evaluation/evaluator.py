"""The whole evaluation of a run: what is measured, on which images, and in which order."""

import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from evaluation import results
from evaluation.distances import kernel_interval, precision_and_recall
from evaluation.features import features_of
from evaluation.levels import DRAWN, Sets, level
from evaluation.likelihood import stage_bits, start_bits
from evaluation.novelty import Nearest, summarize
from evaluation.reconstruction import mean_psnr, reconstruct
from evaluation.run import TrainedRun
from models.codebook import Codebook
from models.requests import Request, change_sampling
from utils.core.files import UserError
from utils.data.batches import BatchLoader, chunks
from utils.data.dataset import ImageDataset
from utils.data.images import save_grid
from utils.data.split import MEASURED
from utils.runs.checkpoint import fingerprints_of
from utils.runs.folders import EvaluationFolder
from utils.runtime import distributed
from utils.runtime.device import choose_workers
from utils.runtime.progress import progress
from utils.sampling import SamplingConfig

log = logging.getLogger(__name__)

HELD_OUT = "held-out images"  # the set that all others are compared with
QUANTIZED_HELD_OUT = "quantized held-out images"
FEWEST = 4  # images in a set: each needs a third neighbour, and half of them a variance
COLUMNS, PAIRS = 10, 20  # of the picture of pairs, at most


@dataclass
class Evaluator:
    """Measures a run on its images, with the features of an extractor.

    Each process reads, samples and computes features of some batches; the first one compares them.
    """

    run: TrainedRun
    dataset: ImageDataset
    extractor: nn.Module
    folder: EvaluationFolder
    num_images: int
    num_training: int
    seed: int
    batch_size: int

    def __post_init__(self) -> None:
        self.extractor.to(self.run.device)
        self.cascade = self.run.cascade(self.batch_size)
        split = self.dataset.split(self.run.bounds)
        self.no_test, held_out = "", split.test
        if len(split.test) == 0:
            why, held_out = self.run.why_no_test(), split.validation
            if len(held_out) == 0:
                raise UserError(
                    f"{self.dataset.index}: there is no test image that all steps of the run have held out, and no "
                    f"validation image: {why}; add images, or train with a larger --test-fraction"
                )
            self.no_test = f"There is no test image: {why}. All numbers are of validation images, by which checkpoints "
            self.no_test += "were chosen."
            if distributed.is_main():
                log.warning("%s", self.no_test)
        self.num_held_out = len(held_out)
        self.held_out = held_out[: self.num_images]  # shuffled already
        self.training = np.random.default_rng(self.seed & 0xFFFFFFFF).permutation(split.training)[: self.num_training]
        self.number = min(len(self.held_out), len(self.training))  # of images in each set
        self.layouts: dict[str, torch.Tensor] = {}  # of sets, tokens (N, T) in all stages but the finest

    def evaluate(self, start: float) -> results.Results:
        """Measure everything that the run allows; `start` is when the work began, by `time.perf_counter`."""
        run = self.run
        reconstruction, bits = self.reconstruction(), self.bits()
        distances, novelty, levels = self.compare(bits)
        return results.Results(
            extractor=self.extractor.description,
            num_images=self.number,
            num_held_out=self.num_held_out,
            num_training=len(self.training) if novelty else self.number,
            seed=self.seed,
            settings=run.settings,
            reconstruction=tuple(reconstruction),
            bits=tuple(bits),
            distances=tuple(distances),
            novelty=novelty,
            missing=tuple(run.missing),
            seconds=time.perf_counter() - start,
            decoder=run.folder.decoding.name,
            levels=tuple(levels),
            no_test=self.no_test,
            models=fingerprints_of(run.folder),
            num_groups=len(np.unique(self.dataset.records.table["position"][self.held_out[: self.number]])),
        )

    def reconstruction(self) -> list[results.Reconstruction]:
        books = {"autoencoder": None} | {f"after {name}": book for name, book in self.run.codebooks.items()}
        bar = progress(books.items(), unit="set", desc="reconstructions")
        return [results.Reconstruction(name, mean_psnr(self.reconstructed(self.held_out, book))) for name, book in bar]

    def bits(self) -> list[results.Bits]:
        run, rows = self.run, []
        if run.maps is None or not run.stages:
            return rows
        split = run.maps.split(run.bounds)
        held_out = split.measured if self.no_test else split.test[:MEASURED]
        if len(held_out) == 0:
            side = "validation" if self.no_test else "test"
            run.missing.append(f"bits: there is no feature map of a {side} image; make the feature maps again")
            return rows
        for number, (stage, coarse, fine) in run.stages.items():
            if number == 0:
                given = start_bits(stage, coarse, run.maps, held_out, split.training, self.batch_size)
                rows += [results.Bits(name, 1, bits) for name, bits in given.items()]
            bits = stage_bits(stage, coarse, fine, run.maps, held_out, self.batch_size)
            rows.append(results.Bits(f"stage {number}", stage.config.fine.length, bits))
        return rows

    def compare(
        self, bits: list[results.Bits]
    ) -> tuple[list[results.Distance], results.Novelty | None, list[results.Level]]:
        """The distances of each set to the held-out images, the novelty of samples, and each stage at its own level.

        The last two need a cascade. No set is made from the held-out images: reconstructions of an image are near to
        that image itself, which samples cannot be, so those are of training images, the same ones that are the floor.
        """
        cascade, number, training = self.cascade, self.number, self.training[: self.number]
        if number < FEWEST:
            self.run.missing.append(f"distances: {number} images in a set are too few, {FEWEST} are needed; add images")
            return [], None, []
        real = self.features(self.batches(self.held_out[:number]), number, HELD_OUT)
        sets = {results.TRAINING: self.features(self.batches(training), number, results.TRAINING)}
        sets[results.RECONSTRUCTIONS] = self.features_after(training, None, results.RECONSTRUCTIONS)
        drawn = self.draw(Request(self.seed), number, results.SAMPLES) if cascade is not None else None
        novelty, known = None, {}
        if cascade is not None and len(cascade.stages) == len(self.run.settings):
            tokens = drawn[0]
            every = self.quantized(self.training, results.QUANTIZED, self.run.sides)
            sets[results.QUANTIZED] = every[:number]
            sets[results.SAMPLES] = self.features(self.decoded(tokens[-1]), number, results.SAMPLES)
            quantized = self.quantized(self.held_out[:number], QUANTIZED_HELD_OUT)
            novelty = self.novelty(tokens, sets[results.SAMPLES], every, quantized)
            known[len(cascade.stages) - 1] = sets[results.SAMPLES], sets[results.QUANTIZED], quantized
        elif self.run.codebooks:
            book = list(self.run.codebooks.values())[-1]
            sets[results.QUANTIZED] = self.features_after(training, book, results.QUANTIZED)
        levels = self.levels(*drawn, known, bits) if drawn is not None else []
        if not distributed.is_main():
            return [], None, []
        rows = []
        for name, features in progress(sets.items(), unit="set", desc="distances"):
            rows.append(results.Distance(name, *kernel_interval(features, real), *precision_and_recall(features, real)))
        return rows, novelty, levels

    def levels(
        self, tokens: list[torch.Tensor], scores: torch.Tensor, known: dict[int, Sets], bits: list[results.Bits]
    ) -> list[results.Level]:
        """Each stage of the cascade at its own level: its tokens (N, T) of samples, beside true ones.

        `scores` are those of the samples, `known` the features of levels that are there already, and `bits` those of
        test images.
        """
        run, cascade, rows, test = self.run, self.cascade, [], {row.name: row.bits for row in bits}
        plain = (SamplingConfig(),) * len(cascade.stages)
        if plain != change_sampling(cascade.configs):
            request = Request(self.seed, sampling=plain)
            _, scores = self.draw(request, min(self.number, DRAWN), "samples at temperature 1")
        own = -scores / math.log(2)  # a score is the logarithm of a sample's probability
        for number, stage in enumerate(cascade.stages):
            name = f"stage {number}"
            sets = known.get(number) or self.sets_at(number, tokens[number + 1])
            if number in run.stages and run.stages[number][0].fingerprint != stage.fingerprint:
                test.pop(name, None)  # another checkpoint's, since generate.json does not name the best one
            if distributed.is_main():
                rows.append(level(name, sets, own[:, number], test.get(name)))
        return rows

    def sets_at(self, number: int, tokens: torch.Tensor) -> Sets:
        """Features at the level of a stage: of its tokens (N, T) of samples, of training and of test images."""
        book, name = self.cascade.codebooks[number + 1], f"at stage {number}"
        samples = self.features(self.decoded(tokens, number + 1), self.number, f"{results.SAMPLES} {name}")
        parts = {results.TRAINING: self.training, HELD_OUT: self.held_out}
        true = [self.features_after(part[: self.number], book, f"{key} {name}") for key, part in parts.items()]
        return samples, *true

    def batches(self, indices: np.ndarray) -> BatchLoader:
        parts = distributed.my_items(chunks(indices, self.batch_size))
        return BatchLoader(self.dataset, parts, choose_workers(None, self.run.device))

    def reconstructed(self, indices: np.ndarray, book: Codebook | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images in self.batches(indices):
            images = images.to(self.run.device)
            yield images, reconstruct(images, self.run.autoencoder if book is None else self.run.decoder, book)

    def features(self, batches: Iterable[torch.Tensor], number: int, name: str) -> torch.Tensor:
        """Features (N, D) of `number` images, of which this process has these batches; the first process gets them."""
        share = distributed.share_of(-(-number // self.batch_size))
        first, last = (min(number, batch * self.batch_size) for batch in (share.first, share.first + share.number))
        return distributed.gather_rows(features_of(self.extractor, batches, last - first, name))

    def features_after(self, indices: np.ndarray, book: Codebook | None, name: str) -> torch.Tensor:
        """Features (N, D) of reconstructions, quantized if there is a codebook."""
        return self.features((pictures for _, pictures in self.reconstructed(indices, book)), len(indices), name)

    def quantized(self, indices: np.ndarray, name: str, sides: Sequence[bool] = (False,)) -> torch.Tensor:
        """Features (N, D) of images, quantized by the finest codebook; their layouts, perhaps mirrored, are kept."""
        length = self.cascade.length - self.cascade.stages[-1].config.fine.length
        layouts = [[torch.empty(0, length, dtype=torch.int32)] for _ in sides]

        def pictures() -> Iterator[torch.Tensor]:
            for images in self.batches(indices):
                tokens = [self.cascade.tokens(images.flip(-1) if mirrored else images) for mirrored in sides]
                for own, (_, *coarse, _) in zip(layouts, tokens, strict=True):
                    own += [torch.cat(coarse, 1).int().cpu()] if coarse else []
                yield self.cascade.decode(tokens[0][-1])

        features = self.features(pictures(), len(indices), name)
        self.layouts[name] = torch.cat([distributed.gather_rows(torch.cat(own)) for own in layouts])
        return features

    def draw(self, request: Request, number: int, name: str) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Samples: the tokens (N, T) of the condition and of each stage, and the scores (N, stages) of the stages."""
        batches = [
            ([part.cpu() for part in tokens], scores)
            for _, tokens, scores in self.cascade.batches(request, number, name)
        ]
        tokens, scores = zip(*itertools.chain.from_iterable(distributed.gather(batches)), strict=True)
        return [torch.cat(parts).to(self.cascade.device) for parts in zip(*tokens, strict=True)], torch.cat(scores)

    def decoded(self, tokens: torch.Tensor, level: int = -1) -> Iterator[torch.Tensor]:
        for part in distributed.my_items(tokens.split(self.batch_size)):
            yield self.cascade.decode(part, level)

    def novelty(
        self, tokens: list[torch.Tensor], samples: torch.Tensor, training: torch.Tensor, held_out: torch.Tensor
    ) -> results.Novelty | None:
        """How near samples come to training images, and to their mirror images if the run was trained on those too.

        `samples`, `training` and `held_out` are features, the latter two of quantized images.

        Training and held-out images are quantized with the finest codebook first. A cascade that has memorized an image
        would write exactly that, while the image itself has a large distance even to its own quantized reconstruction.
        """
        looks = {results.SAMPLES: [samples], QUANTIZED_HELD_OUT: [held_out]}
        if True in self.run.sides:
            pairs = self.reconstructed(self.held_out[: self.number], self.cascade.codebooks[-1])
            quantized = (pictures for _, pictures in pairs)
            for key, batches in ((results.SAMPLES, self.decoded(tokens[-1])), (QUANTIZED_HELD_OUT, quantized)):
                flipped = (part.flip(-1) for part in batches)
                looks[key].append(self.features(flipped, self.number, f"mirrored {key}"))
        if not distributed.is_main():
            return None
        near, others = (Nearest.among(training, *features) for features in looks.values())
        self.draw_pairs(tokens[-1], near)
        return replace(summarize(near, others, *self.names, self.folder.pairs.name), layout=self.layout(tokens))

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """The paths of the training images, and those of the files that they were made from."""
        return tuple(list(map(name, self.training)) for name in (self.dataset.image_key, self.dataset.original))

    def layout(self, tokens: list[torch.Tensor]) -> results.Novelty | None:
        if len(self.cascade.stages) == 1:
            return None
        samples, known = torch.cat(tokens[1:-1], 1).cpu(), self.layouts[results.QUANTIZED]
        near, others = (Nearest.by_tokens(known, part) for part in (samples, self.layouts[QUANTIZED_HELD_OUT]))
        return summarize(near, others, *(names * len(self.run.sides) for names in self.names))

    def draw_pairs(self, tokens: torch.Tensor, near: Nearest) -> None:
        columns = min(COLUMNS, self.number)
        shown = near.distance.argsort(stable=True)[: min(PAIRS, self.number) // columns * columns]  # full rows
        originals = self.dataset[self.training[near.index[shown].numpy()]]
        originals = torch.where(near.mirrored[shown][:, None, None, None], originals.flip(-1), originals)
        copies = self.cascade.decode(tokens[shown.to(tokens.device)]).cpu()
        rows = zip(originals.split(columns), copies.split(columns), strict=True)
        save_grid(torch.cat([part for row in rows for part in row]), self.folder.pairs, columns)
