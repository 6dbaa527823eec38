"""A stage: a transformer between two codebooks, and the layout of its tokens, which only this module knows.

The fine grid is written in raster order; its length is fixed, so there is no end token. The decoder's inputs are the
fine tokens shifted by one. The first input is the condition token in a base stage and a learned start token in a
cascade stage; both are numbered after the fine units. If a base stage uses labels, the label set of an image follows
the condition in its coarse tokens, and the sum of the vectors of these labels is added to that of the condition.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from models.codebook import Codebook
from models.decoding import CachedDecoder
from models.labels import MOST_SETS, LabelSet, count_sets, listed
from models.transformer import Grid, Transformer, TransformerConfig
from utils.beam_search import search
from utils.core.config import build_config
from utils.core.files import UserError
from utils.core.provenance import Origin, check_origin
from utils.data.split import Learned
from utils.runs.checkpoint import build_model, load_checkpoint
from utils.runtime.draws import draw
from utils.sampling import SamplingConfig

KIND = "transformer"
NEAR = 8  # nearest units by which `condition_noise` may replace a coarse token
HEAD_WIDTHS = (1, 1 / 2, 1 / 4, 1 / 8)  # of the smooth features of a head
LABEL_DROPOUT = 0.1  # share of images whose labels are dropped in training, so that generation works without any


@dataclass(frozen=True)
class StageConfig:
    """The config in a stage's checkpoint: its transformer, and the grids of tokens that it reads and writes."""

    transformer: TransformerConfig
    coarse: Grid
    fine: Grid
    is_base: bool
    labels: tuple[str, ...] = ()  # names, if a base stage uses them
    most_labels: int | None = None  # labels of one image
    label_sets: int | None = None  # rows of the table that generation draws from

    def __post_init__(self) -> None:
        for key, most in (("most_labels", len(self.labels)), ("label_sets", MOST_SETS)):
            if not 0 <= (getattr(self, key) or 0) <= most:
                raise ValueError(f"{key!r} is {getattr(self, key)}, expected 0 to {most}")
        if self.transformer.use_labels and not self.is_base:
            raise UserError("'use_labels' is for the base stage, whose tokens pass the labels on; leave the key out")
        if self.is_base and self.transformer.cell > 1:
            raise UserError("'cell' is for cascade stages, which read a coarse token for each; leave the key out")
        if (cell := self.transformer.cell) > 1:
            expected = Grid(self.coarse.height * cell, self.coarse.width * cell, self.fine.num_units)
            if self.fine != expected:
                grids = f"from {self.coarse.shown} tokens the stage writes {expected.shown}, not {self.fine.shown}"
                raise UserError(f"'cell' is {cell}: {grids}; change it, or the patches of a codebook")

    @classmethod
    def between(
        cls,
        transformer: TransformerConfig,
        coarse: Codebook,
        fine: Codebook,
        coarse_path: Path,
        is_base: bool,
        labels: tuple[str, ...] = (),
        most_labels: int | None = None,
        label_sets: int | None = None,
    ) -> "StageConfig":
        """The config of a stage between two codebooks; a base stage needs a `coarse` with one patch per feature map."""
        grids = [Grid(*codebook.config.grid, len(codebook)) for codebook in (coarse, fine)]
        if is_base and grids[0].length != 1:
            patches = f"cuts a feature map into {grids[0].length} patches, but the base stage starts from one token"
            advice = "give the condition codebook, whose patch is the whole map, or leave out --train-base-model"
            raise UserError(f"{coarse_path}: {patches}; {advice}")
        return cls(transformer, *grids, is_base, labels, most_labels, label_sets)


class Stage(nn.Module):
    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.config = config
        # Of the checkpoint that it was loaded from:
        self.origin: Origin = {}  # the models that it was trained with
        self.fingerprint: str | None = None
        self.learned = Learned()
        self.near: torch.Tensor | None = None  # the `near_units` of the coarse codebook, for `condition_noise`
        conditions = config.coarse.num_units + (config.transformer.condition_dropout > 0)  # the last is null
        firsts, source = (conditions, None) if config.is_base else (1, config.coarse)
        inputs = config.fine.num_units + firsts
        self.transformer = Transformer(config.transformer, config.fine, inputs, source, conditions)
        cell, fine = config.transformer.cell, config.fine
        number = torch.arange(fine.length).view(-1, cell, fine.width // cell, cell)
        # order[i] is the number in raster order of the token that is written i-th: (T,)
        self.register_buffer("order", number.transpose(1, 2).flatten(), persistent=False)
        if config.labels:
            self.label = nn.Embedding(len(config.labels), config.transformer.in_dim)
            # The sum of the vectors of an image is about as large as any other embedding.
            nn.init.normal_(self.label.weight, std=0.5 * max(1, config.most_labels or 0) ** -0.5)
            # The table of `models.labels.count_sets`, whose last rows may be unused: zero.
            table = torch.zeros(config.label_sets or 0, 2 + (config.most_labels or 0), dtype=torch.int64)
            self.register_buffer("label_sets", table)

    @classmethod
    def load(cls, path: Path, coarse: Codebook, fine: Codebook) -> "Stage":
        """Read a stage from a checkpoint and check that it was trained between these codebooks."""
        content = load_checkpoint(path, KIND)
        origin = content["trained_from"]
        check_origin(path, origin, {"lr_codebook": coarse.fingerprint, "hr_codebook": fine.fingerprint})
        config = build_config(StageConfig, content["config"], str(path))
        stage = build_model(lambda: cls(config), content, path)
        stage.origin, stage.fingerprint, stage.learned = origin, content["fingerprint"], Learned.saved(content)
        return stage.eval()

    @torch.no_grad()
    def init_embeddings(self, coarse: Codebook, fine: Codebook) -> None:
        """Initialise token embeddings so that they are as close to each other as their units; prepare the noise."""
        if self.config.transformer.condition_noise:
            self.near = near_units(coarse)
        embed = self.transformer.embed.token.weight
        source = embed[len(fine) :] if self.config.is_base else self.transformer.source_embed.token.weight
        for vectors, codebook in ((embed, fine), (source, coarse)):
            vectors[: len(codebook)] = smooth_features(codebook.units, vectors.shape[1]) * vectors.std()
        if number := self.config.transformer.head_features:
            parts, every = [smooth_features(fine.units, number, width) for width in HEAD_WIDTHS], len(HEAD_WIDTHS)
            features = torch.cat([part[:, first::every] for first, part in enumerate(parts)], dim=1)
            features -= features.mean(0)
            self.transformer.head.features.copy_(features / features.std().clamp(min=1e-4))

    def disturb(self, coarse: torch.Tensor) -> torch.Tensor:
        """Coarse tokens (B, S) with noise: some replaced by a near unit, some images without any, or without labels.

        Noise makes a stage tolerate errors of the stage before it (Ho et al. 2021, "Cascaded diffusion models"); images
        without a condition are needed for guidance (Ho and Salimans 2022).
        """
        config, device = self.config.transformer, coarse.device
        coarse, labels = coarse.tensor_split([self.config.coarse.length], dim=1)
        if config.condition_noise:
            slips = uniform(coarse) < config.condition_noise
            length, near = coarse.shape[1], self.near.shape[1]
            choice = draw(lambda number: torch.randint(near, (number, length), device=device), len(coarse))
            coarse = torch.where(slips, self.near[coarse, choice], coarse)
        if self.config.labels:
            dropped = uniform(coarse[:, :1]) < LABEL_DROPOUT
            coarse = torch.cat((coarse, labels.masked_fill(dropped, len(self.config.labels))), dim=1)
        if config.condition_dropout:
            dropped = uniform(coarse[:, :1]) < config.condition_dropout
            coarse = torch.where(dropped, self.without_condition(coarse), coarse)
        return coarse

    def without_condition(self, coarse: torch.Tensor) -> torch.Tensor:
        """Null coarse tokens for the same number of images: neither condition nor labels."""
        nothing = torch.full_like(coarse, self.config.coarse.num_units)
        nothing[:, self.config.coarse.length :] = len(self.config.labels)
        return nothing

    def with_labels(self, coarse: torch.Tensor, sets: list[LabelSet]) -> torch.Tensor:
        """Condition tokens (N, 1), followed by the label set of each image if the stage uses labels: (N, 1 + L)."""
        if not self.config.labels:
            return coarse
        longest, none = max(map(len, sets)), len(self.config.labels)
        rows = [[*labels, *[none] * (longest - len(labels))] for labels in sets]
        return torch.cat((coarse, torch.tensor(rows, dtype=torch.int64, device=coarse.device)), dim=1)

    def start(self, coarse: torch.Tensor) -> torch.Tensor | None:
        """The sum of the vectors of each image's labels, (B, dim), which is added to the embedding of the first input.

        So an image without labels adds nothing.
        """
        if not self.config.labels:
            return None
        labels, none = coarse[:, self.config.coarse.length :], len(self.config.labels)
        return (self.label(labels.clamp(max=none - 1)) * (labels < none)[..., None]).sum(1)

    def shift(self, coarse: torch.Tensor, other: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """A share (B,) of the way from the embeddings of conditions (B, 1 …) to those of others (B, 1): (B, dim)."""
        embed = self.transformer.embed.token
        return share[:, None].to(embed.weight) * (embed(self.first_input(other)) - embed(self.first_input(coarse)))

    def count_labels(self, coarse: torch.Tensor) -> None:
        """Count how often training images have each label set and condition, from their coarse tokens (N, 1 + L)."""
        table = count_sets(coarse, len(self.label_sets))
        self.label_sets.zero_()[: len(table)] = table

    def first_input(self, coarse: torch.Tensor) -> torch.Tensor:
        """Coarse tokens (B, S) → the first input of the decoder, (B,)."""
        behind = self.config.fine.num_units
        return coarse[:, 0] + behind if self.config.is_base else torch.full_like(coarse[:, 0], behind)

    def source(self, coarse: torch.Tensor) -> torch.Tensor | None:
        return None if self.config.is_base else coarse

    def inputs(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Coarse tokens (B, S) and fine ones (B, T), as they are written → decoder inputs (B, T), which lag by one."""
        return torch.cat((self.first_input(coarse)[:, None], fine[:, :-1]), dim=1)

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> dict[str, torch.Tensor]:
        """Coarse tokens (B, S) and fine ones (B, T) → means over all tokens: `loss` in nats, `bits`, and `accuracy`."""
        if self.training:
            coarse = self.disturb(coarse)
        targets = fine[:, self.order]
        inputs = self.inputs(coarse, targets)
        logits = self.transformer(inputs, self.source(coarse), self.start(coarse)).flatten(0, 1)
        targets = targets.flatten()
        loss = F.cross_entropy(logits.float(), targets)
        accuracy = (logits.argmax(-1) == targets).float().mean()
        return {"loss": loss, "bits": loss / math.log(2), "accuracy": accuracy}

    @torch.no_grad()
    def sample(
        self,
        coarse: torch.Tensor,
        config: SamplingConfig,
        uniform: torch.Tensor,
        *,
        kept: torch.Tensor | None = None,
        towards: tuple[torch.Tensor, torch.Tensor] | None = None,
        progress: Callable[[], object] = lambda: None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Coarse tokens (N, S) → fine tokens (N, T) and their scores (N,); `uniform` (N, T, num_beam) are the draws.

        `kept` (N, P) are the given first tokens of each image, whole rows of cells. `towards`, for a base stage, are
        other conditions (N, 1) and shares (N,) of the way to their vectors. `progress` is called after each token.
        Under guidance each image runs twice in the batch, with and without its condition.
        """
        shift = None if towards is None else self.shift(coarse, *towards)
        if config.is_guided:
            coarse = torch.cat((coarse, self.without_condition(coarse)))
            shift = None if shift is None else torch.cat((shift, torch.zeros_like(shift)))
        start = self.start(coarse)
        if shift is not None:
            start = shift if start is None else start + shift
        decoder = CachedDecoder(self.transformer, len(coarse) * config.num_beam, self.source(coarse))

        def next_logits(inputs: torch.Tensor | None) -> torch.Tensor:
            if inputs is None:
                inputs = self.first_input(coarse).repeat_interleave(config.num_beam)
                joined = None if start is None else start.repeat_interleave(config.num_beam, dim=0)
                logits = decoder.next_logits(inputs, joined)
            else:
                logits = decoder.next_logits(torch.cat((inputs, inputs)) if config.is_guided else inputs)
            progress()
            return logits

        def reorder(rows: torch.Tensor) -> None:
            decoder.reorder(torch.cat((rows, rows + len(rows))) if config.is_guided else rows)

        if kept is not None:
            kept = kept[:, self.order[: kept.shape[1]]]
        written, scores = search(next_logits, reorder, config, uniform.to(coarse.device), kept)
        # Copies, outside the inference mode, so that they may be changed.
        return torch.empty_like(written).index_copy_(1, self.order, written), scores.clone()


def check_labels(path: Path, config: StageConfig) -> None:
    """Raise `UserError` if the stage in `path`, from which training is to start, was trained with other labels."""
    known, given = load_checkpoint(path, KIND, memory_map=True)["config"].get("labels", ()), config.labels
    if tuple(known) != given:
        names = [listed(labels) or "none" for labels in (known, given)]
        advice = "give data with the same labels, or train without --model-path"
        raise UserError(f"{path}: was trained with the labels {names[0]}, this data set has {names[1]}; {advice}")


def uniform(like: torch.Tensor) -> torch.Tensor:
    """Uniform random numbers in [0, 1) of the shape of `like` (B, …)."""
    return draw(lambda number: torch.rand((number, *like.shape[1:]), device=like.device), len(like))


def smooth_features(units: torch.Tensor, number: int, width: float = 1.0) -> torch.Tensor:
    """Units (K, D) → features (K, number) with a mean square of 1.

    Random Fourier features (Rahimi and Recht 2007): the mean product of those of two units is a Gaussian of their
    distance, whose standard deviation is `width` times that of units.
    """
    scaled = units / (width * units.var(0, correction=0).mean().sqrt().clamp(min=1e-12))
    projection = torch.randn(units.shape[1], number).to(units) / units.shape[1] ** 0.5
    shift = 2 * math.pi * torch.rand(number).to(units)
    return (scaled @ projection + shift).cos() * 2**0.5


def near_units(codebook: Codebook) -> torch.Tensor:
    """The `NEAR` nearest units of each unit, (K, NEAR); in a tiny codebook all units."""
    nearest = codebook.nearest(codebook.units, min(1 + NEAR, len(codebook)))[1]
    return nearest[:, -NEAR:]  # without the unit itself
