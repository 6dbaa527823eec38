"""Beam search over a next-logits function and a cache. Hypotheses are rows of one batch."""

from collections.abc import Callable

import torch

from utils.sampling import SamplingConfig, sample, split_guidance


@torch.inference_mode()
def search(
    next_logits: Callable[[torch.Tensor | None], torch.Tensor],
    reorder: Callable[[torch.Tensor], None],
    config: SamplingConfig,
    uniform: torch.Tensor,
    kept: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write T tokens for each of N images.

    `next_logits` takes the token before of each row (N·num_beam,), None at the start, and returns logits (N·num_beam,
    K), with guidance (2·N·num_beam, K), unconditional ones last; `reorder` lets row i continue from the state of row
    `rows[i]`. `uniform` (N, T, num_beam) are the draws, `kept` (N, P) the first tokens of each image if they are given.
    Returns tokens (N, T) and their score (N,): the sum of log-probabilities, including those of kept tokens, at
    temperature 1, before guidance, top-k and top-p.
    """
    images, length, beams = uniform.shape
    device, inputs = uniform.device, None
    tokens = torch.zeros(images * beams, length, dtype=torch.int64, device=device)
    score = torch.zeros(images, beams, device=device)
    own_rows = torch.arange(images, device=device)[:, None] * beams
    copies = torch.arange(beams, device=device) * config.keep_beam // beams  # the survivor that each continues
    is_compared = beams > 1 and not config.is_classic  # in blocks; a classic search compares at every token
    num_kept = 0 if kept is None else kept.shape[1]
    for position in range(length):
        is_last, is_kept, parent = position == length - 1, position < num_kept, None
        logits, guided = split_guidance(next_logits(inputs).float(), config.guidance_scale)
        log_probability = logits.log_softmax(-1)
        if config.is_classic and not is_kept:
            parent, inputs, score = _best_continuations(score, log_probability, is_start=position == num_kept)
        else:
            draws = uniform[:, position].flatten()
            inputs = kept[:, position].repeat_interleave(beams) if is_kept else sample(guided, draws, config)
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
    """The `num_beam` best one-token continuations: parents (N, beams), tokens (N·beams,), scores (N, beams)."""
    images, beams = score.shape
    total = score[:, :, None] + log_probability.view(images, beams, -1)  # (N, beams, K)
    if is_start:  # all beams are still the same hypothesis
        total[:, 1:] = -torch.inf
    best, num_units = total.flatten(1).topk(beams), total.shape[-1]
    return best.indices // num_units, (best.indices % num_units).flatten(), best.values
