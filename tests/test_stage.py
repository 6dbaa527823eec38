import argparse
import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.stage import NEAR, Stage, StageConfig, near_units
from models.transformer import Grid
from tests.helpers.slow_generation import generate
from tests.helpers.stages import CODEBOOKS, TRANSFORMER, build, codebook, generator, tokens_for
from utils.sampling import SamplingConfig
from utils.training.gradient import GradientLearner

# --- The start ---


@pytest.mark.parametrize("number", [0, 1])
def test_tokens_start_as_near_to_each_other_as_their_units_are(number):
    stage = build(number, in_dim=1024, condition_dropout=0.5)
    coarse, fine = (copy.deepcopy(book) for book in CODEBOOKS[number : number + 2])
    for book in (coarse, fine):
        book.units.mul_(7).add_(3)
    embed = stage.transformer.embed.token.weight
    source = stage.transformer.source_embed.token.weight if number else embed[len(fine) :]
    others = [embed[-1].clone(), source[-1].clone()]  # the start vector and the null, or the null
    deviation = embed.std()  # of an entry of random vectors
    torch.manual_seed(0)
    stage.init_embeddings(coarse, fine)
    assert torch.equal(embed[-1], others[0]) and torch.equal(source[-1], others[1])
    for vectors, book in ((embed[: len(fine)], fine), (source[: len(coarse)], coarse)):
        scaled = book.units - book.units.mean(0)
        scaled = scaled / scaled.square().mean().sqrt()
        distances = torch.cdist(scaled, scaled).square() / scaled.shape[1]
        products = vectors @ vectors.T / 1024 / deviation**2
        assert torch.allclose(products, torch.exp(-distances / 2), atol=0.13)


@pytest.mark.parametrize("number", [0, 1])
def test_muon_moves_the_layers_of_the_blocks_and_adamw_all_else(number):
    stage = build(number, cell=1 + number)
    names = {id(parameter): name for name, parameter in stage.named_parameters()}
    args = argparse.Namespace(step_size=4, precision="fp32", compile=False, ema_decay=0)
    config, weights = stage.config.transformer, stage.transformer.block_weights
    optimizers = GradientLearner(stage, None, config, args, 10, torch.device("cpu"), weights).optimizers
    moved = {
        key: [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        for key, optimizer in optimizers.items()
    }
    inside = [name for name in names.values() if any(part in name for part in (".encoder.", ".decoder.", ".cell."))]
    assert sorted(moved["muon"]) == sorted(name for name in inside if "norm" not in name and "place" not in name)
    assert sorted(moved["muon"] + moved["optimizer"]) == sorted(names.values())


# --- Layout ---


def test_inputs_are_the_condition_behind_the_fine_units_or_the_start_vector_then_the_tokens_shifted():
    inputs = build(0).inputs(torch.tensor([[4], [0]]), torch.tensor([[3, 1, 4, 1], [5, 0, 2, 0]]))
    assert inputs.tolist() == [[6 + 4, 3, 1, 4], [6 + 0, 5, 0, 2]]
    assert build(0).source(torch.tensor([[4]])) is None
    # Those of a cascade stage are the start vector and the tokens; its encoder reads the coarse tokens.
    coarse, fine = torch.tensor([[2, 0, 5, 1]]), torch.arange(16)[None] % 7
    inputs = build(1).inputs(coarse, fine)
    assert inputs.tolist() == [[7, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0]]
    assert torch.equal(build(1).source(coarse), coarse)


@pytest.mark.parametrize("number", [0, 1])
def test_the_loss_is_the_mean_surprise_at_each_token_and_the_accuracy_the_share_guessed(number):
    stage = build(number)
    coarse, fine = tokens_for(number, 3)
    logits = stage.transformer(stage.inputs(coarse, fine), stage.source(coarse)).tolist()
    surprises, hits = [], []
    for image, row in enumerate(fine.tolist()):
        for position, token in enumerate(row):
            scores = logits[image][position]
            surprises.append(math.log(sum(map(math.exp, scores))) - scores[token])
            hits.append(scores[token] == max(scores))
    result = stage(coarse, fine)
    assert result["loss"].item() == pytest.approx(sum(surprises) / len(surprises), rel=1e-5)
    assert result["bits"].item() == pytest.approx(sum(surprises) / len(surprises) / math.log(2), rel=1e-5)
    assert result["accuracy"].item() == pytest.approx(sum(hits) / len(hits))
    assert max(surprises) - min(surprises) > 1


def test_a_cell_is_written_row_by_row_before_the_next():
    assert build(1, cell=2).order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert build(1).order.tolist() == list(range(16))


@torch.no_grad()
def test_a_head_shares_what_is_learned_among_units_that_are_near():
    """The features of units multiply to a mean of Gaussians of four widths of their distance, less their means."""
    stage, fine = build(1, in_dim=16, head_features=4096), codebook(1, 40)
    stage = Stage(dataclasses.replace(stage.config, fine=Grid(4, 4, 40)))
    torch.manual_seed(0)
    stage.init_embeddings(CODEBOOKS[1], fine)
    scaled = fine.units / fine.units.var(0, correction=0).mean().sqrt()
    distances = torch.cdist(scaled, scaled).square() / scaled.shape[1]
    expected = torch.stack([(-distances / 2 / width**2).exp() for width in (1, 1 / 2, 1 / 4, 1 / 8)]).mean(0)
    expected = expected - expected.mean(0) - expected.mean(1, keepdim=True) + expected.mean()
    head = stage.transformer.head
    products = head.features @ head.features.T / 4096
    assert torch.allclose(products, expected / expected.diagonal().mean(), atol=0.1)
    # The plain layer of generation is the same, and starts as a uniform distribution.
    x = torch.randn(3, 16, generator=generator(0))
    assert not head(x).any()
    for parameter in head.parameters():
        parameter.normal_(generator=generator(1))
    assert torch.allclose(head.folded()(x), head(x), atol=1e-4)
    fine.units.zero_()  # nothing tells them apart
    stage.init_embeddings(CODEBOOKS[1], fine)
    assert head.features.abs().max() < 0.01


# --- What training does to the coarse tokens ---


def disturbed(number, **changes):
    """A stage in training whose coarse tokens are disturbed."""
    config = dataclasses.replace(TRANSFORMER, **changes)
    stage = Stage(StageConfig.between(config, *CODEBOOKS[number : number + 2], Path("c.pt"), number == 0))
    stage.near = near_units(CODEBOOKS[number])
    return stage.train()


def test_noise_moves_a_share_of_the_tokens_to_one_of_the_nearest_units():
    stage = disturbed(1, condition_noise=0.3)
    large = codebook(2, 40)
    stage.near = near_units(large)
    coarse = torch.arange(40).repeat(500, 1)
    torch.manual_seed(0)
    result = stage.disturb(coarse.view(-1, 4)).view(500, 40)
    assert (result != coarse).float().mean().item() == pytest.approx(0.3, abs=0.02)
    distances = torch.cdist(large.units, large.units).fill_diagonal_(math.inf)
    for unit in range(40):
        slips = result[:, unit][result[:, unit] != unit]
        assert set(slips.tolist()) == set(distances[unit].argsort()[:NEAR].tolist())
    few = disturbed(1, condition_noise=0.9)  # where all are near
    assert set(few.disturb(torch.zeros(500, 4, dtype=torch.int64)).unique().tolist()) == set(range(6))


@pytest.mark.parametrize("number", [0, 1])
def test_dropout_gives_whole_images_the_null_which_is_an_input_of_its_own(number):
    stage = disturbed(number, condition_dropout=0.25)
    coarse = tokens_for(number, 2000)[0]
    torch.manual_seed(0)
    result = stage.disturb(coarse)
    null = stage.config.coarse.num_units
    is_null = (result == null).any(1)
    assert is_null.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (result[is_null] == null).all()
    assert torch.equal(result[~is_null], coarse[~is_null])
    embedding = stage.transformer.embed if number == 0 else stage.transformer.source_embed
    assert embedding.token.num_embeddings == (6 + 5 if number == 0 else 6) + 1
    assert stage.first_input(result).max() < stage.transformer.embed.token.num_embeddings


@pytest.mark.parametrize("number", [0, 1])
def test_only_training_disturbs(number):
    stage = disturbed(number, condition_noise=0.5, condition_dropout=0.5)
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.3)
    coarse, fine = tokens_for(number, 50)
    assert len({stage(coarse, fine)["loss"].item() for _ in range(3)}) == 3
    stage.eval()
    assert len({stage(coarse, fine)["loss"].item() for _ in range(3)}) == 1


# --- Sampling ---


@torch.no_grad()
@given(
    number=st.sampled_from([0, 1]),
    seed=st.integers(0, 2**31),
    num_beam=st.integers(1, 5),
    beam_width=st.integers(1, 6),
    keep_beam=st.integers(1, 5),
    temperature=st.sampled_from([0.6, 1.3, 2.5]),
    top_k=st.none() | st.integers(2, 6),
    top_p=st.none() | st.sampled_from([0.37, 0.83]),
    guidance_scale=st.sampled_from([1.0, 0.0, 2.5]),
    num_kept=st.integers(0, 4),
    cell=st.sampled_from([1, 2]),
    has_labels=st.booleans(),
)
@settings(max_examples=20)
def test_samples_equal_those_of_the_slow_reference(
    number, seed, num_beam, beam_width, keep_beam, temperature, top_k, top_p, guidance_scale, num_kept, cell, has_labels
):
    """In float32, from the same draws: the whole prefix computed anew for each token of each beam."""
    more = {"cell": 2, "head_features": 8} if number and cell > 1 else {}
    num_kept = 8 * (num_kept % 3) if more else num_kept  # whole rows of cells
    keep_beam = min(keep_beam, num_beam)
    is_classic = num_beam > 1 and beam_width == 1 and keep_beam == num_beam
    guidance_scale = 1.0 if is_classic else guidance_scale
    config = SamplingConfig(num_beam, beam_width, keep_beam, temperature, top_k, top_p, guidance_scale)
    labels = ("a", "b") if has_labels and not number else ()
    stage = build(number, labels=labels, use_labels=bool(labels), condition_dropout=0.1, **more)
    coarse, fine = tokens_for(number, 2, seed)
    coarse = stage.with_labels(coarse, [(1,), (0, 1)]) if labels else coarse
    uniform = torch.rand(2, fine.shape[1], num_beam, generator=generator(seed))
    kept = fine[:, :num_kept] if num_kept else None
    tokens, score = stage.sample(coarse, config, uniform, kept=kept)
    expected, expected_score = generate(stage, coarse, config, uniform, kept)
    assert torch.equal(tokens, expected)
    assert torch.allclose(score, expected_score, atol=1e-3)
    assert kept is None or torch.equal(tokens[:, :num_kept], kept)


# --- Labels ---


def test_training_drops_the_labels_of_an_image_together():
    stage = build(0, labels=("a", "b", "c"), use_labels=True).train()
    coarse = torch.tensor([[4, 0, 2, 3], [1, 3, 3, 3]]).repeat(3000, 1)  # labels a and c, and none
    torch.manual_seed(0)
    result = stage.disturb(coarse)
    assert torch.equal(result[1::2], coarse[1::2])
    dropped = (result[::2] == torch.tensor([4, 3, 3, 3])).all(1)
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(result[::2][~dropped], coarse[::2][~dropped])
    # Without a condition there are no labels either.
    stage = build(0, labels=("a", "b"), use_labels=True, condition_dropout=0.5).train()
    coarse = torch.tensor([[4, 0, 1]]).repeat(1000, 1)
    result = stage.disturb(coarse)
    dropped = result[:, 0] == 5
    assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert (result[dropped, 1:] == 2).all()
    assert stage.without_condition(coarse)[0].tolist() == [5, 2, 2]


@torch.no_grad()
def test_the_vectors_of_all_labels_of_an_image_join_the_condition():
    stage = build(0, labels=("a", "b", "c"), use_labels=True)
    coarse, fine = tokens_for(0, 3)
    sets = [(0, 2), (), (1,)]
    given = stage.with_labels(coarse, sets)
    vectors = [sum((stage.label.weight[number] for number in labels), torch.zeros(16)) for labels in sets]
    assert torch.allclose(stage.start(given), torch.stack(vectors), atol=1e-6)
    assert torch.allclose(stage.start(given[:, [0, 2, 1]]), stage.start(given), atol=1e-6)  # in any order
    padded = torch.cat((given, torch.full((3, 2), 3)), dim=1)
    assert torch.equal(stage(padded, fine)["loss"], stage(given, fine)["loss"])

    losses = {stage(stage.with_labels(coarse, [labels] * 3), fine)["loss"].item() for labels in [(0,), (1,), (0, 1)]}
    assert len(losses) == 3
    plain = build(0)
    plain.transformer.load_state_dict(stage.transformer.state_dict())
    assert stage(stage.with_labels(coarse, [()] * 3), fine)["loss"] == plain(coarse, fine)["loss"]
    assert torch.equal(plain.with_labels(coarse, [()] * 3), coarse)


# --- What a stage learns ---
