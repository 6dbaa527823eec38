import dataclasses
import json
from itertools import combinations

import pytest
import torch

from models.autoencoder import Autoencoder, AutoencoderConfig
from models.cascade import Cascade
from models.codebook import KIND as CODEBOOK_KIND
from models.codebook import Codebook
from models.requests import GenerationConfig, Request, change_sampling, load_generation_config
from models.stage import KIND, Stage
from tests.helpers.stages import CODEBOOKS, build, codebook, generator, tokens_for
from utils.core.files import UserError
from utils.runs.checkpoint import save_checkpoint
from utils.sampling import SamplingConfig, uniform_draws

CPU = torch.device("cpu")


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    built = Autoencoder(AutoencoderConfig(1e-3, 3, 4, 4, 1, 2, "silu", False, "tanh", False, "tanh"))
    built.encoder_fingerprint = "encoder0"
    return built


def save_codebook(built, path):
    save_checkpoint(path, CODEBOOK_KIND, built.config, built.state_dict(), trained_from={"encoder": "encoder0"})
    return built.fingerprint


def save_stage(stage, path, coarse, fine, encoder="encoder0"):
    trained_from = {"lr_codebook": coarse, "hr_codebook": fine, "encoder": encoder}
    save_checkpoint(path, KIND, stage.config, stage.state_dict(), trained_from=trained_from)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole cascade on disk, and other codebooks of the same shapes. Tests add files, but change none of these."""
    folder = tmp_path_factory.mktemp("cascade")
    marks = [save_codebook(built, folder / f"codebook_{i}.pt") for i, built in enumerate(CODEBOOKS)]
    for i, (patch, units) in enumerate([(4, 5), (2, 6), (1, 7)]):
        save_codebook(codebook(patch, units, seed=50), folder / f"other_{i}.pt")
    for number in (0, 1):
        save_stage(build(number), folder / f"stage_{number}.pt", *marks[number : number + 2])
        save_stage(build(number), folder / f"alien_{number}.pt", *marks[number : number + 2], encoder="encoder1")
    uncounted = codebook(4, 5)
    uncounted.counts.zero_()
    mark = save_codebook(uncounted, folder / "uncounted.pt")
    save_stage(build(0), folder / "uncounted_stage.pt", mark, CODEBOOKS[1].fingerprint)
    return folder


def stage_entry(number, **changes):
    names = {"model_path": f"stage_{number}", "lr_codebook_path": f"codebook_{number}"}
    names = {**names, "hr_codebook_path": f"codebook_{number + 1}", **changes}
    return {key: f"{value}.pt" if key.endswith("path") else value for key, value in names.items()}


def load(folder, decoder, *entries):
    path = folder / "generation.json"
    path.write_text(json.dumps({str(i): entry for i, entry in enumerate(entries)}))
    return Cascade(load_generation_config(path), folder, decoder, CPU)


def test_a_saved_stage_comes_back_the_same(folder):
    stage, (coarse, fine) = build(1), tokens_for(1, 2)
    loaded = Stage.load(folder / "stage_1.pt", *(Codebook.load(folder / f"codebook_{i}.pt") for i in (1, 2)))
    assert (loaded.config, loaded.origin["encoder"], loaded.training) == (stage.config, "encoder0", False)
    assert torch.equal(loaded(coarse, fine)["loss"], stage(coarse, fine)["loss"])


def test_a_cascade_generates_the_tokens_of_every_stage(folder, decoder):
    cascade = load(folder, decoder, stage_entry(0), stage_entry(1, num_beam=2, beam_width=3))
    assert cascade.length == 4 + 16
    calls, request = [], Request(seed=3)
    tokens, scores = cascade.generate(request, range(5), calls.append)
    assert sum(calls) == cascade.length
    assert [part.shape for part in tokens] == [(5, 1), (5, 4), (5, 16)]
    assert torch.equal(tokens[0], cascade.conditions(request, range(5)))
    stages = zip(cascade.stages, cascade.configs, (0, 1), tokens, tokens[1:], strict=False)
    for stage, search, number, coarse, fine in stages:
        uniform = uniform_draws(3, number, range(5), fine.shape[1], search.num_beam)
        result, score = stage.sample(coarse, search, uniform)
        assert torch.equal(result, fine)
        assert torch.equal(score, scores[:, number])
    for few, many in zip(cascade.generate(request, range(1, 3))[0], tokens, strict=True):
        assert torch.equal(few, many[1:3])
    assert not torch.equal(cascade.generate(Request(seed=4), range(5))[0][2], tokens[2])


def test_conditions_follow_the_counts_and_not_the_number_asked_for(folder, decoder):
    cascade = load(folder, decoder, stage_entry(0))
    counts = torch.tensor([0, 6, 1, 0, 3])
    cascade.codebooks[0].counts.copy_(counts)
    drawn = cascade.conditions(Request(), range(3000))
    assert drawn.shape == (3000, 1)
    result = torch.bincount(drawn.flatten(), minlength=5).double()
    assert result[counts == 0].sum() == 0
    expected = 3000 * counts[counts > 0] / 10
    assert ((result[counts > 0] - expected) ** 2 / expected).sum() < 13.8  # 999 of 1,000 cases, 2 degrees of freedom
    assert torch.equal(cascade.conditions(Request(), range(7)), drawn[:7])
    assert torch.equal(cascade.conditions(Request(), range(5, 9)), drawn[5:9])
    assert not torch.equal(cascade.conditions(Request(seed=1), range(50)), drawn[:50])


MISFITS = [
    ([stage_entry(0, lr_codebook_path="other_0")], r"stage_0\.pt: was made with another lr_codebook"),
    ([stage_entry(0, hr_codebook_path="other_1")], r"stage_0\.pt: was made with another hr_codebook"),
    ([stage_entry(0), stage_entry(1, hr_codebook_path="other_2")], r"stage_1\.pt: was made with another hr_codebook"),
    ([stage_entry(0, model_path="alien_0")], r"alien_0\.pt: was made with another encoder"),
    ([stage_entry(0), stage_entry(1, model_path="alien_1")], r"alien_1\.pt: was made with another encoder"),
    ([stage_entry(1)], r"stage_1\.pt: is a cascade stage"),
    ([stage_entry(0), stage_entry(0)], r"stage_0\.pt: is a base stage"),
    ([stage_entry(0), stage_entry(1), stage_entry(1)], r"codebook_1\.pt: is not the codebook that the stage before"),
    ([stage_entry(0, model_path="none")], r"none\.pt: no such checkpoint"),
    ([stage_entry(0, model_path="codebook_0")], r"codebook_0\.pt: holds a codebook, expected a transformer"),
    ([stage_entry(0, hr_codebook_path="stage_0")], r"stage_0\.pt: holds a transformer, expected a codebook"),
    ([stage_entry(0, model_path="uncounted_stage", lr_codebook_path="uncounted")],
     r"uncounted\.pt: its units were never counted"),
    ([stage_entry(0), stage_entry(1, guidance_scale=1.5)],  # it has not learned without a condition
     r"stage_1\.pt: 'guidance_scale' is 1\.5, but the stage was trained without"),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "expected"), MISFITS)
def test_files_that_do_not_belong_together_are_named(entries, expected, folder, decoder):
    with pytest.raises(UserError, match=expected):
        load(folder, decoder, *entries)


def test_a_generation_config_holds_the_search_of_each_stage(tmp_path):
    path = tmp_path / "generation.json"
    search = {"num_beam": 4, "beam_width": 3, "keep_beam": 2, "temperature": 1.5, "top_k": 9, "top_p": 0.8}
    search |= {"guidance_scale": 2.0}
    # The order of the file does not matter.
    path.write_text(json.dumps({"1": stage_entry(1, **search), "0": stage_entry(0)}))
    first, second = load_generation_config(path)
    assert first == GenerationConfig(**stage_entry(0))
    assert {key: getattr(first, key) for key in search} == dataclasses.asdict(SamplingConfig())
    assert second.model_path == "stage_1.pt"
    assert {key: getattr(second, key) for key in search} == search


def test_changes_reach_every_stage_or_each_its_own_and_are_checked(tmp_path):
    path = tmp_path / "generation.json"
    path.write_text(json.dumps({"0": stage_entry(0, temperature=0.5), "1": stage_entry(1, num_beam=2, keep_beam=2)}))
    configs = load_generation_config(path)
    first, second = change_sampling(configs, temperature=2.0, num_beam=3, top_p=(0.5, None))
    assert (first.temperature, second.temperature) == (2.0, 2.0)
    assert (first.num_beam, second.num_beam, second.keep_beam) == (3, 3, 2)
    assert (first.top_p, second.top_p) == (0.5, None)
    assert change_sampling(configs)[1] == SamplingConfig(num_beam=2, keep_beam=2)
    with pytest.raises(UserError, match=r"stage 1: 'keep_beam' is 2, expected at most 'num_beam' 1"):
        change_sampling(configs, num_beam=1)
    with pytest.raises(UserError, match=r"'top_k' has 3 values; give one for all stages, or one for each of the 2"):
        change_sampling(configs, top_k=(1, 2, 3))
    with pytest.raises(UserError, match=r"stage 0: unknown key 'temprature'; did you mean 'temperature'\?"):
        change_sampling(configs, temprature=1.0)


# --- What a person asks for ---


@pytest.fixture
def cascade(folder, decoder):
    return load(folder, decoder, stage_entry(0), stage_entry(1, num_beam=2, beam_width=3))


def pictures(number, seed=0):
    return torch.rand(number, 3, 8, 8, generator=generator(seed)) * 2 - 1


def test_given_conditions_are_taken_in_turn(cascade):
    with pytest.raises(UserError, match="unit 5: the condition codebook has units 0 to 4"):
        cascade.check(Request(conditions=(1, 5)))
    tokens, _ = cascade.generate(Request(conditions=(4, 0)), range(1, 6))
    assert tokens[0].flatten().tolist() == [0, 4, 0, 4, 0]
    drawn, _ = cascade.generate(Request(), range(200))
    for image in (drawn[0][:, 0] == 4).nonzero().flatten().tolist()[:3]:
        given, _ = cascade.generate(Request(conditions=(4,)), range(image, image + 1))
        assert torch.equal(given[2][0], drawn[2][image])  # the same draws, whether the condition was drawn or given


@pytest.mark.parametrize("rows", [1, 2])
def test_kept_rows_are_kept_in_every_stage_and_the_rest_is_written(cascade, decoder, rows):
    start = cascade.tokens(pictures(2))
    assert cascade.image_size == (8, 8)
    for part, book in zip(start, CODEBOOKS, strict=True):
        assert torch.equal(part, book.find_bmu(decoder.encode(pictures(2))))
    many = cascade.tokens(pictures(2).repeat(40, 1, 1, 1))  # more than are encoded at once
    assert all(map(torch.equal, many, (part.repeat(40, 1) for part in start)))
    tokens, scores = cascade.generate(Request(init_tokens=start, keep_rows=rows), range(6))
    turn = [0, 1, 0, 1, 0, 1]
    assert torch.equal(tokens[0], start[0][turn])
    for part, origin, width in ((tokens[1], start[1], 2), (tokens[2], start[2], 8)):  # 8: two rows of 4 a coarse row
        assert torch.equal(part[:, : rows * width], origin[turn][:, : rows * width])
    assert scores.isfinite().all()
    if rows == 1:
        assert len(tokens[2][::2, 8:].unique(dim=0)) == 3


def test_earlier_stages_are_taken_over_and_have_no_score(cascade):
    start, calls = cascade.tokens(pictures(2)), []
    tokens, scores = cascade.generate(Request(init_tokens=start, from_stage=1), range(4), calls.append)
    assert sum(calls) == cascade.length
    for part, origin in zip(tokens[:2], start[:2], strict=True):
        assert torch.equal(part, origin[[0, 1, 0, 1]])
    assert not torch.equal(tokens[2], start[2][[0, 1, 0, 1]])
    assert scores[:, 0].isnan().all()
    assert scores[:, 1].isfinite().all()


@pytest.fixture
def labelled(folder, decoder):
    """A cascade that knows labels: of ten images, 1 to 3 of each kind."""
    stage = build(0, labels=("cats", "dogs", "night"), use_labels=True)
    rows = [[0, 0, 3, 3]] * 2 + [[3, 0, 2, 3]] + [[1, 1, 3, 3]] * 3 + [[1, 1, 2, 3]] + [[4, 3, 3, 3]] * 3
    stage.count_labels(torch.tensor(rows))
    save_stage(stage, folder / "labelled.pt", CODEBOOKS[0].fingerprint, CODEBOOKS[1].fingerprint)
    return load(folder, decoder, stage_entry(0, model_path="labelled"))


def test_labels_are_asked_for_and_conditions_drawn_as_their_images_have_them(labelled):
    assert labelled.labels == ("cats", "dogs", "night")
    texts = ("cats", "night", "night+dogs", "", "night+dogs+cats")
    tokens, _ = labelled.generate(Request(labels=texts), range(2000))
    drawn = [tokens[0][start::5].flatten() for start in range(5)]
    # No image has the second alone, or all three.
    assert [part.unique().tolist() for part in drawn] == [[0], [1, 3], [1], [4], [1, 3]]
    assert (drawn[1] == 3).sum().item() == pytest.approx(200, abs=45)

    def written(text):
        return labelled.generate(Request(conditions=(2,), labels=(text,)), range(50))[0][1]

    assert torch.equal(written("cats+night"), written("night+cats"))
    asked = [written(text) for text in ("cats", "night", "cats+night", "")]
    assert not any(torch.equal(one, other) for one, other in combinations(asked, 2))
    with pytest.raises(UserError, match="label 'bird': this model does not know it; labels that it knows: cats, dogs"):
        labelled.check(Request(labels=("cats+bird",)))
    uniform = uniform_draws(0, 0, range(50), 4, 1)
    stage, units = labelled.stages[0], torch.full((50, 1), 2)
    assert torch.equal(asked[2], stage.sample(stage.with_labels(units, [(0, 2)] * 50), SamplingConfig(), uniform)[0])


def test_labels_that_are_not_asked_for_are_those_of_training_images_in_proportion(labelled):
    request = Request(seed=1)
    tokens, _ = labelled.generate(request, range(2000))
    drawn = list(zip(tokens[0].flatten().tolist(), labelled.labels_of(request, range(2000)), strict=True))
    shares = {(0, "cats"): 2, (3, "cats+night"): 1, (1, "dogs"): 3, (1, "dogs+night"): 1, (4, ""): 3}
    assert set(drawn) == set(shares)
    expected = [(drawn.count(key), 200 * number) for key, number in shares.items()]
    assert sum((count - mean) ** 2 / mean for count, mean in expected) < 18.5  # 999 of 1,000 cases, 4 degrees
    # As many as are asked for; the base stage gets them.
    assert labelled.labels_of(request, range(500, 507)) == [text for _, text in drawn[500:507]]
    assert torch.equal(labelled.generate(request, range(500, 507))[0][1], tokens[1][500:507])
    again, _ = labelled.generate(Request(seed=1, labels=tuple(text for _, text in drawn)[:50]), range(50))
    same = (again[0] == tokens[0][:50]).flatten()
    assert same.any()
    assert torch.equal(again[1][same], tokens[1][:50][same])

    # By the condition if that is given; one for a walk, and none where the base stage writes nothing.
    texts = labelled.labels_of(Request(conditions=(1, 4)), range(200))
    assert (set(texts[::2]), set(texts[1::2])) == ({"dogs", "dogs+night"}, {""})
    assert labelled.labels_of(Request(conditions=(2,)), range(200)).count("") == pytest.approx(60, abs=25)
    places = labelled.way(3, 1, 4)
    assert labelled.labels_of(Request(places=places, same_draws=True), range(4)) == ["cats+night"] * 4
    given = tuple(part[:1] for part in tokens)
    for texts in ((), ("dogs",)):
        assert labelled.labels_of(Request(init_tokens=given, from_stage=1, labels=texts), range(2)) == [None] * 2
    with pytest.raises(UserError, match="give init_tokens"):
        labelled.check(Request(keep_rows=1))
    assert labelled.labels_of(Request(init_tokens=given, keep_rows=1), range(1)) != [None]


# --- The picture as it fills in ---


def test_a_picture_fills_in_token_by_token(cascade):
    tokens, _ = cascade.generate(Request(), range(3))
    frames = list(cascade.filling_in(tokens, steps=16))
    assert len(frames) == 1 + 4 + 16
    for level, frame in ((0, frames[0]), (1, frames[4]), (2, frames[20])):
        assert torch.allclose(frame, cascade.decode(tokens[level], level), atol=1e-6)
    fmaps = [book.lookup(part) for book, part in zip(cascade.codebooks, tokens, strict=True)]
    for written in range(1, 17):  # of the last stage, whose cells are single
        mixed = fmaps[1].clone().flatten(2)
        mixed[:, :, :written] = fmaps[2].flatten(2)[:, :, :written]
        expected = cascade.decoder.decode(mixed.view(fmaps[1].shape))
        assert torch.allclose(frames[4 + written], expected, atol=1e-6)
    few = list(cascade.filling_in(tokens, steps=3))
    assert len(few) == 1 + 2 + 3
    assert torch.equal(few[-1], frames[-1])
