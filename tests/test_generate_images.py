"""What generate_images.py writes and what it can be asked for, on the tiny trained cascade."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import generate_images
import train_quantized_transformer
from models.cascade import Cascade
from models.codebook import Codebook
from tests.helpers.deaths import dying, results
from tests.helpers.scripts import TINY, expect_error, expect_exit, run_main
from utils.core.replace_set import replace_set

DECODER = "autoencoder/models_checkpoint/latest.pt"
PRUNED = "models_checkpoint/pruned_codebook.pt"


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


def pixels(folder, index):
    return np.asarray(Image.open(folder / "images" / f"image_{index:05d}.png"))


def tokens(folder):
    with np.load(folder / "tokens.npz") as archive:
        return dict(archive)


def test_a_run_leaves_pictures_tokens_and_what_made_them(generate, tiny_run):
    out = generate("--num-images", 3, "--batch-size", 2, "--seed", 5)
    names = {path.name for path in (out / "images").iterdir()}
    finals = {f"image_{index:05d}.png" for index in range(3)}
    assert names == finals | {f"recon_model_{name}.png" for name in ("Cond", "0", "1", "2")}
    found = tokens(out)
    shapes = {"condition": (3, 1), "stage_0": (3, 4), "stage_1": (3, 16), "stage_2": (3, 64), "scores": (3, 3)}
    assert {name: part.shape for name, part in found.items()} == shapes
    text = {key: json.loads(value) for key, value in Image.open(out / "images/image_00001.png").text.items()}
    assert (text["seed"], text["image"], text["label"], text["keep_rows"], text["from_stage"]) == (5, 1, None, 0, 0)
    assert text["scores"] == pytest.approx(found["scores"][1].tolist(), abs=1e-3)
    config = json.loads((tiny_run / "generate.json").read_text())
    for number, stage in enumerate(text["stages"]):
        assert {
            key: config[str(number)][key] for key in ("num_beam", "beam_width", "temperature")
        }.items() <= stage.items()
    log = (out / "generate.log").read_text()
    assert f"scores of stage 2: {' '.join(f'{score:.1f}' for score in found['scores'][:, 2])}" in log


def test_the_number_of_images_never_changes_a_picture_and_older_ones_go(generate):
    generate("--num-images", 5, "--batch-size", 3, name="many")
    many = [pixels(generate("--num-images", 5, "--batch-size", 3, name="many"), index) for index in range(5)]
    out = generate("--num-images", 2, "--batch-size", 3, "--overwrite", name="many")
    assert {path.name for path in (out / "images").glob("image_*")} == {"image_00000.png", "image_00001.png"}
    assert all(np.array_equal(pixels(out, index), many[index]) for index in range(2))


def test_flags_override_the_search_of_every_stage(generate):
    flags = ("--num-beam", 3, "--beam-width", 2, "--keep-beam", 2, "--temperature", 0.5, "--top-k", 5, "--top-p", 0.9)
    out = generate("--num-images", 1, "--batch-size", 1, *flags)
    stages = json.loads(Image.open(out / "images/image_00000.png").text["stages"])
    expected = {"num_beam": 3, "beam_width": 2, "keep_beam": 2, "temperature": 0.5, "top_k": 5, "top_p": 0.9}
    assert stages == [expected | {"guidance_scale": 1.0}] * 3


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_an_animation_ends_with_the_pictures(generate, kind):
    flags = ("--animate",) if kind == "webp" else ("--animate", "gif")
    out = generate("--num-images", 4, "--batch-size", 4, *flags)
    animation = Image.open(out / "images" / f"filling_in.{kind}")
    assert 1 < animation.n_frames <= 1 + 4 + 16 + 64  # like neighbours are one
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


def test_both_precisions_write_pictures(generate):
    flags = ("--num-images", 1, "--batch-size", 1)
    for name in ("fp32", "bf16"):
        assert pixels(generate(*flags, "--precision", name, name=name), 0).shape == (32, 32, 3)


def test_a_base_stage_learns_labels_and_is_asked_for_one(generate, tiny_run, tmp_path, capsys):
    """Labels by the condition: so the usage that conditions are drawn from can be told."""
    maps = shutil.copytree(tiny_run / "feature_maps", tmp_path / "feature_maps") / "dataset.json"
    condition = Codebook.load(tiny_run / "codebook_cond" / PRUNED)
    content = json.loads(maps.read_text())
    for record in content["_default"].values():
        fmap = torch.from_numpy(np.load(maps.parent / record["fmap_path"]))
        record["labels"] = ["first", "any"] if condition.find_bmu(fmap[None]).item() == 0 else ["other", "any"]
    maps.write_text(json.dumps(content))
    config = json.loads((TINY / "transformer_0.json").read_text()) | {"use_labels": True}
    (tmp_path / "labelled.json").write_text(json.dumps(config))
    arguments = (
        "--train-base-model", "--device", "cpu", "--max-step", 4, "--test-num-sample", 4, "--dataset-path", maps,
        "--decoder-path", tiny_run / DECODER, "--config-path", tmp_path / "labelled.json",
        "--lr-codebook-path", tiny_run / "codebook_cond" / PRUNED,
        "--hr-codebook-path", tiny_run / "codebook_0" / PRUNED, "--out-dir", tmp_path / "labelled",
    )  # fmt: skip
    run_main(train_quantized_transformer.main, *arguments)
    run_main(train_quantized_transformer.main, *arguments, "--resume", "--max-step", 6)
    entry = json.loads((tiny_run / "generate.json").read_text())["0"]
    entry |= {key: str(tiny_run / value) for key, value in entry.items() if key.endswith("path")}
    entry["model_path"] = str(tmp_path / "labelled/models_checkpoint/best.pt")
    (tmp_path / "generate.json").write_text(json.dumps({"0": entry}))
    flags = ("--num-images", 12, "--batch-size", 12)
    out = generate(*flags, "--label", "first", "other", config=tmp_path / "generate.json")
    drawn = tokens(out)["condition"].flatten()
    assert (drawn[::2] == 0).all()
    assert (drawn[1::2] != 0).all()
    labels = [json.loads(Image.open(out / f"images/image_{index:05d}.png").text["label"]) for index in range(3)]
    assert labels == ["first", "other", "first"]
    generate(*flags, name="without", config=tmp_path / "generate.json")


@pytest.fixture
def starts(monkeypatch):
    """The first image of each batch that is generated."""
    found, original = [], Cascade.generate

    def call(self, request, images, *rest):
        found.append(images.start)
        return original(self, request, images, *rest)

    monkeypatch.setattr(Cascade, "generate", call)
    return found


def after(step, original):
    """`original`, with a call of `step` first."""

    def call(*args, **kwargs):
        step()
        return original(*args, **kwargs)

    return call


def completes(function, *args):
    try:
        function(*args)
    except KeyboardInterrupt:
        return False
    return True


@pytest.fixture
def quick(monkeypatch):
    """Short animations."""
    monkeypatch.setattr(generate_images, "STEPS", 2)


SET = ("--num-images", 5, "--batch-size", 2, "--animate", "gif")


@pytest.mark.usefixtures("quick")
def test_a_run_that_dies_at_any_batch_goes_on_to_the_same_bytes(generate, arguments, starts, monkeypatch):
    """Beside an older and larger set with another seed, which stays whole, and a picture of the user's."""
    whole = results(generate(*SET, name="whole"))
    old = generate("--num-images", 6, "--batch-size", 6, "--seed", 1)
    for name in ("mine.png", "image_1.png"):
        (old / "images" / name).write_bytes(b"mine")
    before = results(old)
    for name, at, made in (
        ("save_images", 0, []), ("save_arrays", 1, [0]), ("show", 0, [0, 2, 4]), ("save_arrays", 3, [0, 2, 4]),
    ):  # fmt: skip
        out = old.with_name(f"{name}_{at}")
        shutil.copytree(old, out)
        with monkeypatch.context() as patch:
            patch.setattr(generate_images, name, dying(getattr(generate_images, name), at))
            assert expect_exit(generate_images.main, arguments(*SET, "--overwrite", name=out.name)) == 130
        assert {key: value for key, value in results(out).items() if not key.startswith(".next/")} == before
        starts.clear()
        generate(*SET, "--overwrite", name=out.name)  # the finished set that is there is another
        assert starts == [start for start in (0, 2, 4) if start not in made]
        assert results(out) == whole | {"images/mine.png": b"mine", "images/image_1.png": b"mine"}


@pytest.mark.usefixtures("quick")
def test_a_damaged_batch_is_generated_again_and_another_request_takes_nothing(
    generate, arguments, starts, monkeypatch, tmp_path
):
    def die(*flags):
        with monkeypatch.context() as patch:
            patch.setattr(generate_images, "show", dying(None, 0))
            assert expect_exit(generate_images.main, arguments(*SET, *flags)) == 130
        starts.clear()

    whole = results(generate(*SET, name="whole"))
    die()
    (tmp_path / "generated/.next/images/image_00002.png").write_bytes(b"")
    (tmp_path / "generated/.next/tokens_4.npz").unlink()
    assert results(generate(*SET)) == whole
    assert starts == [2, 4]
    die("--seed", 1, "--num-images", 9, "--overwrite")
    assert results(generate(*SET, "--overwrite")) == whole
    assert starts == [0, 2, 4]


@pytest.mark.usefixtures("quick")
def test_a_set_replaces_another_wherever_that_dies(generate, arguments, monkeypatch, tmp_path):
    """No picture of one set is ever beside one of the other, nor beside its tokens."""
    new = results(generate(*SET, name="whole"))
    old = results(generate("--num-images", 7, "--batch-size", 7, "--seed", 1))
    with monkeypatch.context() as patch:
        patch.setattr(generate_images, "replace_set", dying(replace_set, 1))
        assert expect_exit(generate_images.main, arguments(*SET, "--overwrite")) == 130
    assert (tmp_path / "generated/.next/tokens.npz").is_file()
    at, out = 0, tmp_path / "copy"
    while at is not None:
        shutil.copytree(tmp_path / "generated", out)
        with monkeypatch.context() as patch:
            step = dying(lambda: None, at)
            for owner, name in ((Path, "unlink"), (Path, "replace"), (shutil, "rmtree")):
                patch.setattr(owner, name, after(step, getattr(owner, name)))
            at = None if completes(replace_set, out) else at + 1
        seen = {name: content for name, content in results(out).items() if not name.startswith(".next/")}
        assert seen.items() <= new.items() or seen.items() <= old.items()
        assert "tokens.npz" not in seen or seen in (new, old)
        replace_set(out)
        assert results(out) == new
        shutil.rmtree(out)


@pytest.mark.usefixtures("quick")
def test_a_set_that_was_complete_is_put_in_place_first_but_not_by_a_refused_command(
    generate, arguments, starts, monkeypatch, capsys
):
    new = results(generate(*SET, name="whole"))
    out = generate("--num-images", 2, "--batch-size", 2, "--seed", 1)
    with monkeypatch.context() as patch:
        patch.setattr(generate_images, "replace_set", dying(replace_set, 1))
        assert expect_exit(generate_images.main, arguments(*SET, "--overwrite")) == 130
    before = results(out)
    assert "--seed (1, now 3)" in expect_error(capsys, generate_images.main, arguments("--num-images", 2, "--seed", 3))
    assert results(out) == before
    with monkeypatch.context() as patch:
        patch.setattr(generate_images, "generate", lambda *_: None)
        generate("--num-images", 2, "--seed", 3, "--overwrite")
    assert results(out) == new


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
def test_another_request_is_refused_and_the_same_repeated(flags, named, generate, arguments, faces, tmp_path, capsys):
    config = json.loads((TINY / "generate.json").read_text())
    out = generate("--num-images", 2, "--batch-size", 2)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    changes = {}
    if flags == "config":
        run = Path(arguments()[3]).parents[2]
        for stage in config.values():
            stage |= {key: str(run / value) for key, value in stage.items() if key.endswith("_path")}
        config["1"]["temperature"] = 0.5
        changes = {"config": tmp_path / "changed.json"}
        changes["config"].write_text(json.dumps(config))
        flags = ()
    flags = [next(faces.parent.rglob("*.png")) if flag == "image" else flag for flag in flags]
    line = expect_error(
        capsys, generate_images.main, arguments("--num-images", 2, "--batch-size", 2, *flags, **changes)
    )
    assert f"another {named}" in line
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    expected = results(out)
    assert results(generate("--num-images", 2, "--batch-size", 2)) == expected


def test_a_folder_of_a_persons_own_stays(generate, arguments, capsys):
    out = generate("--num-images", 1)
    (out / "next").mkdir()
    (out / "next/mine.txt").write_text("mine")
    expect_error(capsys, generate_images.main, arguments("--num-images", 2))
    generate("--num-images", 2, "--overwrite")
    assert (out / "next/mine.txt").read_text() == "mine"
