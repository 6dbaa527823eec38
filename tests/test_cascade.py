import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from models.autoencoder import Autoencoder, AutoencoderConfig
from models.cascade import (
    KIND,
    NEAR,
    Cascade,
    GenerationConfig,
    Stage,
    StageConfig,
    bits_before,
    load_generation_config,
    near_units,
)
from models.codebook import KIND as CODEBOOK_KIND
from models.codebook import Codebook, CodebookConfig
from models.transformer import Grid, TransformerConfig
from utils.beam_search import SearchConfig, uniform_draws
from utils.checkpoint import save_checkpoint
from utils.config import build_config
from utils.files import UserError

CPU = torch.device("cpu")
TRANSFORMER = TransformerConfig(
    model_lr=1e-3,
    use_sliding_window=True,
    sliding_window=3,
    num_enc_layers=1,
    num_dec_layers=2,
    self_attn_heads=2,
    cross_attn_heads=2,
    in_dim=16,
    hidden_dim=12,
    hidden_activation="silu",
)
SEARCHES = [
    SearchConfig(),
    SearchConfig(temperature=1.7, top_k=4, top_p=0.9),
    SearchConfig(num_beam=4, beam_width=3, keep_beam=2, temperature=1.5),
    SearchConfig(num_beam=3, keep_beam=3),
]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def codebook(patch, units, seed=0):
    """A codebook of feature maps (2, 4, 4), with counts 1, 2, 3, …"""
    made = Codebook(CodebookConfig(0.1, 4, 4, 2, patch, patch, units, 10))
    made.units.normal_(generator=generator(seed + units))
    made.counts.copy_(torch.arange(1, units + 1))
    return made


CODEBOOKS = [codebook(4, 5), codebook(2, 6), codebook(1, 7)]


def build(number, seed=0):
    """Stage 0 writes 2×2 tokens of 6 from a condition of 5; stage 1 writes 4×4 tokens of 7 from those."""
    stage = Stage(StageConfig.between(TRANSFORMER, *CODEBOOKS[number : number + 2], Path("c.pt"), number == 0))
    with torch.no_grad():
        for parameter in stage.parameters():
            noise = torch.randn(parameter.shape, generator=generator(seed)) * parameter.shape[-1] ** -0.5
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 1.5 * noise)
            seed += 1
    return stage.eval()


def tokens_for(number, images, seed=1):
    """Coarse and fine tokens of some images for a stage."""
    lengths = [1, 4, 16][number : number + 2]
    units = [5, 6, 7][number : number + 2]
    draw = generator(seed)
    return [torch.randint(k, (images, length), generator=draw) for k, length in zip(units, lengths, strict=True)]


# --- Layout ---


def test_base_inputs_are_the_condition_behind_the_fine_units_then_the_tokens_shifted():
    inputs, targets = build(0).inputs_and_targets(torch.tensor([[4], [0]]), torch.tensor([[3, 1, 4, 1], [5, 0, 2, 0]]))
    assert inputs.tolist() == [[6 + 4, 3, 1, 4], [6 + 0, 5, 0, 2]]
    assert targets.tolist() == [[3, 1, 4, 1], [5, 0, 2, 0]]
    assert build(0).source(torch.tensor([[4]])) is None


def test_cascade_inputs_start_with_the_start_vector_and_the_encoder_reads_the_coarse_tokens():
    coarse, fine = torch.tensor([[2, 0, 5, 1]]), torch.arange(16)[None] % 7
    inputs, targets = build(1).inputs_and_targets(coarse, fine)
    assert inputs.tolist() == [[7, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0]]
    assert torch.equal(targets, fine)
    assert torch.equal(build(1).source(coarse), coarse)


@pytest.mark.parametrize("number", [0, 1])
def test_first_inputs_never_collide_with_fine_units(number):
    stage = build(number)
    firsts = stage.first_input(torch.arange(5 if number == 0 else 6)[:, None].expand(-1, stage.config.coarse.length))
    vocabulary = stage.transformer.embed.token.num_embeddings
    assert firsts.min() == stage.config.fine.num_units
    assert firsts.max() == vocabulary - 1
    assert len(firsts.unique()) == vocabulary - stage.config.fine.num_units == (5 if number == 0 else 1)


@pytest.mark.parametrize("number", [0, 1])
def test_the_loss_is_the_mean_surprise_at_each_token_and_the_accuracy_the_share_guessed(number):
    stage = build(number)
    coarse, fine = tokens_for(number, 3)
    logits = stage.transformer(stage.inputs_and_targets(coarse, fine)[0], stage.source(coarse)).tolist()
    surprises, hits = [], []
    for image, row in enumerate(fine.tolist()):
        for position, token in enumerate(row):
            scores = logits[image][position]
            surprises.append(math.log(sum(map(math.exp, scores))) - scores[token])
            hits.append(scores[token] == max(scores))
    found = stage(coarse, fine)
    assert found["loss"].item() == pytest.approx(sum(surprises) / len(surprises), rel=1e-5)
    assert found["bits"].item() == pytest.approx(sum(surprises) / len(surprises) / math.log(2), rel=1e-5)
    assert found["accuracy"].item() == pytest.approx(sum(hits) / len(hits))
    assert max(surprises) - min(surprises) > 1


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
    found = stage.disturb(coarse)
    assert (found != coarse).float().mean().item() == pytest.approx(0.3, abs=0.02)
    distances = torch.cdist(large.units, large.units).fill_diagonal_(math.inf)
    for unit in range(40):
        slips = found[:, unit][found[:, unit] != unit]
        assert set(slips.tolist()) == set(distances[unit].argsort()[:NEAR].tolist())


def test_with_few_units_noise_draws_from_all():
    stage = disturbed(1, condition_noise=0.9)
    assert set(stage.disturb(torch.zeros(500, 4, dtype=torch.int64)).unique().tolist()) == set(range(6))


@pytest.mark.parametrize("number", [0, 1])
def test_dropout_gives_whole_images_the_null_which_is_an_input_of_its_own(number):
    stage = disturbed(number, condition_dropout=0.25)
    coarse = tokens_for(number, 2000)[0]
    torch.manual_seed(0)
    found = stage.disturb(coarse)
    null = stage.config.coarse.num_units
    is_null = (found == null).any(1)
    assert is_null.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (found[is_null] == null).all()
    assert torch.equal(found[~is_null], coarse[~is_null])
    embedding = stage.transformer.embed if number == 0 else stage.transformer.source_embed
    assert embedding.token.num_embeddings == (6 + 5 if number == 0 else 6) + 1
    assert stage.first_input(found).max() < stage.transformer.embed.token.num_embeddings


@pytest.mark.parametrize("number", [0, 1])
def test_only_training_disturbs(number):
    stage = disturbed(number, condition_noise=0.5, condition_dropout=0.5)
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.3)
    coarse, fine = tokens_for(number, 50)
    assert len({stage(coarse, fine)["loss"].item() for _ in range(3)}) == 3
    stage.eval()
    assert len({stage(coarse, fine)["loss"].item() for _ in range(3)}) == 1


# --- The bits that an image costs before a stage ---


def test_the_bits_before_a_base_stage_are_the_entropy_of_its_conditions():
    made = codebook(4, 4)
    made.counts.copy_(torch.tensor([0, 2, 1, 1]))
    assert bits_before(made, None, is_base=True) == pytest.approx(1.5)
    made.counts.zero_()
    assert bits_before(made, None, is_base=True) is None


def test_the_bits_before_a_cascade_stage_are_those_of_the_checkpoint_of_the_one_before(tmp_path):
    marks = {"lr_codebook": CODEBOOKS[0].fingerprint, "hr_codebook": CODEBOOKS[1].fingerprint}
    path, stage = tmp_path / "stage.pt", build(0)
    for validation, expected in (({"image_bits": 12.5}, 12.5), ({}, None), (None, None)):
        save_checkpoint(path, KIND, stage.config, stage.state_dict(), marks, validation=validation)
        assert bits_before(CODEBOOKS[1], path, is_base=False) == expected
    assert bits_before(CODEBOOKS[1], None, is_base=False) is None
    with pytest.raises(UserError, match=r"stage\.pt: does not belong with this low-resolution codebook"):
        bits_before(CODEBOOKS[2], path, is_base=False)


# --- Sampling ---


@torch.no_grad()
@pytest.mark.parametrize("config", SEARCHES)
@pytest.mark.parametrize("number", [0, 1])
def test_the_score_of_a_sample_equals_a_teacher_forced_pass(number, config):
    stage = build(number)
    coarse, fine = tokens_for(number, 4)
    uniform = uniform_draws(0, number, range(4), fine.shape[1], config.num_beam)
    calls = []
    tokens, score = stage.sample(coarse, config, uniform, lambda: calls.append(1))
    assert tokens.shape == fine.shape
    assert len(calls) == fine.shape[1]
    logits = stage.transformer(stage.inputs_and_targets(coarse, tokens)[0], stage.source(coarse))
    expected = logits.log_softmax(-1).gather(2, tokens[..., None]).sum((1, 2))
    assert torch.allclose(score, expected, atol=1e-4)
    assert config.is_classic or len(tokens.unique(dim=0)) > 1


@pytest.mark.parametrize("config", SEARCHES)
@pytest.mark.parametrize("number", [0, 1])
def test_the_number_of_images_never_changes_one(number, config):
    stage = build(number)
    coarse, fine = tokens_for(number, 5)
    few, many = (
        stage.sample(coarse[:n], config, uniform_draws(7, number, range(n), fine.shape[1], config.num_beam))
        for n in (3, 5)
    )
    assert torch.equal(few[0], many[0][:3])
    assert torch.allclose(few[1], many[1][:3], atol=1e-4)


@torch.no_grad()
def test_a_stage_that_has_learned_writes_what_it_learned():
    stage, (coarse, fine) = build(1), tokens_for(1, 3)
    with torch.enable_grad():
        optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            stage(coarse, fine)["loss"].backward()
            optimizer.step()
    config = SearchConfig(num_beam=2, keep_beam=2)
    tokens, score = stage.sample(coarse, config, torch.zeros(3, 16, 2))
    assert torch.equal(tokens, fine)
    assert (score > -1).all()


# --- Configs ---


@pytest.mark.parametrize("number", [0, 1])
def test_a_stage_config_travels_through_plain_types(number):
    config = build(number).config
    saved = json.loads(json.dumps(dataclasses.asdict(config)))
    assert build_config(StageConfig, saved, "here") == config
    saved["transformer"]["in_dimm"] = 3
    with pytest.raises(UserError, match=r"here: unknown key 'in_dimm'; did you mean 'in_dim'"):
        build_config(StageConfig, saved, "here")


def test_a_stage_config_follows_pruned_codebooks():
    pruned = CODEBOOKS[2].prune(torch.arange(7) % 2 == 0)
    config = StageConfig.between(TRANSFORMER, CODEBOOKS[1], pruned, Path("c.pt"), is_base=False)
    assert (config.coarse, config.fine) == (Grid(2, 2, 6), Grid(4, 4, 4))


def test_a_base_stage_needs_one_token_a_map():
    with pytest.raises(
        UserError, match=r"c\.pt: cuts a feature map into 4 patches, but the base stage starts from one"
    ):
        StageConfig.between(TRANSFORMER, CODEBOOKS[1], CODEBOOKS[2], Path("c.pt"), is_base=True)


# --- Files ---


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    made = Autoencoder(
        AutoencoderConfig(1e-3, 3, 4, 4, 1, 2, "silu", False, "tanh", False, "tanh"),
    )
    made.fingerprint = "decoder0"
    return made


def save_codebook(made, path):
    save_checkpoint(path, CODEBOOK_KIND, made.config, made.state_dict(), trained_from={"autoencoder": "decoder0"})
    return made.fingerprint


def save_stage(stage, path, coarse, fine, autoencoder="decoder0"):
    trained_from = {"lr_codebook": coarse, "hr_codebook": fine, "autoencoder": autoencoder}
    save_checkpoint(path, KIND, stage.config, stage.state_dict(), trained_from=trained_from)


@pytest.fixture
def folder(tmp_path):
    """A whole cascade on disk, and other codebooks of the same shapes."""
    marks = [save_codebook(made, tmp_path / f"codebook_{i}.pt") for i, made in enumerate(CODEBOOKS)]
    for i, (patch, units) in enumerate([(4, 5), (2, 6), (1, 7)]):
        save_codebook(codebook(patch, units, seed=50), tmp_path / f"other_{i}.pt")
    for number in (0, 1):
        save_stage(build(number), tmp_path / f"stage_{number}.pt", *marks[number : number + 2])
        save_stage(build(number), tmp_path / f"alien_{number}.pt", *marks[number : number + 2], autoencoder="decoder1")
    return tmp_path


def stage_entry(number, **changes):
    names = {"model_path": f"stage_{number}", "lr_codebook_path": f"codebook_{number}"}
    names = {**names, "hr_codebook_path": f"codebook_{number + 1}", **changes}
    return {key: f"{value}.pt" if key.endswith("path") else value for key, value in names.items()}


def load(folder, decoder, *entries):
    path = folder / "generation.json"
    path.write_text(json.dumps({str(i): entry for i, entry in enumerate(entries)}))
    return Cascade(path, decoder, CPU)


def test_a_saved_stage_comes_back_the_same(folder):
    stage, (coarse, fine) = build(1), tokens_for(1, 2)
    loaded = Stage.load(folder / "stage_1.pt", *(Codebook.load(folder / f"codebook_{i}.pt") for i in (1, 2)))
    assert (loaded.config, loaded.autoencoder, loaded.training) == (stage.config, "decoder0", False)
    assert torch.equal(loaded(coarse, fine)["loss"], stage(coarse, fine)["loss"])


def test_a_cascade_generates_the_tokens_of_every_stage(folder, decoder):
    cascade = load(folder, decoder, stage_entry(0), stage_entry(1, num_beam=2, beam_width=3))
    assert cascade.length == 4 + 16
    calls = []
    tokens = cascade.generate(3, range(5), lambda: calls.append(1))
    assert len(calls) == cascade.length
    assert [part.shape for part in tokens] == [(5, 1), (5, 4), (5, 16)]
    assert torch.equal(tokens[0], cascade.draw_conditions(3, range(5)))
    for stage, search, number, coarse, fine in zip(
        cascade.stages, cascade.searches, (0, 1), tokens, tokens[1:], strict=False
    ):
        uniform = uniform_draws(3, number, range(5), fine.shape[1], search.num_beam)
        assert torch.equal(stage.sample(coarse, search, uniform)[0], fine)
    for few, many in zip(cascade.generate(3, range(1, 3)), tokens, strict=True):
        assert torch.equal(few, many[1:3])
    assert not torch.equal(cascade.generate(4, range(5))[2], tokens[2])


def test_conditions_follow_the_counts_and_not_the_number_asked_for(folder, decoder):
    cascade = load(folder, decoder, stage_entry(0))
    counts = torch.tensor([0, 6, 1, 0, 3])
    cascade.codebooks[0].counts.copy_(counts)
    drawn = cascade.draw_conditions(0, range(3000))
    assert drawn.shape == (3000, 1)
    found = torch.bincount(drawn.flatten(), minlength=5).double()
    assert found[counts == 0].sum() == 0
    expected = 3000 * counts[counts > 0] / 10
    assert ((found[counts > 0] - expected) ** 2 / expected).sum() < 13.8  # 999 of 1,000 cases, 2 degrees of freedom
    assert torch.equal(cascade.draw_conditions(0, range(7)), drawn[:7])
    assert torch.equal(cascade.draw_conditions(0, range(5, 9)), drawn[5:9])
    assert not torch.equal(cascade.draw_conditions(1, range(50)), drawn[:50])


def test_a_condition_codebook_without_counts_is_refused(folder, decoder):
    uncounted = codebook(4, 5)
    uncounted.counts.zero_()
    mark = save_codebook(uncounted, folder / "uncounted.pt")
    save_stage(build(0), folder / "uncounted_stage.pt", mark, CODEBOOKS[1].fingerprint)
    with pytest.raises(UserError, match=r"uncounted\.pt: its units were never counted"):
        load(folder, decoder, stage_entry(0, model_path="uncounted_stage", lr_codebook_path="uncounted"))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (
            [stage_entry(0, lr_codebook_path="other_0")],
            r"stage_0\.pt: does not belong with this low-resolution codebook",
        ),
        ([stage_entry(0, hr_codebook_path="other_1")], r"stage_0\.pt: does not belong with this high-resolution"),
        ([stage_entry(0), stage_entry(1, hr_codebook_path="other_2")], r"stage_1\.pt: does not belong with this high"),
        ([stage_entry(0, model_path="alien_0")], r"alien_0\.pt: does not belong with this autoencoder"),
        ([stage_entry(0), stage_entry(1, model_path="alien_1")], r"alien_1\.pt: does not belong with this autoencoder"),
        ([stage_entry(1)], r"stage_1\.pt: is a cascade stage"),
        ([stage_entry(0), stage_entry(0)], r"stage_0\.pt: is a base stage"),
        (
            [stage_entry(0), stage_entry(1), stage_entry(1)],
            r"codebook_1\.pt: is not the codebook that the stage before",
        ),
        ([stage_entry(0, model_path="none")], r"none\.pt: no such checkpoint"),
        ([stage_entry(0, model_path="codebook_0")], r"codebook_0\.pt: holds a codebook, expected a transformer"),
        ([stage_entry(0, hr_codebook_path="stage_0")], r"stage_0\.pt: holds a transformer, expected a codebook"),
    ],
)
def test_files_that_do_not_belong_together_are_named(entries, expected, folder, decoder):
    with pytest.raises(UserError, match=expected):
        load(folder, decoder, *entries)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "holds no stage"),
        ({"0": stage_entry(0), "2": stage_entry(1)}, 'unknown key \'2\'; expected stages "0" to "1"'),
        ({"base": stage_entry(0)}, "unknown key 'base'"),
        ({"0": {**stage_entry(0), "beam": 3}}, "stage 0: unknown key 'beam'"),
        ({"0": stage_entry(0), "1": {"model_path": "m.pt"}}, "stage 1: missing key 'lr_codebook_path'"),
        ({"0": stage_entry(0, temperature=0)}, "stage 0: 'temperature' is 0"),
        ({"0": stage_entry(0, keep_beam=2)}, "stage 0: 'keep_beam' is 2, expected at most 'num_beam' 1"),
        ({"0": stage_entry(0, num_beam="4")}, "stage 0: 'num_beam' is '4', expected a whole number"),
        ({"0": 3}, "stage 0: expected a JSON object"),
    ],
)
def test_a_wrong_generation_config_is_named(content, expected, tmp_path):
    path = tmp_path / "generation.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as raised:
        load_generation_config(path)
    assert str(raised.value).startswith(str(path))
    assert expected in str(raised.value)


def test_a_generation_config_holds_the_search_of_each_stage(tmp_path):
    path = tmp_path / "generation.json"
    search = {"num_beam": 4, "beam_width": 3, "keep_beam": 2, "temperature": 1.5, "top_k": 9, "top_p": 0.8}
    # The order of the file does not matter.
    path.write_text(json.dumps({"1": stage_entry(1, **search), "0": stage_entry(0)}))
    first, second = load_generation_config(path)
    assert first == GenerationConfig(**stage_entry(0))
    assert {key: getattr(first, key) for key in search} == dataclasses.asdict(SearchConfig())
    assert second.model_path == "stage_1.pt"
    assert {key: getattr(second, key) for key in search} == search
