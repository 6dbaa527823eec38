"""Generation in the slow, obvious way: for each token of each beam, the model reads the whole prefix again.

The reference shares only the forward pass of training with `Stage.sample`. The tests compare the two.
"""

import torch

from models.stage import Stage
from models.transformer import Grid
from utils.sampling import SamplingConfig


def next_logits(stage: Stage, coarse: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The logits (N, K) of the token after the first ones (N, t), given coarse tokens (N, S)."""
    known, size = tokens.shape[1], stage.transformer.per_position
    unknown = torch.zeros(len(coarse), size - known % size, dtype=torch.int64)
    inputs = stage.inputs(coarse, torch.cat((tokens.view(len(coarse), -1), unknown), dim=1))
    return stage.transformer(inputs, stage.source(coarse), stage.start(coarse))[:, known].float()


def draw(logits: torch.Tensor, uniform: float, config: SamplingConfig) -> int:
    """The token of logits (K,), after the filters, at which the cumulative distribution reaches `uniform`."""
    order = (logits.double() / config.temperature).sort(descending=True, stable=True)
    values, indices = order.values[: config.top_k], order.indices[: config.top_k]
    shares = values.softmax(-1)
    if config.top_p is not None:
        left = shares.cumsum(-1) - shares < config.top_p
        shares, indices = shares[left], indices[left]
    back = indices.argsort()
    heights = shares[back].cumsum(-1) / shares.sum()
    return int(indices[back][int((heights <= uniform).sum().clamp(max=len(heights) - 1))])


def generate(
    stage: Stage, coarse: torch.Tensor, config: SamplingConfig, uniform: torch.Tensor, kept: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `Stage.sample`: coarse tokens (N, S), draws (N, T, num_beam) → fine tokens (N, T) and scores (N,)."""
    order = written_order(stage.config.fine, stage.config.transformer.cell)
    kept = (
        [None] * len(coarse) if kept is None else [[row[place] for place in order[: len(row)]] for row in kept.tolist()]
    )
    result = [generate_one(stage, coarse[i : i + 1], config, uniform[i], kept[i]) for i in range(len(coarse))]
    tokens = [[written[order.index(place)] for place in range(len(order))] for written, _ in result]
    return torch.tensor(tokens), torch.tensor([score for _, score in result])


def written_order(grid: Grid, cell: int) -> list[int]:
    """The places of a grid, numbered in raster order, as they are written: cell by cell, row by row inside a cell."""
    return [
        (top + row) * grid.width + left + column
        for top in range(0, grid.height, cell)
        for left in range(0, grid.width, cell)
        for row in range(cell)
        for column in range(cell)
    ]


def generate_one(
    stage: Stage, coarse: torch.Tensor, config: SamplingConfig, uniform: torch.Tensor, kept: list[int] | None
) -> tuple[list[int], float]:
    """Tokens and score of one image, from draws (T, num_beam). A beam is a list of tokens and its score."""
    length, num_beam = uniform.shape
    beams: list[tuple[list[int], float]] = [([], 0.0)] * num_beam
    for position in range(length):
        longer = []
        for beam, (tokens, score) in enumerate(beams):
            prefix = torch.tensor([tokens], dtype=torch.int64)
            logits = next_logits(stage, coarse, prefix)[0]
            logs = logits.log_softmax(-1)
            guided = logits
            if config.is_guided:
                free = next_logits(stage, stage.without_condition(coarse), prefix)[0]
                guided = free + config.guidance_scale * (logits - free)
            if kept is not None and position < len(kept):
                choices = [kept[position]]
            elif config.is_classic:
                choices = list(range(len(logs)))
            else:
                choices = [draw(guided, float(uniform[position, beam]), config)]
            longer += [([*tokens, choice], score + float(logs[choice])) for choice in choices]
        is_kept = kept is not None and position < len(kept)
        if config.is_classic and not is_kept:
            distinct = {tuple(tokens): (tokens, score) for tokens, score in longer}
            beams = best(list(distinct.values()), num_beam)
        elif not config.is_classic and ((position + 1) % config.beam_width == 0 or position == length - 1):
            survivors = best(longer, config.keep_beam)
            beams = [survivors[beam * config.keep_beam // num_beam] for beam in range(num_beam)]
        else:
            beams = longer
    return beams[0]


def best(beams: list[tuple[list[int], float]], number: int) -> list[tuple[list[int], float]]:
    """The beams of highest score, the highest first."""
    return sorted(beams, key=lambda beam: -beam[1])[:number]
