"""The cascade: its stages, checked to belong together, and the images that they generate for requests."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from models.autoencoder import Autoencoder
from models.codebook import Codebook
from models.decoding import make_ready
from models.labels import LabelSet, LabelSets, label_text, parse_labels
from models.requests import GenerationConfig, Place, Request, Values, change_sampling, load_generation_config, pick, way
from models.stage import Stage
from utils.core.files import UserError
from utils.core.options import PRECISIONS
from utils.core.provenance import check_origin
from utils.data.images import Picture, to_pil, to_tensor
from utils.runs.folders import CONDITION, ExportedFolder, RunFolder
from utils.runtime.device import choose_device, choose_dtype
from utils.runtime.distributed import my_items
from utils.runtime.progress import progress
from utils.sampling import SamplingConfig, image_generator, uniform_draws

Pictures = list[Image.Image] | Tensor
Images = Picture | Sequence[Picture]
Count = Callable[[int], object]  # called with the number of new tokens
ENCODED = 64  # images encoded at once: a fixed number, since tokens could depend on it
LABELS = 2**16  # stands for the number of a stage in the seed of labels; no stage has it
Written = tuple[Tensor, Tensor]  # tokens (N, T) of a level of the cascade, and their scores (N,)


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
        self.files: list[Path] = []  # that they come from
        self.codebooks: list[Codebook] = []  # the condition codebook, then the one that each stage writes
        for number, config in enumerate(configs):
            paths = (config.model_path, config.lr_codebook_path, config.hr_codebook_path)
            model_path, coarse_path, fine_path = (folder / path for path in paths)
            self.files += (model_path, coarse_path, fine_path)
            coarse, fine = Codebook.load(coarse_path), Codebook.load(fine_path)
            stage = Stage.load(model_path, coarse, fine)
            check_origin(model_path, stage.origin, decoder.origin)
            _check_guidance(str(model_path), stage, config)
            if stage.config.is_base != (number == 0):
                kind = "base" if stage.config.is_base else "cascade"
                raise UserError(f"{model_path}: is a {kind} stage; stage 0 must be a base stage and only stage 0")
            if number == 0:
                if coarse.counts.sum() == 0:
                    raise UserError(f"{coarse_path}: its units were never counted; finish its training or prune it")
                self.codebooks.append(coarse.to(device))
            elif self.codebooks[-1].fingerprint != coarse.fingerprint:
                problem = "is not the codebook that the stage before writes"
                raise UserError(f"{coarse_path}: {problem}; name the same file in both")
            self.codebooks.append(fine.to(device))
            self.stages.append(stage.to(device))
            make_ready(stage.transformer, dtype, compiled)
            if stage.config.labels:  # rounded, so that a run and its export write the same tokens
                stage.label.to(dtype).float()
        self.fingerprints = {"autoencoder": decoder.fingerprint}
        books = zip((CONDITION, *range(len(self.stages))), self.codebooks, strict=True)
        self.fingerprints |= {f"codebook {level}": codebook.fingerprint for level, codebook in books}
        self.fingerprints |= {f"stage {number}": stage.fingerprint for number, stage in enumerate(self.stages)}
        self.labels = self.stages[0].config.labels  # that the base stage has learned
        self.label_sets: LabelSets | None = None
        if self.labels:
            try:
                self.label_sets = LabelSets(self.stages[0].label_sets, self.labels, len(self.codebooks[0]))
            except ValueError as error:
                raise UserError(f"{folder / configs[0].model_path}: {error}; train it again") from None
        self.image_size = decoder.image_size(self.codebooks[0].fmap_shape)  # height and width
        self.length = sum(stage.config.fine.length for stage in self.stages)  # tokens of an image in all stages

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        batch_size: int = 25,
        compiled: bool = False,
    ) -> "Cascade":
        """Read the model in the folder of a run or in one that scripts.export wrote.

        `device` and `precision` are those of the scripts: "auto", "cuda", … and "auto", "fp32" or "bf16"; `compiled`
        uses torch.compile. Raises `UserError` naming the file that is missing, damaged, or of another model.
        """
        folder, place = RunFolder.open(Path(path)), choose_device(device)
        if precision not in PRECISIONS:
            raise UserError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: expected at least 1")
        if not folder.generation.is_file():
            advice = "give the folder of a finished run, or of an exported model"
            raise UserError(f"{path}: holds no {folder.generation.name}; {advice}")
        configs, dtype = load_generation_config(folder.generation), choose_dtype(place, precision)
        if isinstance(folder, ExportedFolder):
            folder.check_inside(configs)
        decoder = Autoencoder.load(folder.decoding.latest).to(place)
        return cls(configs, folder.path, decoder, place, dtype, batch_size, compiled)

    def check(self, request: Request) -> None:
        """Raise `UserError` naming the flag that this cascade cannot satisfy."""
        num_units = len(self.codebooks[0])
        for unit in (
            *request.conditions,
            *(unit for place in request.places for unit in (place.unit, place.following)),
        ):
            if unit not in range(num_units):
                raise UserError(f"unit {unit}: the condition codebook has units 0 to {num_units - 1}")
        for text in request.labels:
            parse_labels(text, self.labels)
        if request.from_stage not in range(len(self.stages)):
            raise UserError(f"stage {request.from_stage}: the stages are 0 to {len(self.stages) - 1}")
        if (request.from_stage or request.keep_rows) and not request.init_tokens:
            raise UserError("from_stage and keep_rows keep tokens of images: give init_tokens")
        rows = self.stages[0].config.fine.height
        if request.keep_rows not in range(rows + 1):
            raise UserError(f"{request.keep_rows} rows to keep: the base stage's grid, whose rows count, has {rows}")
        for number, (stage, config) in enumerate(zip(self.stages, request.sampling or self.configs, strict=True)):
            _check_guidance(f"stage {number}", stage, config)

    # --- The requests of the Python interface ---

    def sample(self, number: int = 1, *, conditions: Sequence[int] = (), **settings: Values) -> Pictures:
        """Generate images: a list of PIL images, or with `as_tensor` a tensor (number, 3, H, W) in [−1, 1].

        Image i takes entry i of `conditions`, units of the condition codebook, modulo their number, and so of `labels`:
        each entry is a label, or several as in "cat+night"; without entries they are drawn. The settings are `labels`,
        `seed`, 0 by default, `as_tensor`, and keys of `SamplingConfig`, such as temperature=0.8, or temperature=(1,
        0.6, 0.4) with a value for each stage. Raises `UserError` naming what this model cannot do.
        """
        return self._make(Request(conditions=conditions), number, **settings)

    def like(self, images: Images, number: int | None = None, **settings: Values) -> Pictures:
        """Generate images with the conditions of these, by default as many; see `tokens`, and `sample` for settings."""
        conditions = tuple(self.tokens(images)[0].flatten().tolist())
        return self._make(Request(conditions=conditions), number, **settings)

    def complete(self, images: Images, rows: int, number: int | None = None, **settings: Values) -> Pictures:
        """Keep the part of these images under the first `rows` rows of the base stage's grid, and write the rest."""
        return self._make(Request(init_tokens=self.tokens(images), keep_rows=rows), number, **settings)

    def detail(self, images: Images, stage: int, number: int | None = None, **settings: Values) -> Pictures:
        """Keep the tokens of these images that are coarser than those of `stage`, and write new ones from there on."""
        return self._make(Request(init_tokens=self.tokens(images), from_stage=stage), number, **settings)

    def walk(self, start: int | Picture, end: int | Picture, steps: int = 24, **settings: Values) -> Pictures:
        """Images on the way from a unit of the condition map to another, or between the units of two images."""
        return self._make(Request(places=self.way(start, end, steps), same_draws=True), steps, **settings)

    def way(self, start: int | Picture, end: int | Picture, steps: int) -> tuple[Place, ...]:
        units = [unit if isinstance(unit, Integral) else int(self.tokens(unit)[0][0]) for unit in (start, end)]
        self.check(Request(conditions=tuple(units)))
        return way(self.codebooks[0].coordinates, *units, steps)

    @torch.no_grad()
    def tokens(self, images: Images) -> tuple[Tensor, ...]:
        """Images, as `to_tensor` takes them → their tokens of the condition and of every stage, each (M, T) int64."""
        parts = []
        for batch in to_tensor(images, self.image_size).split(ENCODED):
            fmap = self.decoder.encode(batch.to(self.device))
            parts.append([codebook.find_bmu(fmap) for codebook in self.codebooks])
        return tuple(torch.cat(level) for level in zip(*parts, strict=True))

    @torch.no_grad()
    def decode(self, tokens: Tensor, level: int = -1) -> Tensor:
        """Tokens (N, T) of the condition (level 0), of a stage (from 1), by default the last → images (N, 3, H, W).

        These are in [−1, 1].
        """
        if level not in range(-len(self.codebooks), len(self.codebooks)):
            raise UserError(f"level {level}: 0 is the condition, {len(self.codebooks) - 1} the last stage")
        if tokens.dtype != torch.int64:
            raise UserError(f"tokens are {str(tokens.dtype).removeprefix('torch.')}, expected int64")
        return self.decoder.decode(self.codebooks[level].lookup(tokens)).clamp(-1, 1)

    def decode_all(self, tokens: Tensor, level: int = -1) -> Tensor:
        """As `decode`, batch by batch, onto the CPU in float32."""
        return torch.cat([self.decode(part, level).float().cpu() for part in tokens.split(self.batch_size)])

    def _make(
        self,
        request: Request,
        number: int | None,
        *,
        seed: int = 0,
        labels: str | Sequence[str] = (),
        as_tensor: bool = False,
        **sampling: Values,
    ) -> Pictures:
        number = len((request.init_tokens or [request.conditions])[0]) if number is None else number
        if number < 1:
            raise UserError(f"{number} pictures were asked for, expected at least 1")
        texts = (labels,) if isinstance(labels, str) else tuple(labels)
        changed = change_sampling(self.configs, **sampling)
        request = dataclasses.replace(request, seed=seed, labels=texts, sampling=changed)
        self.check(request)
        parts = [self.decode(tokens[-1]).float().cpu() for _, tokens, _ in self.batches(request, number, "images")]
        images = torch.cat(parts)
        return images if as_tensor else to_pil(images)

    # --- How it is done ---

    def conditions(self, request: Request, images: range) -> Tensor:
        """The condition token of each image, (N, 1): a given one, or drawn by its use in training or with labels."""
        if request.init_tokens and not (request.places or request.conditions):
            return _given(request, 0, images)
        units = []
        for image in images:
            if request.places:
                units.append(pick(request.places, image).nearest)
            elif request.conditions:
                units.append(pick(request.conditions, image))
            else:
                usage = self.codebooks[0].counts
                if self.label_sets is not None:
                    usage = self.label_sets.usage(self._asked(request, image))
                generator = image_generator(request.seed, -1, image)
                units.append(int(torch.multinomial(usage.cpu().double(), 1, generator=generator)))
        return torch.tensor(units, device=self.device)[:, None]

    def _asked(self, request: Request, image: int) -> LabelSet | None:
        text = pick(request.labels, image)
        return None if text is None else parse_labels(text, self.labels)

    def labels_of(self, request: Request, images: range) -> list[str | None]:
        """The labels of each image, asked for or drawn, as texts that ask for them.

        None if the base stage knows no labels, or writes nothing.
        """
        if self.label_sets is None or request.from_stage:
            return [None] * len(images)
        if request.labels:
            return [pick(request.labels, image) for image in images]
        sets = self._label_sets(request, images, self.conditions(request, images))
        return [label_text(labels, self.labels) for labels in sets]

    def _label_sets(self, request: Request, images: range, conditions: Tensor) -> list[LabelSet]:
        """The labels that are asked for, or of a training image with an image's condition (N, 1), drawn for each.

        All pictures of a walk have those of the first.
        """
        if self.label_sets is None:
            return [()] * len(images)
        if request.labels:
            return [self._asked(request, image) for image in images]
        units = conditions.flatten().tolist()
        if request.places:
            units = [request.places[0].nearest] * len(images)
        draws = [0] * len(images) if request.same_draws else images
        pairs = zip(units, draws, strict=True)
        return [self.label_sets.draw(unit, image_generator(request.seed, LABELS, image)) for unit, image in pairs]

    def _write(self, number: int, request: Request, images: range, coarse: Tensor, count: Count) -> Written:
        """The tokens (N, T) that a stage writes over the coarse tokens (N, S) of these images, and scores (N,)."""
        stage, config = self.stages[number], (request.sampling or self.configs)[number]
        fine, base, towards = stage.config.fine, self.stages[0].config.fine, None
        if number == 0:
            labels = self._label_sets(request, images, coarse)
            if request.places:
                places = [pick(request.places, image) for image in images]
                units = torch.tensor([(place.unit, place.following) for place in places], device=self.device)
                shares = torch.tensor([place.share for place in places], device=self.device)
                coarse, towards = units[:, :1], (units[:, 1:], shares)
            coarse = stage.with_labels(coarse, labels)
        rows = request.keep_rows * fine.height // base.height
        rows -= rows % stage.config.transformer.cell  # cells are written whole
        kept = _given(request, number + 1, images)[:, : rows * fine.width] if rows else None
        drawn = [0] * len(images) if request.same_draws else images
        uniform = uniform_draws(request.seed, number, drawn, fine.length, config.num_beam)
        return stage.sample(coarse, config, uniform, kept=kept, towards=towards, progress=lambda: count(1))

    def write_stages(self, request: Request, images: range, count: Count = lambda num: None) -> Iterator[Written]:
        """Yield the tokens (N, T) of the condition and of each stage for these images, each with its scores (N,).

        The condition and a stage that is skipped have no score (NaN). `count` is called with the number of new tokens.
        """
        no_scores = torch.full((len(images),), torch.nan)
        tokens = self.conditions(request, images)
        yield tokens, no_scores
        for number, stage in enumerate(self.stages):
            if number < request.from_stage:
                tokens, scores = _given(request, number + 1, images), no_scores
                count(stage.config.fine.length)
            else:
                tokens, scores = self._write(number, request, images, tokens, count)
            yield tokens, scores.cpu()

    def generate(self, request: Request, images: range, count: Count = lambda num: None) -> tuple[list[Tensor], Tensor]:
        """`write_stages` at once: tokens of the condition and of every stage, each (N, T), and scores (N, stages)."""
        tokens, scores = zip(*self.write_stages(request, images, count), strict=True)
        return list(tokens), torch.stack(scores[1:], dim=1)

    def batches(
        self, request: Request, number: int, name: str, starts: Sequence[int] | None = None
    ) -> Iterator[tuple[int, list[Tensor], Tensor]]:
        """Generate this process's share of `number` images: yield the first index, tokens and scores of each batch.

        `starts` are the first indices of the batches that are still to be done; all if none are given.
        """
        starts = my_items(range(0, number, self.batch_size) if starts is None else starts)
        with progress(total=self.length * len(starts), unit="token", desc=name) as bar:
            for start in starts:  # the last batch in full as well, so the number of images never changes a picture
                tokens, scores = self.generate(request, range(start, start + self.batch_size), bar.update)
                yield start, [part[: number - start] for part in tokens], scores[: number - start]

    def filling_in(self, tokens: list[Tensor], steps: int) -> Iterator[Tensor]:
        """Images (N, 3, H, W): the condition's, then at most `steps` of each stage as it writes over the one before."""
        fmaps = [book.lookup(part) for book, part in zip(self.codebooks, tokens, strict=True)]
        yield self.decoder.decode(fmaps[0])
        for stage, (coarse, fine) in zip(self.stages, pairwise(fmaps), strict=True):
            grid = stage.config.fine
            number = stage.order.argsort().view(grid.height, grid.width)  # of each token, when it is written
            for axis, cells in enumerate(fine.shape[2:]):  # of each cell of the feature map, that of the token over it
                number = number.repeat_interleave(cells // number.shape[axis], axis)
            step = -(-grid.length // steps)
            for written in range(step, grid.length + step, step):
                yield self.decoder.decode(torch.where(number < written, fine, coarse))


def _given(request: Request, level: int, images: range) -> Tensor:
    tokens = request.init_tokens[level]
    return tokens[[image % len(tokens) for image in images]]


def _check_guidance(where: str, stage: Stage, config: SamplingConfig) -> None:
    """Raise `UserError`, which begins with `where`, if a stage that was trained without dropout is to be guided."""
    if config.is_guided and not stage.config.transformer.condition_dropout:
        problem = f"'guidance_scale' is {config.guidance_scale}, but the stage was trained without 'condition_dropout'"
        raise UserError(f"{where}: {problem}; train it with that, or leave the scale at 1")
