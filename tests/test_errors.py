"""Every file that is wrong gets its one line and exit status 2, and what is there already stays as it is."""

import dataclasses
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch

import generate_fmap_dataset
import generate_images
import prune_codebook
from evaluation.run import TrainedRun
from models.autoencoder import Autoencoder
from tests.helpers import runs
from tests.helpers.files import edited
from tests.helpers.runs import PRUNED, WEIGHTS
from tests.helpers.scripts import TINY, expect_error, run_main
from utils.core.files import UserError
from utils.core.options import words_of
from utils.data.checksums import checksum
from utils.runs.checkpoint import fingerprint
from utils.runs.folders import RunFolder
from utils.runtime.device import choose_device

MAINS = {
    "autoencoder": runs.MAINS["autoencoder"],
    "feature_maps": generate_fmap_dataset.main,
    "codebook_1": runs.MAINS["codebook_1"],
    "prune": prune_codebook.main,
    "decoder": runs.MAINS["autoencoder"],
    "transformer_1": runs.MAINS["transformer_1"],
    "generated": generate_images.main,
}
BEST = "models_checkpoint/best.pt"
MAPS, DECODER = "feature_maps/dataset.json", f"autoencoder/{WEIGHTS}"
COARSE, FINE = f"codebook_0/{PRUNED}", f"codebook_1/{PRUNED}"


@pytest.fixture(scope="module")
def run(tiny_run, faces, tmp_path_factory):
    """A copy of the run that commands may write over, with its images in `data`."""
    run = tmp_path_factory.mktemp("errors") / "run"
    shutil.copytree(tiny_run, run)
    shutil.copytree(tiny_run / "autoencoder", run / "decoder")
    shutil.copytree(faces.parent, run / "data")
    return run


def good(run, step):
    """Flags with which the script of a step works, its results in the place where they are already."""
    config, maps, decoder = {"config_path": TINY / f"{step}.json"}, {"dataset_path": run / MAPS}, run / DECODER
    images, books = {"dataset_path": run / "data/dataset.json"}, [run / COARSE, run / FINE]
    flags = {
        "autoencoder": images | config | {"max_step": 1},
        "feature_maps": images | {"model_path": decoder},
        "codebook_1": maps | config | {"decoder_path": decoder, "max_step": 1},
        "prune": maps | {"codebook_path": run / "codebook_1" / WEIGHTS, "prune_threshold": 1},
        "decoder": images | {"config_path": TINY / "autoencoder.json", "max_step": 1}
        | {"encoder_path": decoder, "hr_codebook_path": run / f"codebook_2/{PRUNED}"},
        "transformer_1": maps | config | {"decoder_path": decoder, "max_step": 1}
        | {"lr_codebook_path": books[0], "hr_codebook_path": books[1]},
        "generated": {"decoder_path": decoder, "config_path": run / "generate.json", "num_images": 1},
    }[step]  # fmt: skip
    out = run / ("codebook_1" if step == "prune" else step)
    return flags | {"out_dir": out, "overwrite": True, "device": "cpu"}


def state_of(folder):
    """Every file but the logs, which tell of failed attempts too: its size and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"]
    assert len(files) > 100
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def refused(run, capsys):
    """A function: run a script with changed flags, which must fail and damage nothing; returns the line."""

    def call(step, **changes):
        before = state_of(run)
        line = expect_error(capsys, MAINS[step], words_of(good(run, step) | changes))
        assert state_of(run) == before
        return line

    return call


STAGE, BOOK, IMAGES = f"transformer_1/{WEIGHTS}", f"codebook_1/{WEIGHTS}", "data/dataset.json"
# What a step does not take: a decoder's flags, the weights of another start, an exported model.
APART = {"autoencoder": {"encoder_path", "hr_codebook_path"}, "decoder": {"model_path"}, "generated": {"model"}}


def paths_of(step):
    """The flags of a step that name a file which it reads."""
    options = sys.modules[MAINS[step].__module__].Options
    names = {field.name for field in dataclasses.fields(options) if "Path" in str(field.type)}
    return sorted(names - {"out_dir"} - APART.get(step, set()))


def other_kind(step, flag):
    """A file of the run that is of another kind than a flag takes."""
    if flag == "dataset_path":
        return MAPS if step in ("autoencoder", "feature_maps", "decoder") else IMAGES
    if flag == "config_path":
        return IMAGES if step == "generated" else "generate.json"
    return IMAGES if "image" in flag else STAGE if "codebook" in flag else BOOK


@pytest.mark.parametrize(("step", "flag"), [(step, flag) for step in MAINS for flag in paths_of(step)])
def test_a_file_that_is_missing_a_folder_garbage_or_of_another_kind_is_named(step, flag, refused, run, tmp_path):
    garbage, more = tmp_path / "garbage.bin", {"from_stage": 1} if flag == "init_image" else {}
    garbage.write_bytes(b"PK\x03\x04" + bytes(40) if flag.endswith("path") else b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
    for path in (tmp_path / "missing", tmp_path, garbage, run / other_kind(step, flag)):
        assert str(path) in refused(step, **{flag: path}, **more)


@pytest.mark.parametrize("step", MAINS)
def test_an_out_dir_that_is_a_file_and_a_device_that_is_not_there_are_named(step, refused, tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert str(path) in refused(step, out_dir=path)
    assert str(path) in refused(step, out_dir=path / "below")
    line = refused(step, device="cuda:99")
    assert "--device cuda:99" in line and "--device auto" in line


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "", "cpu:x", "meta", "cuda"])
def test_a_device_that_is_not_there_is_named(name):
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("cuda is there")
    with pytest.raises(UserError, match=f"--device {name} cannot be used here .*: try --device auto"):
        choose_device(name)


# What does not go with the other flags, or cannot be done with what the run holds.
REFUSED = [
    ("autoencoder", {"resume": True, "model_path": "m.pt"}, "--resume goes on with what --out-dir holds: leave out"),
    ("codebook_1", {"resume": True, "codebook_path": "c.pt"}, "leave out --codebook-path c.pt, or --resume"),
    ("transformer_1", {"resume": True, "model_path": "m.pt"}, "leave out --model-path m.pt, or --resume"),
    ("transformer_1", {"train_base_model": True, "previous_path": "x.pt"}, "no stage before it: leave out --prev"),
    ("decoder", {"hr_codebook_path": None}, "--encoder-path and --hr-codebook-path"),
    ("decoder", {"encoder_path": None}, "--encoder-path and --hr-codebook-path"),
    ("decoder", {"model_path": "m.pt"}, "--encoder-path has the weights to start from: leave out --model-path"),
    ("autoencoder", {"val_fraction": 0.9999}, "--val-fraction and --test-fraction"),
    ("generated", {"keep_rows": 1}, "--init-image needs --keep-rows or --from-stage"),
    ("generated", {"init_image": "face.png"}, "--init-image needs --keep-rows or --from-stage"),
    ("prune", {"prune_threshold": None, "keep": 17}, "--keep 17: {run}/codebook_1/models_check"),
    ("prune", {"prune_threshold": None, "keep": 1}, "--keep 1: {run}/codebook_1/models_check"),
    ("transformer_1", {"previous_path": f"{{run}}/{STAGE}"}, f"{{run}}/{STAGE}: was made with another codebook"),
    ("transformer_1", {"train_base_model": True}, f"{{run}}/{COARSE}: cuts a feature map into 4 patches"),
    ("codebook_1", {"codebook_path": f"{{run}}/codebook_2/{WEIGHTS}"}, f"another config than {TINY}/codebook_1.json"),
]  # fmt: skip


@pytest.mark.parametrize(("step", "changes", "expected"), REFUSED)
def test_what_cannot_be_done_is_named(step, changes, expected, refused, run):
    changes = {key: value.format(run=run) if isinstance(value, str) else value for key, value in changes.items()}
    assert expected.format(run=run) in refused(step, **changes)


# Keys of a config, whose line begins with its file or with the one that it does not go with.
WRONG_KEYS = [
    ("autoencoder", {"min_chanel": 8}, "wrong.json: unknown key 'min_chanel'; did you mean 'min_channel'?"),
    ("autoencoder", {"num_layers": 6, "max_channel": 16}, "data/dataset.json: .*32×32.* 6 .* make them 64, the"),
    ("autoencoder", {"latent_channel": 3}, f"decoder/{WEIGHTS}: its weights do not fit"),
    ("codebook_1", {"image_H": 16, "image_W": 16}, r"wrong.json: .*\(4, 8, 8\)"),
    ("codebook_1", {"patch_H": 8, "patch_W": 8, "num_embeddings": 100}, "'num_embeddings' is 100, .* 66 patches"),
    ("transformer_1", {"use_labels": True}, "'use_labels' is for the base stage"),
    ("transformer_1", {"cell": 3}, "'cell' is 3: from 2×2 tokens the stage writes 6×6, not 4×4; change it, or"),
]


@pytest.mark.parametrize(("step", "changes", "expected"), WRONG_KEYS)
def test_a_config_that_does_not_fit_is_named(step, changes, expected, refused, run, write_json, tmp_path):
    path = write_json(tmp_path / "wrong.json", json.loads((TINY / f"{step}.json").read_text()) | changes)
    weights = {"model_path": run / "decoder" / WEIGHTS} if step == "autoencoder" else {}
    assert re.search(expected, refused(step, config_path=path, **weights))


def test_maps_that_are_not_finite_are_refused(refused, run, tmp_path):
    maps = shutil.copytree(run / "feature_maps", tmp_path / "maps", ignore=shutil.ignore_patterns("tokens"))
    with edited(maps / "dataset.json") as content:
        record = content["_default"]["7"]
        path = maps / record["fmap_path"]
        fmap = np.load(path)
        fmap[1, 2, 3] = np.nan
        np.save(path, fmap)
        record["checksum"] = checksum(path.read_bytes())
    line = refused("prune", dataset_path=maps / "dataset.json", out_dir=tmp_path / "out")
    assert f"error: {path}: holds NaN or infinity" in line
    assert not list(tmp_path.rglob("*.pt"))


def resave(path, to, **changes):
    """Write a checkpoint to another place, with changes."""
    content = torch.load(path, weights_only=True) | changes
    torch.save(content | {"fingerprint": fingerprint(content.get("ema") or content["model"])}, to)


def changed_decoder(run, path, part):
    """An autoencoder whose averaged weights differ from the run's where their names begin with `part`."""
    weights = torch.load(run / DECODER, weights_only=True)["ema"]
    moved = {name: value + 0.5 if name.startswith(part) else value for name, value in weights.items()}
    resave(run / DECODER, path, ema=moved)
    return path


@pytest.fixture(scope="module")
def further(run, tmp_path_factory):
    """The run's autoencoder with a decoder that was trained further."""
    return changed_decoder(run, tmp_path_factory.mktemp("further") / "autoencoder.pt", "decoder.")


@pytest.fixture(scope="module")
def stranger(run, tmp_path_factory):
    """An autoencoder of the same shape with another encoder, and a codebook made with it."""
    folder = tmp_path_factory.mktemp("stranger")
    origin = Autoencoder.load(changed_decoder(run, folder / "autoencoder.pt", "encoder.")).origin
    before = torch.load(run / FINE, weights_only=True)["trained_from"]
    resave(run / FINE, folder / "codebook_1.pt", trained_from=before | origin)
    return folder


# What reads the autoencoder beside what was made with it, and the first file that it then names.
READERS = {
    "codebook_1": MAPS,
    "prune": BOOK,
    "decoder": f"codebook_2/{PRUNED}",
    "transformer_1": MAPS,
    "generated": f"transformer_0/{BEST}",
    "evaluation": MAPS,
}


def read(reader, run, decoder, tmp_path):
    """Do what this reader does with a run, but with another autoencoder."""
    if reader != "evaluation":
        flag = {"decoder": "encoder_path", "feature_maps": "model_path"}.get(reader, "decoder_path")
        others = {} if reader == "autoencoder" else {flag: decoder}
        return run_main(MAINS[reader], *words_of(good(run, reader) | others | {"out_dir": tmp_path / "out"}))
    folder = RunFolder(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(folder.decoder.path)
    shutil.copy(decoder, folder.autoencoder.latest)
    evaluated = TrainedRun(folder, torch.device("cpu"))
    assert len(evaluated.stages) == 3 and evaluated.cascade(1) is not None
    assert evaluated.missing == []


@pytest.mark.parametrize("reader", [*MAINS, "evaluation"])
def test_the_flags_of_this_file_work_also_with_a_decoder_that_was_trained_further(reader, run, further, tmp_path):
    read(reader, run, further, tmp_path)
    assert any(path.is_file() for path in tmp_path.rglob("*.*"))


@pytest.mark.parametrize("reader", READERS)
def test_another_encoder_is_refused(reader, run, stranger, tmp_path):
    with pytest.raises(UserError, match=f"{READERS[reader]}: was made with another encoder "):
        read(reader, run, stranger / "autoencoder.pt", tmp_path)


@pytest.mark.parametrize(
    ("step", "flag"),
    [
        ("codebook_1", "codebook_path"),
        ("prune", "codebook_path"),
        ("decoder", "hr_codebook_path"),
        ("transformer_1", "lr_codebook_path"),
        ("transformer_1", "hr_codebook_path"),
    ],
)
def test_codebooks_of_another_autoencoder_are_refused(step, flag, refused, stranger):
    path = stranger / "codebook_1.pt"
    assert refused(step, **{flag: path}).startswith(f"error: {path}: was made with another encoder")
