import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.helpers.transformers import generator, seeds
from utils.beam_search import search
from utils.sampling import SamplingConfig, filter_logits, image_generator, sample, uniform_draws

SYMBOLS, LENGTH = 3, 5
FIRST = torch.tensor([10, 11])  # of two images


class Toy:
    """A language whose next symbol depends on all that stands before it; rows remember their whole prefix."""

    def __init__(self, seed):
        self.seed, self.rows, self.table, self.reordered = seed, None, {}, []

    def logits(self, prefix):
        if prefix not in self.table:
            number = sum((token + 1) * 37**place for place, token in enumerate(prefix))
            self.table[prefix] = 1.5 * torch.randn(SYMBOLS, generator=generator(self.seed + number))
        return self.table[prefix]

    def next_logits(self, inputs):
        inputs = self.first if inputs is None else inputs
        rows = self.rows or [()] * len(inputs)
        self.rows = [(*row, token) for row, token in zip(rows, inputs.tolist(), strict=True)]
        return torch.stack([self.logits(row) for row in self.rows])

    def reorder(self, rows):
        self.reordered.append(rows)
        self.rows = [self.rows[row] for row in rows.tolist()]

    def search(self, first, settings_, uniform):
        self.rows, self.reordered, self.first = None, [], first.repeat_interleave(settings_.num_beam)
        return search(self.next_logits, self.reorder, settings_, uniform)

    def log_probability(self, first, tokens):
        """Teacher-forced, in float64."""
        prefix, total = (first,), 0.0
        for token in tokens:
            total += float(self.logits(prefix).double().log_softmax(-1)[token])
            prefix = (*prefix, token)
        return total


def slow_filter(logits, top_k, top_p):
    """The tokens that may be drawn, by going down the list; and how near a decision came to its edge."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[:top_k]
    weights = [math.exp(logits[token] - logits[order[0]]) for token in order]
    kept, before, edge = [], 0.0, 1.0
    for token, weight in zip(order, weights, strict=True):
        if top_p is not None and top_p < 1:
            edge = min(edge, abs(before - top_p))
            if before >= top_p:
                continue
        kept.append(token)
        before += weight / sum(weights)
    return kept, edge


def slow_beam_search(toy, first, width, length):
    """Classic: all continuations of all survivors, the best `width` of them survive."""
    beams = [()]
    for _ in range(length):
        longer = [(*tokens, symbol) for tokens in beams for symbol in range(SYMBOLS)]
        beams = sorted(longer, key=lambda tokens: -toy.log_probability(first, tokens))[:width]
    return beams[0]


different = st.lists(st.integers(-40, 40), min_size=1, max_size=12, unique=True)


@given(quarters=different, top_k=st.none() | st.integers(1, 14), top_p=st.none() | st.floats(0.01, 1))
def test_the_tokens_kept_are_exactly_the_most_likely_ones(quarters, top_k, top_p):
    logits = [quarter / 4 for quarter in quarters]
    kept, edge = slow_filter(logits, top_k, top_p)
    assume(edge > 1e-4)
    filtered = filter_logits(torch.tensor([logits, logits[::-1]]), top_k, top_p)
    assert filtered[0].isfinite().nonzero().flatten().tolist() == sorted(kept)
    assert torch.equal(filtered[1], filtered[0].flip(0))
    assert filtered[0][kept].tolist() == [logits[token] for token in kept]


@pytest.mark.parametrize("end", [0.0, 1 - 2**-24, 1.0])  # the last two: the largest draw, and one rounded up
def test_no_draw_however_extreme_picks_an_impossible_token(end):
    logits = 3 * torch.randn(3000, 50, generator=generator(0))
    logits[:, 0] = -40  # below what float32 adds to a sum near one
    uniform = torch.full((3000,), end)
    for config in (SamplingConfig(top_k=7), SamplingConfig(top_p=0.8), SamplingConfig(top_k=1, temperature=5)):
        possible = filter_logits(logits / config.temperature, config.top_k, config.top_p).isfinite()
        tokens = sample(logits, uniform, config)
        assert possible.gather(1, tokens[:, None]).all()
    last = sample(torch.zeros(3000, 3), uniform, SamplingConfig())
    assert (last == (2 if end else 0)).all()


def test_draws_do_not_depend_on_other_images():
    five = uniform_draws(3, 1, range(5), 7, 4)
    assert five.shape == (5, 7, 4)
    assert ((five >= 0) & (five < 1)).all()
    assert torch.equal(uniform_draws(3, 1, range(3), 7, 4), five[:3])
    assert torch.equal(uniform_draws(3, 1, range(2, 5), 7, 4), five[2:])
    assert not torch.equal(uniform_draws(3, 1, range(5), 7, 2)[..., 0], five[..., 0])  # but on the number of beams


def test_every_seed_stage_and_image_has_draws_of_its_own():
    keys = itertools.product([0, 1, 2, 3, 1000, 2**32 - 1], [-1, 0, 1, 2], range(60))
    numbers = [torch.rand(2, generator=image_generator(*key), dtype=torch.float64).tolist() for key in keys]
    assert len({tuple(pair) for pair in numbers}) == len(numbers)


@given(seeds)
@settings(max_examples=6)
def test_a_wide_classic_beam_is_exhaustive_search(seed):
    toy, wide = Toy(seed), SYMBOLS ** (LENGTH - 1)
    config = SamplingConfig(num_beam=wide, keep_beam=wide)
    tokens, score = toy.search(FIRST, config, torch.zeros(2, LENGTH, wide))
    for image, first in enumerate(FIRST.tolist()):
        totals = {row: toy.log_probability(first, row) for row in itertools.product(range(SYMBOLS), repeat=LENGTH)}
        assert score[image].item() == pytest.approx(max(totals.values()), abs=1e-5)
        assert totals[tuple(tokens[image].tolist())] == pytest.approx(max(totals.values()), abs=1e-5)


@given(seed=seeds, width=st.integers(2, 12))
@settings(max_examples=20)
def test_a_narrow_classic_beam_equals_a_slow_one(seed, width):
    toy = Toy(seed)
    config = SamplingConfig(num_beam=width, keep_beam=width)
    assert config.is_classic
    tokens, score = toy.search(FIRST, config, torch.rand(2, LENGTH, width))
    for image, first in enumerate(FIRST.tolist()):
        expected = slow_beam_search(toy, first, width, LENGTH)
        assert tuple(tokens[image].tolist()) == expected
        assert score[image].item() == pytest.approx(toy.log_probability(first, expected), abs=1e-4)


@pytest.mark.parametrize(
    ("config", "times"),
    [
        (SamplingConfig(num_beam=4, keep_beam=4), LENGTH - 1),  # after the last token nothing goes on
        (SamplingConfig(num_beam=4, beam_width=2, keep_beam=3), 2),
        (SamplingConfig(num_beam=4, beam_width=5), 0),
        (SamplingConfig(num_beam=4, beam_width=9), 0),
        (SamplingConfig(), 0),
    ],
)
def test_rows_go_on_from_rows_of_their_own_image(config, times):
    toy = Toy(seed=5)
    toy.search(FIRST, config, torch.rand(2, LENGTH, config.num_beam, generator=generator(0)))
    assert len(toy.reordered) == times
    own = torch.arange(2).repeat_interleave(config.num_beam)
    for rows in toy.reordered:
        assert torch.equal(rows // config.num_beam, own)
