"""A walk over the condition map and its atlas: the way, the pictures, and what generate_images.py writes of them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import generate_images
from models.cascade import Cascade
from models.requests import Place, Request, way
from tests.helpers.scripts import run_main
from tests.helpers.stages import codebook
from utils.sampling import SamplingConfig


@pytest.fixture(scope="module")
def cascade(tiny_run):
    """The tiny cascade with random weights: after 10 training steps, its own hardly depend on what they read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.cascade.make_ready", lambda *_: None)  # packed weights cannot be changed
        built = Cascade.load(tiny_run, device="cpu", precision="fp32", batch_size=7)
    generator = torch.Generator().manual_seed(0)
    for parameter in (one for stage in built.stages for one in stage.parameters() if one.ndim > 1):
        parameter.data.normal_(std=2 * parameter.shape[-1] ** -0.5, generator=generator)
    return built


def on_grid(units, columns=3):
    book = codebook(4, units)
    book.coordinates.copy_(torch.stack((torch.arange(units) // columns, torch.arange(units) % columns), dim=1))
    return book


@given(st.integers(0, 8), st.integers(0, 8), st.integers(2, 30), st.sets(st.integers(0, 8), max_size=6))
def test_a_way_leads_over_neighbours_and_what_is_left_of_them(start, end, steps, pruned):
    book = on_grid(9)
    keep = torch.tensor([unit in (start, end) or unit not in pruned for unit in range(9)])
    book = book.prune(keep)
    first, last = (int(keep[:unit].sum()) for unit in (start, end))
    places = way(book.coordinates, first, last, steps)
    assert len(places) == steps
    assert (places[0].unit, places[0].share) == (first, 0)
    assert places[-1].nearest == last
    assert all(0 <= place.share < 1 for place in places)
    assert all(a.unit == b.unit or b.unit != first for a, b in pairwise(places))
    if keep.all():
        for place in places:
            apart = (book.coordinates[place.unit] - book.coordinates[place.following]).abs().max()
            assert apart <= 1


def test_a_way_is_walked_at_an_even_pace():
    places = way(on_grid(9).coordinates, 0, 2, 5)
    assert places == (Place(0, 1), Place(0, 1, 0.5), Place(1, 2), Place(1, 2, 0.5), Place(2, 2))
    assert [place.nearest for place in places] == [0, 1, 1, 2, 2]
    assert way(on_grid(9).coordinates, 4, 4, 3) == (Place(4, 4),) * 3


def test_a_walk_leads_from_the_picture_of_a_unit_to_that_of_another(cascade):
    """All of the same draws, and as far as its places are alike, one picture."""
    last = len(cascade.codebooks[0]) - 1
    built = cascade.walk(0, last, 7, seed=0, as_tensor=True)
    assert built.shape == (7, 3, 32, 32)
    for unit, image in ((0, built[0]), (last, built[-1])):
        request = Request(0, conditions=(unit,), same_draws=True)
        tokens, _ = cascade.generate(request, range(7))
        assert torch.allclose(cascade.decode(tokens[-1])[5], image, atol=1e-6)
        assert torch.allclose(cascade.sample(1, seed=0, conditions=[unit], as_tensor=True)[0], image, atol=1e-6)
    assert len(built.flatten(1).unique(dim=0)) > 2
    still = cascade.walk(last, last, 3, seed=0, as_tensor=True)
    assert torch.allclose(still, built[-1:].expand(3, -1, -1, -1), atol=1e-6)


def test_between_two_units_the_base_stage_starts_from_a_vector_between_theirs(cascade):
    """Against the transformer itself: the logits of the first token are those of the mean of two embeddings."""
    base, share = cascade.stages[0], 0.25
    start, other = torch.tensor([[0], [2]]), torch.tensor([[1], [2]])
    embed = base.transformer.embed
    vectors = [embed.token(base.first_input(unit)) for unit in (start, other)]
    shift = base.shift(start, other, torch.full((2,), share))
    assert torch.allclose(vectors[0] + shift, torch.lerp(*vectors, share), atol=1e-6)
    assert (shift[1] == 0).all()
    uniform = torch.zeros(2, base.config.fine.length, 1)
    with torch.no_grad():
        tokens, scores = base.sample(start, SamplingConfig(), uniform, towards=(other, torch.full((2,), share)))
        inputs = base.inputs(start, tokens)
        logs = base.transformer(inputs, None, shift).log_softmax(-1).gather(2, tokens[:, :, None])
    assert torch.allclose(scores, logs.sum((1, 2)), atol=1e-4)


def generate(model, out, *flags):
    run_main(generate_images.main, "--model", model, "--device", "cpu", "--out-dir", out, *flags)
    return out


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


def test_a_walk_is_written_and_animated(tiny_run, faces, tmp_path):
    more = ("--temperature", 0.9, 0.5, 0.1, "--top-k", 7)
    out = generate(tiny_run, tmp_path / "walk", "--condition-walk", 0, 1, "--steps", 4, "--animate", "gif", *more)
    assert (out / "images/walk.gif").exists() and len([*(out / "images").glob("image_*.png")]) == 4
    alone = generate(tiny_run, tmp_path / "one", "--condition-index", 0, "--num-images", 1, *more)
    text = Image.open(out / "images/image_00000.png").text["stages"]  # each stage has its own value, or that of all
    assert [text.count(f'"temperature": {value}') for value in (0.9, 0.5, 0.1)] == [1, 1, 1]
    assert text.count('"top_k": 7') == 3
    assert np.array_equal(pixels(out / "images/image_00000.png"), pixels(alone / "images/image_00000.png"))
    with np.load(out / "tokens.npz") as archive:
        assert archive["condition"].flatten().tolist()[::3] == [0, 1]
        assert archive["scores"].shape == (4, 3)
    images = sorted(faces.parent.rglob("*.png"))[:2]
    between = generate(tiny_run, tmp_path / "between", "--condition-walk", *images, "--steps", 3)
    like = generate(tiny_run, tmp_path / "like", "--condition-image", *images, "--num-images", 2)
    with np.load(between / "tokens.npz") as walked, np.load(like / "tokens.npz") as given:
        assert walked["condition"].flatten().tolist()[::2] == given["condition"].flatten().tolist()


def test_an_atlas_has_a_picture_of_each_unit_at_its_place(tiny_run, cascade, tmp_path):
    out = generate(tiny_run, tmp_path / "atlas", "--condition-atlas", "--batch-size", 3, "--seed", 4)
    chart = pixels(out / "images/condition_atlas.png")
    book = cascade.codebooks[0]
    finals = sorted((out / "images").glob("image_*.png"))
    assert len(finals) == len(book)
    white = np.ones(chart.shape[:2], dtype=bool)
    for path, (row, column) in zip(finals, book.coordinates.tolist(), strict=True):
        place = slice(32 * row, 32 * row + 32), slice(32 * column, 32 * column + 32)
        assert np.array_equal(chart[place], pixels(path))
        white[place] = False
    assert (chart[white] == 255).all()
    first = generate(tiny_run, tmp_path / "first", "--condition-index", 1, "--num-images", 1, "--seed", 4)
    assert np.array_equal(pixels(finals[1]), pixels(first / "images/image_00000.png"))  # the draws of image 0
