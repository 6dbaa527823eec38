import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.stage import Stage, StageConfig
from models.transformer import Attention, ChannelDropout, Grid, GridEmbedding, Transformer, attend, causal_attention
from tests.helpers.transformers import COARSE, FINE, awake, build, config, generator, seeds


def sees(query, key, window):
    return key <= query and (window is None or key > query - window or key == 0)


def slow_attention(q, k, v, window):
    """One query at a time, over the keys that it may see."""
    rows = []
    for t in range(q.shape[2]):
        seen = [s for s in range(q.shape[2]) if sees(t, s, window)]
        scores = (q[:, :, t : t + 1] * k[:, :, seen]).sum(-1) / q.shape[-1] ** 0.5
        rows.append((scores.softmax(-1)[..., None] * v[:, :, seen]).sum(2))
    return torch.stack(rows, dim=2)


# --- Attention under the band ---


@given(seed=seeds, length=st.integers(1, 23), window=st.none() | st.integers(1, 25), heads=st.integers(1, 3))
@settings(max_examples=40)
def test_windowed_attention_equals_masked_attention_and_so_do_its_gradients(seed, length, window, heads):
    g = generator(seed)
    blocks = [torch.randn(2, heads, length, 4, generator=g, dtype=torch.float64).requires_grad_() for _ in range(3)]
    slow = [part.detach().clone().requires_grad_() for part in blocks]
    y, expected = causal_attention(*blocks, window), slow_attention(*slow, window)
    assert y.shape == expected.shape
    assert torch.allclose(y, expected, atol=1e-10)
    weights = torch.randn(y.shape, generator=g, dtype=torch.float64)
    gradients = [torch.autograd.grad((a * weights).sum(), b) for a, b in ((y, blocks), (expected, slow))]
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)


@given(seed=seeds, causal=st.booleans(), masked=st.booleans(), queries=st.integers(1, 5), keys=st.integers(1, 24))
def test_attention_is_the_same_with_a_gradient_as_without(seed, causal, masked, queries, keys):
    """On the CPU the first is made of plain products, the second by PyTorch's fused kernel unless queries are few."""
    g = generator(seed)
    q = torch.randn(2, 3, queries, 4, generator=g, dtype=torch.float64)
    k, v = (torch.randn(2, 3, keys, 4, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(3, queries, keys, generator=g) < 0.5 if masked and not causal else None
    if mask is not None:
        mask[..., 0] = True
    expected = attend(q, k, v, mask, is_causal=causal)
    slow = torch.einsum("bhtd,bhsd->bhts", q, k) / 2
    sees_all = torch.ones(queries, keys, dtype=torch.bool)
    slow = slow.masked_fill(~(sees_all.tril() if causal else sees_all if mask is None else mask), -torch.inf)
    slow = torch.einsum("bhts,bhsd->bhtd", slow.softmax(-1), v)
    assert torch.allclose(expected, slow, atol=1e-10)
    assert torch.allclose(attend(q.requires_grad_(), k, v, mask, is_causal=causal), slow, atol=1e-10)


# --- Nobody sees the future ---


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("is_base", "cell"), [(True, 1), (False, 1), (False, 2)])
def test_no_position_sees_its_own_or_a_later_token(is_base, cell, window):
    """Tokens all differ, so the gradient of each embedding tells which token a position's logits depend on."""
    coarse_grid = Grid(1, 1, 5) if is_base else COARSE
    fine_grid = Grid(3, 4, 12) if cell == 1 else Grid(4, 4, 16)
    stage = awake(Stage(StageConfig(config(window, num_dec_layers=3, cell=cell), coarse_grid, fine_grid, is_base)))
    fine = torch.randperm(fine_grid.length, generator=generator(3))[None]
    coarse = torch.arange(coarse_grid.length)[None]
    logits = stage.transformer(stage.inputs(coarse, fine), stage.source(coarse))
    assert logits.shape == (1, fine_grid.length, fine_grid.length)
    for t in range(fine_grid.length):
        gradient = torch.autograd.grad(logits[0, t].sum(), stage.transformer.embed.token.weight, retain_graph=True)[0]
        used = gradient.abs().sum(1) > 0
        assert not used[fine[0, t:]].any()
        if window is None:
            assert used[fine[0, :t]].all()
        assert used[stage.first_input(coarse)].all()
        if not is_base:  # every position sees every coarse token
            source = stage.transformer.source_embed.token.weight
            gradient = torch.autograd.grad(logits[0, t].sum(), source, retain_graph=True)[0]
            assert (gradient.abs().sum(1) > 0).tolist() == [True] * 4 + [False]


# --- The start ---


@torch.no_grad()
@pytest.mark.parametrize("coarse", [None, COARSE])
def test_an_untrained_model_guesses_evenly_and_its_blocks_are_the_identity(coarse):
    model = Transformer(config(), FINE, 20, coarse)
    inputs = torch.randint(20, (2, 12), generator=generator(1))
    logits = model(inputs, None if coarse is None else torch.zeros(2, 4, dtype=torch.int64))
    loss = F.cross_entropy(logits.flatten(0, 1), torch.randint(9, (24,), generator=generator(2)))
    assert loss.item() == pytest.approx(math.log(9), abs=1e-6)
    if coarse is None:
        return
    x = torch.randn(2, 12, 16, generator=generator(1))
    _, memory = model.encode(torch.zeros(2, 4, dtype=torch.int64))
    for block, (k, v) in zip(model.decoder, memory, strict=True):
        y = block(x, partial(causal_attention, window=None), partial(attend, k=k, v=v))
        assert torch.equal(y, x)


# --- Positions ---


@torch.no_grad()
def test_a_token_carries_a_vector_of_its_own_one_of_its_row_and_one_of_its_column():
    embed = GridEmbedding(FINE, 9, 16)
    tokens = torch.tensor([[5, 8, 5], [0, 1, 2]])
    x = embed(tokens, torch.tensor([0, 5, 11]))  # of 3 rows and 4 columns
    for image in range(2):
        for place, (row, column) in enumerate([(0, 0), (1, 1), (2, 3)]):
            expected = embed.token.weight[tokens[image, place]] + embed.row.weight[row] + embed.column.weight[column]
            assert torch.allclose(x[image, place], expected, atol=1e-6)


@torch.no_grad()
def test_queries_and_keys_are_normalised():
    attention = Attention(16, 2)
    x = 99 * torch.randn(1, 6, 16, generator=generator(0))
    for part in (attention.queries(x), attention.keys_values(x)[0]):
        assert part.shape == (1, 2, 6, 8)
        assert torch.allclose(part.square().mean(-1), torch.ones(1, 2, 6), atol=1e-4)


# --- Training ---


@torch.no_grad()
def test_dropout_is_for_training_only_takes_channels_of_an_image_and_keeps_the_mean():
    model, inputs = build(dropout=0.5), torch.arange(12)[None]
    assert torch.equal(model(inputs), model(inputs))
    model.train()
    assert not torch.allclose(model(inputs), model(inputs))
    dropout, x = ChannelDropout(0.25).train(), torch.ones(2000, 3, 8)
    torch.manual_seed(0)
    y = dropout(x)
    assert torch.equal(y, y[:, :1].expand(-1, 3, -1))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert y.mean().item() == pytest.approx(1, abs=0.02)
