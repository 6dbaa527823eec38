"""What generate_images.py writes and what it can be asked for, on the tiny trained cascade."""

import json
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import generate_images
import train_quantized_transformer
from models.cascade import Cascade
from models.codebook import Codebook
from models.stage import KIND
from tests.helpers.deaths import dying, results
from tests.helpers.files import contents, edited
from tests.helpers.runs import PRUNED
from tests.helpers.scripts import TINY, expect_error, expect_exit, run_main
from utils.core.replace_set import replace_set
from utils.runs.checkpoint import load_checkpoint

DECODER = "autoencoder/models_checkpoint/latest.pt"


@pytest.fixture
def arguments(tiny_run, tmp_path):
    """A function: the arguments with these flags."""

    def make(*flags, name="generated", config=tiny_run / "generate.json"):
        common = ("--device", "cpu", "--decoder-path", tiny_run / DECODER, "--config-path", config)
        return *common, "--out-dir", tmp_path / name, *flags

    return make


@pytest.fixture
def generate(arguments, tmp_path):
    """A function: generate with these flags; returns the output folder."""

    def call(*flags, name="generated", **changes):
        run_main(generate_images.main, *arguments(*flags, name=name, **changes))
        return tmp_path / name

    return call


def tokens(folder):
    with np.load(folder / "tokens.npz") as archive:
        return dict(archive)


def test_a_run_leaves_pictures_tokens_and_what_made_them(generate, tiny_run):
    out = generate("--num-images", 3, "--batch-size", 2, "--seed", 5)
    names = {path.name for path in (out / "images").iterdir()}
    finals = {f"image_{index:05d}.png" for index in range(3)}
    assert names == finals | {f"recon_model_{name}.png" for name in ("Cond", "0", "1", "2")}
    arrays = tokens(out)
    shapes = {"condition": (3, 1), "stage_0": (3, 4), "stage_1": (3, 16), "stage_2": (3, 64), "scores": (3, 3)}
    assert {name: part.shape for name, part in arrays.items()} == shapes
    text = {key: json.loads(value) for key, value in Image.open(out / "images/image_00001.png").text.items()}
    assert (text["seed"], text["image"], text["label"], text["keep_rows"], text["from_stage"]) == (5, 1, None, 0, 0)
    assert text["scores"] == pytest.approx(arrays["scores"][1].tolist(), abs=1e-3)
    config = json.loads((tiny_run / "generate.json").read_text())
    for number, stage in enumerate(text["stages"]):
        given = {key: config[str(number)][key] for key in ("num_beam", "beam_width", "temperature")}
        assert given.items() <= stage.items()
    log = (out / "generate.log").read_text()
    assert f"scores of stage 2: {' '.join(f'{score:.1f}' for score in arrays['scores'][:, 2])}" in log


def test_the_number_of_images_never_changes_a_picture_and_older_ones_go(generate):
    out = generate("--num-images", 5, "--batch-size", 3)
    before = results(out)
    assert results(generate("--num-images", 5, "--batch-size", 3)) == before
    generate("--num-images", 2, "--batch-size", 3, "--overwrite")
    after = results(out)
    assert {name for name in after if name.startswith("images/image_")} == {
        f"images/image_0000{index}.png" for index in range(2)
    }
    assert all(after[name] == before[name] for name in after if name.startswith("images/image_"))


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_an_animation_ends_with_the_pictures(generate, quick, kind):
    out = generate("--num-images", 4, "--batch-size", 4, "--animate", *([kind] if kind == "gif" else []))
    animation = Image.open(out / "images" / f"filling_in.{kind}")
    assert 1 < animation.n_frames <= 1 + 3 * generate_images.STEPS  # like neighbours are one
    assert animation.info["loop"] == 0
    animation.seek(animation.n_frames - 1)
    last = np.asarray(animation.convert("RGB")).astype(float)
    grid = np.asarray(Image.open(out / "images/recon_model_2.png")).astype(float)
    assert last.shape == grid.shape
    assert np.abs(last - grid).mean() < 6


def test_conditions_come_from_units_or_images(generate, faces, tiny_run):
    units = tokens(generate("--num-images", 3, "--batch-size", 3, "--condition-index", 1, 0, name="units"))
    assert units["condition"].flatten().tolist() == [1, 0, 1]
    images = sorted(faces.parent.rglob("*.png"))[:2]
    like = tokens(generate("--num-images", 3, "--batch-size", 3, "--condition-image", *images, name="like"))
    start = tokens(
        generate("--num-images", 3, "--init-image", *images, "--from-stage", 2, "--batch-size", 3, name="start")
    )
    assert np.array_equal(like["condition"], start["condition"])
    assert like["condition"][0] == like["condition"][2]


def test_images_are_completed_and_drawn_anew_in_detail(generate, faces, tmp_path):
    """Also one of another size and shape, whose centre is taken."""
    path = sorted(faces.parent.rglob("*.png"))[0]
    wide = Image.new("RGB", (128, 64), "white")
    wide.paste(Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.NEAREST), (32, 0))
    wide.save(tmp_path / "wide.png")
    flags = ("--num-images", 2, "--batch-size", 2, "--init-image", path, tmp_path / "wide.png")
    detail = tokens(generate(*flags, "--from-stage", 2, name="detail"))
    assert np.array_equal(detail["stage_1"][0], detail["stage_1"][1])
    assert np.isnan(detail["scores"][:, :2]).all()
    assert np.isfinite(detail["scores"][:, 2]).all()
    text = Image.open(tmp_path / "detail/images/image_00000.png").text
    assert json.loads(text["scores"])[:2] == [None, None]
    kept = tokens(generate(*flags, "--keep-rows", 1, name="kept"))
    assert np.array_equal(kept["stage_1"][:, :8], detail["stage_1"][:, :8])
    assert np.isfinite(kept["scores"]).all()


def test_a_base_stage_learns_labels_and_is_asked_for_some(generate, arguments, tiny_run, tmp_path, capsys):
    """Labels by the condition: so the usage that conditions are drawn from can be told."""
    maps = shutil.copytree(tiny_run / "feature_maps", tmp_path / "feature_maps") / "dataset.json"
    condition = Codebook.load(tiny_run / "codebook_cond" / PRUNED)
    with edited(maps) as content:
        for record in content["_default"].values():
            fmap = torch.from_numpy(np.load(maps.parent / record["fmap_path"]))
            record["labels"] = ["first", "any"] if condition.find_bmu(fmap[None]).item() == 0 else ["other", "any"]
    config = json.loads((TINY / "transformer_0.json").read_text()) | {"use_labels": True}
    (tmp_path / "labelled.json").write_text(json.dumps(config))
    training = (
        "--train-base-model", "--device", "cpu", "--max-step", 4, "--test-num-sample", 4, "--dataset-path", maps,
        "--decoder-path", tiny_run / DECODER, "--config-path", tmp_path / "labelled.json",
        "--lr-codebook-path", tiny_run / "codebook_cond" / PRUNED,
        "--hr-codebook-path", tiny_run / "codebook_0" / PRUNED, "--out-dir", tmp_path / "labelled",
    )  # fmt: skip
    run_main(train_quantized_transformer.main, *training)
    run_main(train_quantized_transformer.main, *training, "--resume", "--max-step", 6)
    run_main(train_quantized_transformer.main, *training[:-1], tmp_path / "whole", "--max-step", 6)
    paths = [tmp_path / name / "models_checkpoint/latest.pt" for name in ("labelled", "whole")]
    resumed, whole = (load_checkpoint(path, KIND)["model"] for path in paths)
    assert resumed.keys() == whole.keys() > {"label.weight", "label_sets"}
    assert all(torch.equal(resumed[name], weights) for name, weights in whole.items())
    entry = json.loads((tiny_run / "generate.json").read_text())["0"]
    entry |= {key: str(tiny_run / value) for key, value in entry.items() if key.endswith("path")}
    entry["model_path"] = str(tmp_path / "labelled/models_checkpoint/best.pt")
    (tmp_path / "generate.json").write_text(json.dumps({"0": entry}))
    flags = ("--num-images", 12, "--batch-size", 12)
    out = generate(*flags, "--label", "any+first", "other", config=tmp_path / "generate.json")
    drawn = tokens(out)["condition"].flatten()
    assert (drawn[::2] == 0).all()
    assert (drawn[1::2] != 0).all()
    assert labels_in(out, 3) == ["any+first", "other", "any+first"]
    assert "labels: any+first, other, any+first" in (out / "generate.log").read_text()

    # Without the flag those of training images, in any number.
    flags = ("--num-images", 40, "--batch-size", 40)
    out = generate(*flags, name="without", config=tmp_path / "generate.json")
    kinds = ["any+first" if unit == 0 else "any+other" for unit in tokens(out)["condition"].flatten()]
    assert labels_in(out, 40) == kinds
    assert len(set(kinds)) == 2
    with Image.open(out / "images/recon_model_0.png") as grid:
        assert json.loads(grid.text["labels"]) == kinds
    few = generate("--num-images", 3, "--batch-size", 2, name="few", config=tmp_path / "generate.json")
    assert labels_in(few, 3) == kinds[:3]
    unknown = arguments("--label", "any+frist", name="none", config=tmp_path / "generate.json")
    line = expect_error(capsys, generate_images.main, unknown)
    assert "label 'frist': this model does not know it; did you mean 'first'?" in line


def labels_in(out, number):
    """The labels in the text of the first pictures."""
    return [json.loads(Image.open(out / f"images/image_{index:05d}.png").text["label"]) for index in range(number)]


MODELS = {}  # that `quick` has loaded, by the path of their config and the images in a batch


@pytest.fixture
def quick(monkeypatch):
    """Tokens of dice in place of samples, models that are loaded once, short animations; yields the starts of batches.

    With these, too, a picture depends on the seed and on its number alone.
    """
    starts, load = [], generate_images.load_cascade

    def generate(self, request, images, count):
        starts.append(images.start)
        dice = [torch.Generator().manual_seed(1000 * request.seed + image) for image in images]
        lengths = [1, *(stage.config.fine.length for stage in self.stages)]
        tokens = [
            torch.stack([torch.randint(len(book), (length,), generator=die) for die in dice])
            for book, length in zip(self.codebooks, lengths, strict=True)
        ]
        return tokens, torch.stack([torch.rand(len(self.stages), generator=die) for die in dice])

    def load_once(options, device):
        key = options.config_path, options.batch_size
        if key not in MODELS:
            MODELS[key] = load(options, device)
        return MODELS[key]

    monkeypatch.setattr(Cascade, "generate", generate)
    monkeypatch.setattr(generate_images, "load_cascade", load_once)
    monkeypatch.setattr(generate_images, "STEPS", 2)
    return starts


SET = ("--num-images", 5, "--batch-size", 2, "--animate", "gif")


@pytest.fixture
def die(arguments, monkeypatch):
    """A function: generate the set with more flags, and die at a call of a function of the script."""

    def call(function, at, *flags, **changes):
        with monkeypatch.context() as patch:
            patch.setattr(generate_images, function, dying(getattr(generate_images, function), at))
            assert expect_exit(generate_images.main, arguments(*SET, *flags, **changes)) == 130

    return call


def test_a_run_that_dies_at_any_batch_goes_on_to_the_same_bytes(generate, die, quick):
    """Beside an older and larger set with another seed, which stays whole, and a picture of the user's."""
    whole = results(generate(*SET, name="whole"))
    old = generate("--num-images", 6, "--batch-size", 6, "--seed", 1)
    for name in ("mine.png", "image_1.png"):
        (old / "images" / name).write_bytes(b"mine")
    before = results(old)
    for name, at, done in (
        ("save_image", 1, []), ("save_arrays", 1, [0]), ("show", 0, [0, 2, 4]), ("save_arrays", 3, [0, 2, 4]),
    ):  # fmt: skip
        out = shutil.copytree(old, old.with_name(f"{name}_{at}"))
        die(name, at, "--overwrite", name=out.name)
        assert {key: value for key, value in results(out).items() if not key.startswith(".next/")} == before
        quick.clear()
        generate(*SET, "--overwrite", name=out.name)  # the finished set that is there is another
        assert quick == [start for start in (0, 2, 4) if start not in done]
        assert results(out) == whole | {"images/mine.png": b"mine", "images/image_1.png": b"mine"}


def test_a_damaged_batch_is_generated_again_and_another_request_takes_nothing(generate, die, quick, tmp_path):
    whole = results(generate(*SET, name="whole"))
    die("show", 0)
    (tmp_path / "generated/.next/images/image_00002.png").write_bytes(b"")
    (tmp_path / "generated/.next/tokens_4.npz").unlink()
    quick.clear()
    assert results(generate(*SET)) == whole
    assert quick == [2, 4]
    die("show", 0, "--seed", 1, "--num-images", 9, "--overwrite")
    quick.clear()
    assert results(generate(*SET, "--overwrite")) == whole
    assert quick == [0, 2, 4]


def after(step, original):
    return lambda *args, **more: step() or original(*args, **more)


def test_a_set_replaces_another_wherever_that_dies(generate, die, quick, arguments, monkeypatch, tmp_path, capsys):
    """No picture of one set is ever beside one of the other, nor beside its tokens. The next command begins with it."""
    new = results(generate(*SET, name="whole"))
    out = generate("--num-images", 7, "--batch-size", 7, "--seed", 1)
    old = results(out)
    die("replace_set", 1, "--overwrite")
    before = results(out)
    assert (out / ".next/tokens.npz").is_file()
    assert "--seed (1, now 3)" in expect_error(capsys, generate_images.main, arguments("--num-images", 7, "--seed", 3))
    assert results(out) == before
    for at in count():
        copy = shutil.copytree(out, tmp_path / str(at))
        with monkeypatch.context() as patch:
            step = dying(lambda: None, at)
            for owner, name in ((Path, "unlink"), (Path, "replace"), (shutil, "rmtree")):
                patch.setattr(owner, name, after(step, getattr(owner, name)))
            with suppress(KeyboardInterrupt):
                replace_set(copy)
                break
        seen = {name: content for name, content in results(copy).items() if not name.startswith(".next/")}
        assert seen.items() <= new.items() or seen.items() <= old.items()
        assert "tokens.npz" not in seen or seen in (new, old)
        replace_set(copy)
        assert results(copy) == new
    assert at > len(new)
    with monkeypatch.context() as patch:
        patch.setattr(generate_images, "generate", lambda *_: None)
        generate("--num-images", 2, "--seed", 3, "--overwrite")
    assert results(copy) == results(out) == new


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--seed", 1), "--seed (0, now 1)"),
        (("--num-images", 3), "--num-images"),
        (("--animate",), "--animate (not given, now webp)"),
        (("--top-k", 3), "--top-k"),
        (("--condition-index", 1), "--condition-index"),
        (("--condition-image", "image"), "given units or images"),
        (("--precision", "bf16"), "--precision"),
        ("config", "sampling"),
    ],
)
def test_another_request_is_refused(flags, named, generate, arguments, quick, faces, tiny_run, write_json, capsys):
    out = generate("--num-images", 2, "--batch-size", 2)
    (out / "next").mkdir()  # a folder of a person's own, not .next
    (out / "next/mine.txt").write_text("mine")
    before = contents(out)
    changes = {}
    if flags == "config":
        config, flags = json.loads((TINY / "generate.json").read_text()), ()
        for stage in config.values():
            stage |= {key: str(tiny_run / value) for key, value in stage.items() if key.endswith("_path")}
        config["1"]["temperature"] = 0.5
        changes = {"config": write_json(out.with_name("changed.json"), config)}
    flags = [next(faces.parent.rglob("*.png")) if flag == "image" else flag for flag in flags]
    line = expect_error(
        capsys, generate_images.main, arguments("--num-images", 2, "--batch-size", 2, *flags, **changes)
    )
    assert f"another {named}" in line
    assert contents(out) == before
    generate("--num-images", 2, "--batch-size", 2, *flags, "--overwrite", **changes)
    assert (out / "next/mine.txt").read_text() == "mine"
