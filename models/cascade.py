"""A stage is a transformer between two codebooks; the cascade is stages whose codebooks meet.

This file alone knows the token layout. The fine grid is written in raster order, at fixed length, so there is no end
token. The decoder's inputs are the fine tokens shifted by one; in front of them stands, in a base stage, the
condition token, numbered behind the fine units, and in a cascade stage the learned start vector, numbered likewise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from models.autoencoder import Autoencoder
from models.codebook import Codebook
from models.transformer import CachedDecoder, Grid, Transformer, TransformerConfig
from utils.beam_search import SearchConfig, image_generator, search, uniform_draws
from utils.checkpoint import check_origin, load_checkpoint, load_weights
from utils.cli import log
from utils.config import build_config, read_json
from utils.files import UserError

KIND = "transformer"
NEAR = 8  # units that a coarse token may slip to under `condition_noise`


@dataclass(frozen=True)
class StageConfig:
    """What a stage's checkpoint keeps: the transformer's keys, and the grids of tokens it reads and writes."""

    transformer: TransformerConfig
    coarse: Grid
    fine: Grid
    is_base: bool

    @classmethod
    def between(
        cls, transformer: TransformerConfig, coarse: Codebook, fine: Codebook, coarse_path: Path, is_base: bool
    ) -> "StageConfig":
        """The config of a stage between two codebooks; a base stage's `coarse` has one patch a map."""
        grids = [Grid(*codebook.config.grid, len(codebook)) for codebook in (coarse, fine)]
        if is_base and grids[0].length != 1:
            raise UserError(
                f"{coarse_path}: cuts a feature map into {grids[0].length} patches, but the base stage starts from one "
                "token; give the condition codebook, whose patch is the whole map, or leave out --train-base-model"
            )
        return cls(transformer, *grids, is_base)


class Stage(nn.Module):
    """A transformer and the layout of its tokens."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder: str | None = None  # fingerprint of what made its data, once loaded from a checkpoint
        self.near: torch.Tensor | None = None  # the `near_units` of the coarse codebook, where noise wants them
        conditions = config.coarse.num_units + (config.transformer.condition_dropout > 0)  # the null is the last
        firsts, source = (conditions, None) if config.is_base else (1, config.coarse)
        inputs = config.fine.num_units + firsts
        self.transformer = Transformer(config.transformer, config.fine, inputs, source, conditions)

    @classmethod
    def load(cls, path: Path, coarse: Codebook, fine: Codebook) -> "Stage":
        """Read a stage from a checkpoint and check that it was trained between these codebooks."""
        content = load_checkpoint(path, KIND)
        trained_from = content["trained_from"]
        check_origin(path, "low-resolution codebook", trained_from.get("lr_codebook"), coarse.fingerprint)
        check_origin(path, "high-resolution codebook", trained_from.get("hr_codebook"), fine.fingerprint)
        stage = cls(build_config(StageConfig, content["config"], str(path)))
        load_weights(stage, content, path)
        stage.autoencoder = trained_from.get("autoencoder")
        return stage.eval()

    def disturb(self, coarse: torch.Tensor) -> torch.Tensor:
        """Coarse tokens (B, S) as training sees them: a few slipped to a near unit, a few images without any.

        So a stage forgives the slips of the one before it (Ho et al. 2021, "Cascaded diffusion models"), and learns
        what there is without a condition, which guidance needs (Ho and Salimans 2022).
        """
        config = self.config.transformer
        if config.condition_noise:
            assert self.near is not None, "noise needs the near units of the coarse codebook"
            slips = torch.rand(coarse.shape, device=coarse.device) < config.condition_noise
            choice = torch.randint(self.near.shape[1], coarse.shape, device=coarse.device)
            coarse = torch.where(slips, self.near[coarse, choice], coarse)
        if config.condition_dropout:
            dropped = torch.rand(len(coarse), 1, device=coarse.device) < config.condition_dropout
            coarse = coarse.masked_fill(dropped, self.config.coarse.num_units)
        return coarse

    def first_input(self, coarse: torch.Tensor) -> torch.Tensor:
        """Coarse tokens (B, S) → the first input of the decoder, (B,)."""
        behind = self.config.fine.num_units
        return coarse[:, 0] + behind if self.config.is_base else torch.full_like(coarse[:, 0], behind)

    def source(self, coarse: torch.Tensor) -> torch.Tensor | None:
        """What the encoder reads: the coarse tokens, or nothing in a base stage."""
        return None if self.config.is_base else coarse

    def inputs_and_targets(self, coarse: torch.Tensor, fine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Coarse tokens (B, S) and fine tokens (B, T) → decoder inputs and targets, each (B, T)."""
        return torch.cat((self.first_input(coarse)[:, None], fine[:, :-1]), dim=1), fine

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> dict[str, torch.Tensor]:
        """Coarse tokens (B, S) and fine tokens (B, T) → means over all tokens.

        `loss` in nats, `bits`, and `accuracy`: the share of tokens that the model held for the likeliest.
        """
        if self.training:
            coarse = self.disturb(coarse)
        inputs, targets = self.inputs_and_targets(coarse, fine)
        logits = self.transformer(inputs, self.source(coarse)).flatten(0, 1)
        targets = targets.flatten()
        loss = F.cross_entropy(logits.float(), targets)
        accuracy = (logits.argmax(-1) == targets).float().mean()
        return {"loss": loss, "bits": loss / math.log(2), "accuracy": accuracy}

    @torch.no_grad()
    def sample(
        self,
        coarse: torch.Tensor,
        config: SearchConfig,
        uniform: torch.Tensor,
        progress: Callable[[], object] = lambda: None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Coarse tokens (N, S) → fine tokens (N, T) and their scores (N,); `uniform` (N, T, num_beam) are the draws.

        `progress` is called after each position.
        """
        decoder = CachedDecoder(self.transformer, self.source(coarse))

        def next_logits(inputs: torch.Tensor) -> torch.Tensor:
            logits = decoder.next_logits(inputs)
            progress()
            return logits

        return search(next_logits, decoder.reorder, self.first_input(coarse), config, uniform.to(coarse.device))


def near_units(codebook: Codebook) -> torch.Tensor:
    """Of each unit the `NEAR` ones nearest to it, (K, NEAR); of a tiny codebook all units."""
    nearest = codebook.nearest(codebook.units, min(1 + NEAR, len(codebook)))[1]
    return nearest[:, -NEAR:]  # without the unit itself


def bits_before(coarse: Codebook, previous: Path | None, *, is_base: bool) -> float | None:
    """Bits that an image has cost before a stage that reads `coarse`; None where they cannot be told.

    Of a base stage that is the entropy of the conditions' use; of a cascade stage it is what the checkpoint `previous`,
    of the stage before, was measured at on held-out images. Raises `UserError` where that wrote with another codebook.
    """
    if is_base:
        shares = coarse.counts / coarse.counts.sum()
        return float(torch.special.entr(shares).sum()) / math.log(2) if coarse.counts.sum() else None
    if previous is None:
        return None
    content = load_checkpoint(previous, KIND, memory_map=True)
    written = content["trained_from"].get("hr_codebook")
    check_origin(previous, "low-resolution codebook", written, coarse.fingerprint)
    bits = (content.get("validation") or {}).get("image_bits")
    if bits is None:
        log.warning("%s: was not measured; the bits of an image cannot be added up", previous)
    return bits


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(SearchConfig):
    """The JSON keys of one stage of a generation; paths are relative to the JSON file."""

    model_path: str
    lr_codebook_path: str
    hr_codebook_path: str


def load_generation_config(path: Path) -> list[GenerationConfig]:
    """The stages of a generation config, whose keys are "0", "1", … in the order of the cascade."""
    content = read_json(path)
    if not content:
        raise UserError(f'{path}: holds no stage; expected keys "0", "1", …')
    for key in content:
        if key not in map(str, range(len(content))):
            raise UserError(f'{path}: unknown key {key!r}; expected stages "0" to "{len(content) - 1}"')
    return [build_config(GenerationConfig, content[str(i)], f"{path}: stage {i}") for i in range(len(content))]


def check_meeting(path: Path, written: Codebook, read: Codebook) -> None:
    """Refuse `path`, the codebook that a stage reads, when the stage before it writes with another one."""
    if written.fingerprint != read.fingerprint:
        raise UserError(f"{path}: is not the codebook that the stage before writes with; name the same file in both")


class Cascade:
    """The stages of a generation, loaded and checked to belong together and to the decoder."""

    def __init__(self, config_path: Path, decoder: Autoencoder, device: torch.device) -> None:
        self.device = device
        self.searches = load_generation_config(config_path)
        self.stages: list[Stage] = []
        self.codebooks: list[Codebook] = []  # the condition codebook, then what each stage writes with
        for number, config in enumerate(self.searches):
            paths = (config.model_path, config.lr_codebook_path, config.hr_codebook_path)
            model_path, coarse_path, fine_path = (config_path.parent / path for path in paths)
            coarse, fine = Codebook.load(coarse_path), Codebook.load(fine_path)
            stage = Stage.load(model_path, coarse, fine)
            check_origin(model_path, "autoencoder", stage.autoencoder, decoder.fingerprint)
            if stage.config.is_base != (number == 0):
                kind = "base" if stage.config.is_base else "cascade"
                raise UserError(f"{model_path}: is a {kind} stage; stage 0 must be a base stage and only stage 0")
            if number == 0:
                if coarse.counts.sum() == 0:
                    raise UserError(f"{coarse_path}: its units were never counted; finish its training or prune it")
                self.codebooks.append(coarse.to(device))
            check_meeting(coarse_path, self.codebooks[-1], coarse)
            self.codebooks.append(fine.to(device))
            self.stages.append(stage.to(device))

    def draw_conditions(self, seed: int, images: range) -> torch.Tensor:
        """A condition token for each image, (N, 1), drawn in proportion to how often each unit was used."""
        counts = self.codebooks[0].counts.cpu().double()
        draws = [torch.multinomial(counts, 1, generator=image_generator(seed, -1, image)) for image in images]
        return torch.stack(draws).to(self.device)

    @property
    def length(self) -> int:
        """Tokens that the stages write for an image."""
        return sum(stage.config.fine.length for stage in self.stages)

    def generate(self, seed: int, images: range, progress: Callable[[], object] = lambda: None) -> list[torch.Tensor]:
        """Tokens of the condition and of every stage for these images: a list of (N, T).

        `progress` is called after each token position.
        """
        tokens = [self.draw_conditions(seed, images)]
        for number, (stage, config) in enumerate(zip(self.stages, self.searches, strict=True)):
            uniform = uniform_draws(seed, number, images, stage.config.fine.length, config.num_beam)
            tokens.append(stage.sample(tokens[-1], config, uniform, progress)[0])
        return tokens
