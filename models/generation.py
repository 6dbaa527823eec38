"""Generation: the stages of a cascade, checked to belong together, and requests to them."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from models.autoencoder import Autoencoder
from models.cascade import Stage
from models.codebook import Codebook
from models.decoding import make_ready
from utils.checkpoint import check_origins
from utils.config import build_config, read_json
from utils.distributed import own
from utils.files import UserError
from utils.options import option
from utils.progress import progress
from utils.sampling import SamplingConfig, image_generator, uniform_draws


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(SamplingConfig):
    """The JSON keys of one stage of a generation; paths are relative to the JSON file."""

    model_path: str = option("checkpoint of the stage, relative to the JSON file")
    lr_codebook_path: str = option("codebook of the grid that it reads")
    hr_codebook_path: str = option("codebook of the grid that it writes")


def load_generation_config(path: Path, **changes: float) -> list[GenerationConfig]:
    """The stages of a generation config, whose keys are "0", "1", … in the order of the cascade.

    `changes` are keys of the sampling that every stage takes instead of its own.
    """
    content = read_json(path)
    if not content:
        raise UserError(f'{path}: holds no stage; expected keys "0", "1", …')
    keys, configs = [str(number) for number in range(len(content))], []
    for key in content:
        if key not in keys:
            raise UserError(f'{path}: unknown key {key!r}; expected stages "0" to "{keys[-1]}"')
    for key in keys:
        where = f"{path}: stage {key}"
        config = build_config(GenerationConfig, content[key], where)
        configs.append(build_config(GenerationConfig, dataclasses.asdict(config) | changes, where))
    return configs


@dataclass(frozen=True)
class Request:
    """What to generate. Image i takes entry i of a list, and from the first again after the last."""

    seed: int = 0
    conditions: tuple[int, ...] = ()  # units of the condition codebook; if empty, drawn in proportion to their use
    labels: tuple[str, ...] = ()
    init_tokens: tuple[torch.Tensor, ...] = ()  # tokens of M images, of the condition and of each stage, each (M, T)
    from_stage: int = 0  # the first stage that writes; the tokens before it are those of `init_tokens`
    keep_rows: int = 0  # rows of the base stage's grid, and in finer grids those that they cover, kept of `init_tokens`


def pick(entries: tuple, image: int) -> object | None:
    """Entry number `image` of a list, modulo its length; None of an empty list."""
    return entries[image % len(entries)] if entries else None


class Cascade:
    """The stages of a cascade and its decoder, checked to belong together, ready for batches of `batch_size` images."""

    def __init__(
        self,
        configs: list[GenerationConfig],
        folder: Path,
        decoder: Autoencoder,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 1,
        compiled: bool = False,
    ) -> None:
        self.configs, self.decoder, self.device, self.batch_size = configs, decoder, device, batch_size
        self.stages: list[Stage] = []
        self.codebooks: list[Codebook] = []  # the condition codebook, then the one that each stage writes
        for number, config in enumerate(configs):
            paths = (config.model_path, config.lr_codebook_path, config.hr_codebook_path)
            model_path, coarse_path, fine_path = (folder / path for path in paths)
            coarse, fine = Codebook.load(coarse_path), Codebook.load(fine_path)
            stage = Stage.load(model_path, coarse, fine)
            check_origins(model_path, stage.origin, decoder.origins)
            if config.is_guided and not stage.config.transformer.condition_dropout:
                raise UserError(
                    f"{model_path}: 'guidance_scale' is {config.guidance_scale}, but the stage was trained without "
                    "'condition_dropout'; train it with that, or leave the scale at 1"
                )
            if stage.config.is_base != (number == 0):
                kind = "base" if stage.config.is_base else "cascade"
                raise UserError(f"{model_path}: is a {kind} stage; stage 0 must be a base stage and only stage 0")
            if number == 0:
                if coarse.counts.sum() == 0:
                    raise UserError(f"{coarse_path}: its units were never counted; finish its training or prune it")
                self.codebooks.append(coarse.to(device))
            elif self.codebooks[-1].fingerprint != coarse.fingerprint:
                raise UserError(
                    f"{coarse_path}: is not the codebook that the stage before writes; name the same file in both"
                )
            self.codebooks.append(fine.to(device))
            self.stages.append(stage.to(device))
            rows = batch_size * config.num_beam * (2 if config.is_guided else 1)
            make_ready(stage.transformer, dtype, rows, compiled)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the base stage has learned."""
        return self.stages[0].config.labels

    def check(self, request: Request) -> None:
        """Raise `UserError` naming the flag that this cascade cannot satisfy."""
        num_units = len(self.codebooks[0])
        for unit in request.conditions:
            if not 0 <= unit < num_units:
                raise UserError(f"--condition-index {unit}: the condition codebook has units 0 to {num_units - 1}")
        for name in request.labels:
            if name not in self.labels:
                known = ", ".join(self.labels) or "none: train its base stage with 'use_labels'"
                raise UserError(f"--label {name}: this model does not know it; labels that it knows: {known}")
        if request.from_stage >= len(self.stages):
            raise UserError(f"--from-stage {request.from_stage}: the stages are 0 to {len(self.stages) - 1}")
        rows = self.stages[0].config.fine.height
        if request.keep_rows > rows:
            raise UserError(f"--keep-rows {request.keep_rows}: the base stage's grid, whose rows count, has {rows}")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        _, height, width = self.codebooks[0].fmap_shape
        return height * self.decoder.scale, width * self.decoder.scale

    @torch.no_grad()
    def tokenize(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images (M, 3, H, W) → their tokens of the condition and of every stage, each (M, T)."""
        fmap = self.decoder.encode(images.to(self.device))
        return tuple(codebook.find_bmu(fmap) for codebook in self.codebooks)

    def decode(self, tokens: torch.Tensor, level: int) -> torch.Tensor:
        """Tokens (N, T) of the condition (level 0) or of a stage, from 1, → images (N, 3, H, W)."""
        return self.decoder.decode(self.codebooks[level].lookup(tokens))

    def conditions(self, request: Request, images: range) -> torch.Tensor:
        """The condition token of each image, (N, 1): a given one, or drawn by its use in training or in a label."""
        if request.conditions:
            given = [pick(request.conditions, image) for image in images]
            return torch.tensor(given, device=self.device)[:, None]
        if request.init_tokens:
            return self._taken(request, 0, images)
        return torch.stack([self._draw_condition(request, image) for image in images]).to(self.device)

    def _draw_condition(self, request: Request, image: int) -> torch.Tensor:
        label = pick(request.labels, image)
        counts = self.codebooks[0].counts if label is None else self.stages[0].label_usage[self.labels.index(label)]
        return torch.multinomial(counts.cpu().double(), 1, generator=image_generator(request.seed, -1, image))

    def _taken(self, request: Request, level: int, images: range) -> torch.Tensor:
        """The tokens of the images that a request starts from, (N, T)."""
        tokens = request.init_tokens[level]
        return tokens[[image % len(tokens) for image in images]]

    @property
    def length(self) -> int:
        """Tokens that all stages write for an image."""
        return sum(stage.config.fine.length for stage in self.stages)

    def generate(
        self, request: Request, images: range, progress: Callable[[int], object] = lambda num: None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Tokens of the condition and of every stage for these images, each (N, T), and the stages' scores (N, stages).

        A stage that was skipped has no score (NaN). `progress` is called with the number of positions done.
        """
        tokens = [self.conditions(request, images)]
        scores = torch.full((len(images), len(self.stages)), torch.nan)
        for number, (stage, config) in enumerate(zip(self.stages, self.configs, strict=True)):
            fine = stage.config.fine
            if number < request.from_stage:
                tokens.append(self._taken(request, number + 1, images))
                progress(fine.length)
                continue
            rows = request.keep_rows * fine.height // self.stages[0].config.fine.height
            kept = self._taken(request, number + 1, images)[:, : rows * fine.width] if rows else None
            coarse = stage.with_labels(tokens[-1], [pick(request.labels, image) for image in images])
            uniform = uniform_draws(request.seed, number, images, fine.length, config.num_beam)
            found, score = stage.sample(coarse, config, uniform, kept=kept, progress=lambda: progress(1))
            tokens.append(found)
            scores[:, number] = score.cpu()
        return tokens, scores

    def batches(
        self, request: Request, number: int, name: str
    ) -> Iterator[tuple[int, list[torch.Tensor], torch.Tensor]]:
        """Generate `number` images; yield of each batch the index of its first image, its tokens and its scores.

        The last batch is generated in full as well, so the number of images never changes a picture. Each process makes
        some of the batches.
        """
        starts = own(range(0, number, self.batch_size))
        with progress(total=self.length * len(starts), unit="token", desc=name) as bar:
            for start in starts:
                tokens, scores = self.generate(request, range(start, start + self.batch_size), bar.update)
                yield start, [part[: number - start] for part in tokens], scores[: number - start]

    def filling_in(self, tokens: list[torch.Tensor], steps: int) -> Iterator[torch.Tensor]:
        """Images (N, 3, H, W): the condition's, then at most `steps` of each stage as it writes over the one before."""
        fmaps = [book.lookup(part) for book, part in zip(self.codebooks, tokens, strict=True)]
        yield self.decoder.decode(fmaps[0])
        for stage, (coarse, fine) in zip(self.stages, pairwise(fmaps), strict=True):
            grid = stage.config.fine
            cells = torch.arange(grid.length, device=fine.device).view(grid.height, grid.width)
            # The index of the token that covers each cell of the feature map.
            number = cells.repeat_interleave(fine.shape[2] // grid.height, 0)
            number = number.repeat_interleave(fine.shape[3] // grid.width, 1)
            step = -(-grid.length // steps)
            for written in range(step, grid.length + step, step):
                yield self.decoder.decode(torch.where(number < written, fine, coarse))
