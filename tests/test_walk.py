"""A walk over the condition map: its way, what its pictures keep, and what generate_images.py writes of it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import generate_images
from models import generation
from models.generation import Cascade
from models.requests import Request
from models.walk import Place, kept_tokens, walk, way
from tests.helpers.scripts import expect_error, run_main
from tests.helpers.stages import codebook


@pytest.fixture(scope="module")
def cascade(tiny_run):
    """The tiny cascade with random weights: after 10 training steps, its own hardly depend on what they read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "make_ready", lambda *_: None)  # packed weights cannot be changed
        made = Cascade.load(tiny_run, device="cpu", precision="fp32")
    generator = torch.Generator().manual_seed(0)
    for parameter in (one for stage in made.stages for one in stage.parameters() if one.ndim > 1):
        parameter.data.normal_(std=2 * parameter.shape[-1] ** -0.5, generator=generator)
    return made


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
    places = way(book, first, last, steps)
    assert len(places) == steps
    assert (places[0].unit, places[0].share) == (first, 0)
    assert places[-1].nearest == last
    done = [(place.unit, place.following) for place in places]
    assert all(0 <= place.share < 1 for place in places)
    assert all(a[0] == b[0] or b[0] != first for a, b in pairwise(done))
    if keep.all():
        for place in places:
            apart = (book.coordinates[place.unit] - book.coordinates[place.following]).abs().max()
            assert apart <= 1


def test_a_way_is_walked_at_an_even_pace():
    places = way(on_grid(9), 0, 2, 5)
    assert places == [Place(0, 1, 0.0), Place(0, 1, 0.5), Place(1, 2, 0.0), Place(1, 2, 0.5), Place(2, 2, 0.0)]
    assert [place.nearest for place in places] == [0, 1, 1, 2, 2]
    assert way(on_grid(9), 4, 4, 3) == [Place(4, 4)] * 3


def test_a_walk_begins_with_the_unit_and_ends_with_the_plan_of_the_other(cascade):
    request, last = Request(seed=3), len(cascade.codebooks[0]) - 1
    counted = []
    made = list(walk(cascade, request, way(cascade.codebooks[0], 0, last, 5), counted.append))
    assert sum(counted) == 5 * cascade.length
    for unit, (tokens, scores), levels in ((0, made[0], 4), (last, made[-1], 2)):
        expected, expected_scores = cascade.generate(Request(seed=3, conditions=(unit,)), range(1))
        for found, part in list(zip(tokens, expected, strict=True))[:levels]:
            assert torch.equal(found, part)
        assert torch.equal(scores[:, : levels - 1], expected_scores[:, : levels - 1])


def test_finer_tokens_stay_where_the_coarser_ones_do(cascade):
    """Against a loop over tokens and the cells that they cover."""
    made = list(walk(cascade, Request(seed=0), way(cascade.codebooks[0], 0, len(cascade.codebooks[0]) - 1, 7)))
    changed = 0
    for (before, _), (after, _) in pairwise(made):
        for number in (1, 2):
            stage = cascade.stages[number].config
            ratio = stage.fine.width // stage.coarse.width
            kept = kept_tokens(cascade, number, before, after[number])
            for index in range(stage.fine.length):
                row, column = index // stage.fine.width // ratio, index % stage.fine.width // ratio
                coarse = row * stage.coarse.width + column
                agrees = before[number][0, coarse] == after[number][0, coarse]
                assert (index in kept) == agrees
                if agrees:
                    assert after[number + 1][0, index] == before[number + 1][0, index]
                else:
                    changed += int(after[number + 1][0, index] != before[number + 1][0, index])
    assert changed > 0


def test_between_two_units_the_plan_changes_at_some_share(cascade):
    """At 0 and 1 it is that of the units themselves, in between it starts from a vector between theirs."""
    base, request, image = cascade.stages[0], Request(seed=5), range(1)
    start, other = torch.tensor([[0]]), torch.tensor([[1]])
    plans = [
        cascade.write(0, request, image, start, towards=(other, torch.tensor([share])))[0]
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert torch.equal(plans[0], cascade.write(0, request, image, start)[0])
    assert torch.equal(plans[-1], cascade.write(0, request, image, other)[0])
    embed = base.transformer.embed.token.weight
    vectors = [embed[base.first_input(unit)][0] for unit in (start, other)]
    shift = base.shift(start, other, torch.tensor([0.25]))
    assert torch.allclose(vectors[0] + shift[0], torch.lerp(*vectors, 0.25), atol=1e-6)


def generate(model, out, *flags):
    run_main(generate_images.main, "--model", model, "--device", "cpu", "--out-dir", out, *flags)
    return out


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


def test_a_walk_is_written_and_animated(tiny_run, faces, tmp_path):
    out = generate(tiny_run, tmp_path / "walk", "--condition-walk", 0, 1, "--steps", 4, "--animate", "gif")
    names = {path.name for path in (out / "images").iterdir()}
    assert names == {*(f"image_{index:05d}.png" for index in range(4)), "walk.gif"} | {
        f"recon_model_{name}.png" for name in ("Cond", "0", "1", "2")
    }
    alone = generate(tiny_run, tmp_path / "one", "--condition-index", 0, "--num-images", 1, "--batch-size", 1)
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


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--condition-walk", 0), "--condition-walk has 1 ends: give two units, or two images"),
        (("--condition-walk", 0, 1, 2), "--condition-walk has 3 ends"),
        (("--condition-walk", 0, 99), "unit 99: the condition codebook has units 0 to"),
        (("--condition-walk", "none.png", 0), "none.png: no such image file"),
        (("--condition-atlas", "--init-image", "a.png", "--keep-rows", 1), "--init-image does not go with"),
        (("--temperature", 1, 2), "'temperature' has 2 values; give one for all stages, or one for each of the 3"),
    ],
)
def test_what_cannot_be_walked_is_named(flags, expected, tiny_run, tmp_path, capsys):
    arguments = ["--model", tiny_run, "--device", "cpu", "--out-dir", tmp_path / "out", *flags]
    assert expected in expect_error(capsys, generate_images.main, arguments)
    assert not (tmp_path / "out").exists()


def test_each_stage_takes_its_own_value(tiny_run, tmp_path):
    out = generate(tiny_run, tmp_path / "out", "--num-images", 1, "--temperature", 0.9, 0.5, 0.1, "--top-k", 7)
    text = Image.open(out / "images/image_00000.png").text["stages"]
    assert [(text.count(f'"temperature": {value}')) for value in (0.9, 0.5, 0.1)] == [1, 1, 1]
    assert text.count('"top_k": 7') == 3
