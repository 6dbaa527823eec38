"""Sampling: how a token is drawn from logits, and the random numbers that are used."""

from dataclasses import dataclass

import numpy as np
import torch

from utils.core.options import check_ranges, option


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen.

    Each of `num_beam` hypotheses per image is extended by `beam_width` sampled tokens; then the `keep_beam` with the
    highest scores survive and are duplicated. `num_beam` 1 is plain sampling; `beam_width` 1 with `keep_beam` equal to
    `num_beam` is classic beam search: the top continuations of all survivors, without sampling.
    """

    num_beam: int = option("hypotheses per image; 1 is plain sampling", 1, low=1, high=1024)
    beam_width: int = option("tokens by which hypotheses are extended between comparisons", 1, low=1, high=1024)
    keep_beam: int = option("surviving hypotheses; all of them with `beam_width` 1 is classic beam search", 1, low=1)
    temperature: float = option("sampling temperature: below 1 safer, above 1 more varied", 1.0, low=1e-4)
    top_k: int | None = option("sample from this many most likely tokens", None, unset="all", low=1)
    top_p: float | None = option(
        "sample from the most likely tokens with this total probability", None, unset="all", above=0, high=1
    )
    guidance_scale: float = option(
        "above 1 closer to the condition; doubles the time and needs a stage trained with condition_dropout", 1.0, low=0
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.keep_beam > self.num_beam:
            raise ValueError(f"'keep_beam' is {self.keep_beam}, expected at most 'num_beam' {self.num_beam}")
        if self.is_classic and self.is_guided:
            raise ValueError(
                f"'guidance_scale' is {self.guidance_scale}, expected 1: classic beam search ('beam_width' 1, "
                "'keep_beam' equal to 'num_beam') draws nothing that could be guided"
            )

    @property
    def is_classic(self) -> bool:
        return self.num_beam > 1 and self.beam_width == 1 and self.keep_beam == self.num_beam

    @property
    def is_guided(self) -> bool:
        """Whether logits without a condition are needed as well."""
        return self.guidance_scale != 1


def uniform_draws(seed: int, stage: int, images: range, length: int, num_beam: int) -> torch.Tensor:
    """Uniform numbers in [0, 1) for the tokens of some images, (N, length, num_beam).

    Each is a function of (seed, image, stage, token, beam, num_beam) and does not depend on the other images. Another
    `num_beam` changes all of them, also those of the first beam.
    """
    draws = [torch.rand(length, num_beam, generator=image_generator(seed, stage, image)) for image in images]
    return torch.stack(draws)


def image_generator(seed: int, stage: int, image: int) -> torch.Generator:
    mixed = np.random.SeedSequence([abs(seed), seed < 0, stage + 1, image]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


def filter_logits(logits: torch.Tensor, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """Logits (R, K) with −inf outside the top k and outside the nucleus (Holtzman et al. 2020)."""
    if top_k is not None and top_k < logits.shape[-1]:
        top = logits.topk(top_k)
        logits = torch.full_like(logits, -torch.inf).scatter(1, top.indices, top.values)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(descending=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability  # total of the more likely tokens
        outside = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def sample(logits: torch.Tensor, uniform: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """Draw a token per row from logits (R, K) by inverting the cumulative distribution at `uniform` (R,)."""
    filtered = filter_logits(logits / config.temperature, config.top_k, config.top_p)
    heights = filtered.softmax(-1).cumsum(-1)
    # Rounding may put the draw at the total, beyond which there are only tokens of probability 0.
    total = heights[:, -1:]
    drawn = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(heights, drawn, right=True).squeeze(1)


def split_guidance(logits: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2R, K), unconditional ones last → conditional and guided (Ho and Salimans 2022), each (R, K).

    At scale 1 there are no unconditional ones, and both results are the logits (R, K).
    """
    if scale == 1:
        return logits, logits
    conditional, free = logits.chunk(2)
    return conditional, torch.lerp(free, conditional, scale)
