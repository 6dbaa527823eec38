import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoding import CachedDecoder, make_ready
from models.transformer import Grid
from tests.helpers.transformers import COARSE, WINDOWS, build, generator, seeds

LONG = Grid(9, 7, 9)


def check(model, inputs, source=None, atol=1e-10):
    """Logits with a cache equal those of the whole inputs; returns the decoder."""
    decoder = CachedDecoder(model, len(inputs), source)
    with torch.no_grad():
        cached = torch.stack([decoder.next_logits(inputs[:, t]) for t in range(inputs.shape[1])], dim=1)
        assert torch.allclose(cached, model(inputs, source), atol=atol)
    return decoder


def tokens(rows, length, number=20, seed=1):
    return torch.randint(number, (rows, length), generator=generator(seed))


@pytest.mark.parametrize("coarse", [None, COARSE])
@pytest.mark.parametrize("window", WINDOWS)
def test_cached_logits_equal_uncached_ones(window, coarse):
    """Without a window, with one never full, just full, and sliding over a grid several times as long."""
    source = None if coarse is None else tokens(3, 4, 5, 2)
    check(build(window, coarse=coarse, num_dec_layers=3), tokens(3, 12), source)
    if coarse is not None:
        check(build(window, fine=Grid(6, 6, 9), coarse=coarse, num_dec_layers=3, cell=3), tokens(3, 36), source)


def test_cached_logits_equal_uncached_ones_far_past_the_window_and_of_one_cell():
    decoder = check(build(window=3, fine=LONG, num_dec_layers=3), tokens(2, 63))
    assert decoder.cache.keys.shape[-2] == decoder.cache.values.shape[-2] == 4  # the window and position 0
    check(build(fine=Grid(1, 1, 4)), torch.tensor([[7]]))


def test_many_small_heads_decode_alike():
    """64 heads of 8 channels, as in `configs/reference-128`."""
    sizes = {"in_dim": 512, "self_attn_heads": 64, "cross_attn_heads": 64, "num_dec_layers": 1}
    source = torch.tensor([[0, 1, 2, 3], [4, 0, 0, 2]])
    check(build(window=3, fine=Grid(2, 4, 5), coarse=COARSE, **sizes), tokens(2, 8), source)


@torch.no_grad()
@given(
    seed=seeds,
    window=st.none() | st.integers(2, 30),
    has_coarse=st.booleans(),
    beams=st.integers(1, 6),
    survivors=st.integers(1, 6),
    every=st.integers(1, 12),
    cell=st.sampled_from([1, 4]),
)
@settings(max_examples=30)
def test_rows_go_on_from_what_their_parent_has_seen(seed, window, has_coarse, beams, survivors, every, cell):
    """Each row's logits equal those of its own prefix, computed anew, whatever the window left."""
    images, length = 2, 40
    cell = cell if has_coarse else 1
    model = build(window, fine=Grid(8, 8, 9), coarse=COARSE if has_coarse else None, cell=cell)
    draw = generator(seed)
    source = torch.randint(5, (images, 4), generator=draw) if has_coarse else None
    repeated = None if source is None else source.repeat_interleave(beams, dim=0)
    decoder = CachedDecoder(model, images * beams, source)
    prefix = torch.empty(images * beams, 0, dtype=torch.int64)
    for position in range(length):
        inputs = torch.randint(20, (images * beams,), generator=draw)
        prefix = torch.cat((prefix, inputs[:, None]), dim=1)
        logits = decoder.next_logits(inputs)
        if position % 7 == 6 or position in (0, 1):
            whole = F.pad(prefix, (0, -len(prefix.T) % cell**2))
            assert torch.allclose(logits, model(whole, repeated)[:, position], atol=1e-9)
        if (position + 1) % every == 0:
            parent = torch.randint(beams, (images, survivors), generator=draw)[:, torch.arange(beams) % survivors]
            rows = (parent + torch.arange(images)[:, None] * beams).flatten()
            decoder.reorder(rows)
            prefix = prefix[rows]


@torch.no_grad()
@pytest.mark.parametrize(("rows", "dim"), [(1, 32), (3, 32), (1, 256), (3, 256)])
@pytest.mark.parametrize("coarse", [None, COARSE])
def test_a_ready_model_decodes_the_same_logits(coarse, rows, dim):
    """Narrow and wide; a narrow model in float32 with rounded weights."""
    model = build(window=3, coarse=coarse, in_dim=dim, hidden_dim=48).float()
    inputs, source = tokens(rows, 12), None if coarse is None else torch.tensor([[0, 1, 2, 3]]).expand(rows, 4)
    expected = model(inputs, source)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.2 * expected.std().item())):
        built = build(window=3, coarse=coarse, in_dim=dim, hidden_dim=48).float()
        make_ready(built, dtype)
        used = torch.float32 if dim == 32 else dtype
        assert built.embed.token.weight.dtype == used
        decoder = CachedDecoder(built, rows, source)
        cached = torch.stack([decoder.next_logits(inputs[:, t]) for t in range(12)], dim=1)
        assert cached.dtype == torch.float32
        assert torch.allclose(cached, expected, atol=tolerance)
        assert torch.allclose(cached, expected, atol=1e-4) == (dtype == torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("dim", [32, 256])
def test_a_model_that_is_rounded_before_decodes_the_same_logits(dim):
    """As an exported one, of whose head the shared part is rounded too."""
    results = []
    for is_exported in (False, True):
        model = build(window=3, coarse=COARSE, in_dim=dim, head_features=8).float()
        model.head.features.normal_(generator=generator(1))
        if is_exported:
            model.bfloat16().float()
        make_ready(model, torch.bfloat16)
        results.append(CachedDecoder(model, 1, tokens(1, 4, 5)).next_logits(torch.tensor([1])))
    assert torch.equal(*results)


@torch.no_grad()
def test_compiled_blocks_decode_the_same_logits_and_are_not_compiled_at_each_position(monkeypatch):
    """Through torch.compile's front end; its C++ back end needs a compiler, and is left out."""
    graphs = []
    original = torch.compile

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model, **kwargs: original(model, backend=backend))
    model, expected = (build(window=3, fine=LONG, coarse=COARSE).float() for _ in range(2))
    make_ready(model, torch.float32, compiled=True)
    inputs, source = tokens(2, 63), torch.tensor([[0, 1, 2, 3], [4, 0, 0, 2]])
    decoder = CachedDecoder(model, 2, source)
    for position in range(63):
        logits = decoder.next_logits(inputs[:, position])
        if position == 4:
            compiled = len(graphs)
    assert torch.allclose(logits, expected(inputs, source)[:, -1], atol=1e-4)
    assert len(graphs) == compiled > 0
