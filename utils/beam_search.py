"""Sampling and beam search over a next-logits function and a cache. Hypotheses are rows of one batch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from utils.config import check_at_least


@dataclass(frozen=True)
class SearchConfig:
    """How tokens are chosen.

    `num_beam` hypotheses an image are each extended by `beam_width` sampled tokens; then the `keep_beam` of highest
    score survive and are multiplied again. `num_beam` 1 is plain sampling; `beam_width` 1 with `keep_beam` equal to
    `num_beam` is classic beam search, the top continuations of all survivors, without sampling.
    """

    num_beam: int = 1
    beam_width: int = 1
    keep_beam: int = 1
    temperature: float = 1.0
    top_k: int | None = None  # sample among so many most likely tokens
    top_p: float | None = None  # sample among the fewest tokens that hold this share of probability
    guidance_scale: float = 1.0  # how far logits go from those without a condition to those with it, and past them

    def __post_init__(self) -> None:
        check_at_least(self, 1, "num_beam", "beam_width", "keep_beam", "top_k")
        if self.keep_beam > self.num_beam:
            raise ValueError(f"'keep_beam' is {self.keep_beam}, expected at most 'num_beam' {self.num_beam}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"'temperature' is {self.temperature}, expected a number above 0")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"'top_p' is {self.top_p}, expected a number above 0 and at most 1")
        check_at_least(self, 0, "guidance_scale")
        if self.is_classic and self.is_guided:
            raise ValueError(
                f"'guidance_scale' is {self.guidance_scale}, expected 1: classic beam search ('beam_width' 1, "
                "'keep_beam' equal to 'num_beam') draws nothing that could be guided"
            )

    @property
    def num_prefix(self) -> int:
        """Hypotheses of an image right after a comparison, or beams where those do not share them evenly."""
        return self.num_beam if self.num_beam % self.keep_beam else self.keep_beam

    @property
    def is_classic(self) -> bool:
        """Whether this is classic beam search, which draws nothing."""
        return self.num_beam > 1 and self.beam_width == 1 and self.keep_beam == self.num_beam

    @property
    def is_guided(self) -> bool:
        """Whether logits without a condition are needed as well."""
        return self.guidance_scale != 1


def uniform_draws(seed: int, stage: int, images: range, length: int, num_beam: int) -> torch.Tensor:
    """Uniform numbers in [0, 1) for the tokens of some images, (N, length, num_beam).

    Each is a function of (seed, image, stage, token, beam), whatever other images there are.
    """
    draws = [torch.rand(length, num_beam, generator=image_generator(seed, stage, image)) for image in images]
    return torch.stack(draws)


def image_generator(seed: int, stage: int, image: int) -> torch.Generator:
    """The generator of what is random about one image in one stage."""
    mixed = np.random.SeedSequence([abs(seed), seed < 0, stage + 1, image]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


def filter_logits(logits: torch.Tensor, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """Logits (R, K) with those outside the top k, or outside the nucleus (Holtzman et al. 2020), at −inf."""
    if top_k is not None and top_k < logits.shape[-1]:
        top = logits.topk(top_k)
        logits = torch.full_like(logits, -torch.inf).scatter(1, top.indices, top.values)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(descending=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability  # what more likely tokens hold already
        outside = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def sample(logits: torch.Tensor, uniform: torch.Tensor, config: SearchConfig) -> torch.Tensor:
    """Draw a token a row from logits (R, K) by inverting the distribution function at `uniform` (R,)."""
    filtered = filter_logits(logits / config.temperature, config.top_k, config.top_p)
    heights = filtered.softmax(-1).cumsum(-1)
    # Rounding may put the drawn height on the last step, past which only impossible tokens lie.
    total = heights[:, -1:]
    drawn = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(heights, drawn, right=True).squeeze(1)


def split_guidance(logits: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2R, K), those without a condition last → with it and guided (Ho and Salimans 2022), each (R, K).

    At scale 1 there are none without: logits (R, K) are both.
    """
    if scale == 1:
        return logits, logits
    conditional, free = logits.chunk(2)
    return conditional, torch.lerp(free, conditional, scale)


@torch.no_grad()
def search(
    next_logits: Callable[[torch.Tensor], torch.Tensor],
    reorder: Callable[[torch.Tensor], None],
    first: torch.Tensor,
    config: SearchConfig,
    uniform: torch.Tensor,
    kept: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write T tokens for each of N images.

    `next_logits` takes the next input of each row (N·num_beam,) and returns logits (N·num_beam, K), under guidance
    (2·N·num_beam, K), those without a condition last; `reorder` lets row i go on from what row `rows[i]` has seen.
    `first` (N,) is each image's first input, `uniform` (N, T, num_beam) the draws, `kept` (N, P) its first tokens where
    they are given. Returns tokens (N, T) and their score (N,): the sum of log-probabilities, those of kept tokens
    included, at temperature 1, before guidance, top-k and top-p.
    """
    images, length, beams = uniform.shape
    inputs = first.repeat_interleave(beams)
    tokens = first.new_zeros(images * beams, length)
    score = torch.zeros(images, beams, device=first.device)
    own_rows = torch.arange(images, device=first.device)[:, None] * beams
    copies = torch.arange(beams, device=first.device) * config.keep_beam // beams  # the survivor that each goes on from
    is_compared = beams > 1 and not config.is_classic  # in blocks; a classic search compares all the time
    num_kept = 0 if kept is None else kept.shape[1]
    for position in range(length):
        is_last, is_kept, parent = position == length - 1, position < num_kept, None
        logits, guided = split_guidance(next_logits(inputs).float(), config.guidance_scale)
        log_probability = logits.log_softmax(-1)
        if config.is_classic and not is_kept:
            parent, inputs, score = _best_continuations(score, log_probability, is_start=position == num_kept)
        else:
            if is_kept:
                inputs = kept[:, position].repeat_interleave(beams)
            else:
                inputs = sample(guided, uniform[:, position].flatten(), config)
            score = score + log_probability.gather(1, inputs[:, None]).view(images, beams)
            if is_compared and (is_last or (position + 1) % config.beam_width == 0):
                parent = score.topk(config.keep_beam).indices[:, copies]
                score = score.gather(1, parent)
                inputs = inputs.view(images, beams).gather(1, parent).flatten()
        if parent is not None:
            rows = (own_rows + parent).flatten()
            tokens = tokens[rows]
            if not is_last:
                reorder(rows)
        tokens[:, position] = inputs
    return tokens.view(images, beams, length)[:, 0], score[:, 0]


def _best_continuations(
    score: torch.Tensor, log_probability: torch.Tensor, is_start: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `num_beam` best of all one-token continuations: parents (N, beams), tokens (N·beams,), scores (N, beams)."""
    images, beams = score.shape
    total = score[:, :, None] + log_probability.view(images, beams, -1)  # (N, beams, K)
    if is_start:  # all beams are the same hypothesis still
        total[:, 1:] = -torch.inf
    best = total.flatten(1).topk(beams)
    num_units = total.shape[-1]
    return best.indices // num_units, (best.indices % num_units).flatten(), best.values
