"""Every path and key that is wrong gets its one line and exit status 2, and what is there already stays as it is."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import generate_fmap_dataset
import generate_images
import prune_codebook
import train_autoencoder
import train_codebook
import train_quantized_transformer
from evaluation.run import TrainedRun
from models.autoencoder import Autoencoder
from scripts import make_dataset
from tests.helpers.scripts import TINY, expect_error, expect_exit, run_main
from utils.core.files import UserError
from utils.data.checksums import checksum
from utils.data.dataset import FeatureMapDataset
from utils.runs.checkpoint import fingerprint
from utils.runs.folders import RunFolder

MAINS = {
    "train_autoencoder": train_autoencoder.main,
    "generate_fmap_dataset": generate_fmap_dataset.main,
    "train_codebook": train_codebook.main,
    "prune_codebook": prune_codebook.main,
    "train_quantized_transformer": train_quantized_transformer.main,
    "generate_images": generate_images.main,
    "make_dataset": make_dataset.main,
}
WEIGHTS = "models_checkpoint/latest.pt"
BEST = "models_checkpoint/best.pt"
PRUNED = "models_checkpoint/pruned_codebook.pt"
STAGES = {
    "train_autoencoder": "autoencoder",
    "generate_fmap_dataset": "feature_maps",
    "train_codebook": "codebook_1",
    "prune_codebook": "codebook_1",
    "train_quantized_transformer": "transformer_1",
    "generate_images": "generated",
    "make_dataset": "data",
}


@pytest.fixture(scope="module")
def run(tiny_run, faces, tmp_path_factory):
    """A copy of the run that commands may write over, with its images in `data`."""
    run = tmp_path_factory.mktemp("errors") / "run"
    shutil.copytree(tiny_run, run)
    shutil.copytree(faces.parent, run / "data")
    return run


def good(run, script):
    """Arguments with which a script works, its results in the place where they are already."""
    maps, decoder = run / "feature_maps/dataset.json", run / "autoencoder" / WEIGHTS
    flags = {
        "train_autoencoder": {
            "--dataset-path": run / "data/dataset.json",
            "--config-path": TINY / "autoencoder.json",
            "--max-step": 1,
        },
        "generate_fmap_dataset": {"--dataset-path": run / "data/dataset.json", "--model-path": decoder},
        "train_codebook": {
            "--dataset-path": maps,
            "--decoder-path": decoder,
            "--config-path": TINY / "codebook_1.json",
            "--max-step": 1,
        },
        "prune_codebook": {
            "--dataset-path": maps,
            "--codebook-path": run / "codebook_1" / WEIGHTS,
            "--prune-threshold": 1,
        },
        "train_quantized_transformer": {
            "--dataset-path": maps,
            "--decoder-path": decoder,
            "--lr-codebook-path": run / "codebook_0" / PRUNED,
            "--hr-codebook-path": run / "codebook_1" / PRUNED,
            "--config-path": TINY / "transformer_1.json",
            "--max-step": 1,
        },
        "generate_images": {"--decoder-path": decoder, "--config-path": run / "generate.json", "--num-images": 1},
        "make_dataset": {"folder": run / "data/images", "--image-size": 8, "--num-workers": 0},
    }[script]
    out = {"--out-dir": run / "small"} if script == "make_dataset" else {"--out-dir": run / STAGES[script]}
    return flags | out | {"--overwrite": True} | ({} if script == "make_dataset" else {"--device": "cpu"})


def words(flags):
    """The argument list; `folder` is positional, and a flag of value True stands alone."""
    pairs = [
        [value] if flag == "folder" else [flag] if value is True else [flag, value] for flag, value in flags.items()
    ]
    return [word for pair in pairs for word in pair]


def contents(folder):
    """Every file but the logs, which tell of failed attempts too."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}
    assert len(files) > 100
    return files


@pytest.fixture
def refused(run, capsys):
    """A function: run a script with changed flags, which must fail and damage nothing; returns the line."""

    def call(script, **changes):
        flags = good(run, script)
        for name, value in changes.items():
            flags[name if name == "folder" else "--" + name.replace("_", "-")] = value
        before = contents(run)
        line = expect_error(capsys, MAINS[script], words(flags))
        assert contents(run) == before
        return line

    return call


@pytest.mark.parametrize("script", MAINS)
def test_the_arguments_of_this_file_work_as_they_stand(script, run, tmp_path):
    run_main(MAINS[script], *words(good(run, script) | {"--out-dir": tmp_path / "out"}))
    assert any(path.is_file() for path in (tmp_path / "out").rglob("*.*"))


# Which kind of file each flag takes, and a file of this run that is of another kind.
PATHS = {
    "train_autoencoder": {
        "dataset_path": "feature_maps/dataset.json",
        "config_path": "generate.json",
        "model_path": f"codebook_1/{WEIGHTS}",
    },
    "generate_fmap_dataset": {"dataset_path": "feature_maps/dataset.json", "model_path": f"transformer_1/{WEIGHTS}"},
    "train_codebook": {
        "dataset_path": "data/dataset.json",
        "decoder_path": f"codebook_1/{WEIGHTS}",
        "codebook_path": f"autoencoder/{WEIGHTS}",
        "config_path": "generate.json",
    },
    "prune_codebook": {"dataset_path": "data/dataset.json", "codebook_path": f"autoencoder/{WEIGHTS}"},
    "train_quantized_transformer": {
        "dataset_path": "data/dataset.json",
        "decoder_path": f"codebook_1/{WEIGHTS}",
        "lr_codebook_path": f"transformer_1/{WEIGHTS}",
        "hr_codebook_path": f"autoencoder/{WEIGHTS}",
        "model_path": f"codebook_1/{WEIGHTS}",
        "config_path": "generate.json",
    },
    "generate_images": {
        "decoder_path": f"transformer_1/{WEIGHTS}",
        "config_path": "data/dataset.json",
        "condition_image": "data/dataset.json",
    },
}
EACH_PATH = [(script, flag) for script, flags in PATHS.items() for flag in flags]
GARBAGE = {
    "empty": b"",
    "text": b"not what was asked for\n",
    "an image": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "a zip": b"PK\x03\x04" + bytes(40),
}


@pytest.mark.parametrize(("script", "flag"), EACH_PATH)
def test_a_missing_file_a_folder_and_garbage_are_named(script, flag, refused, tmp_path):
    bad = {"missing": tmp_path / "missing", "a folder": tmp_path}
    for name, content in GARBAGE.items():
        bad[name] = tmp_path / f"{name}.bin"
        bad[name].write_bytes(content)
    for path in bad.values():
        assert str(path) in refused(script, **{flag: path})


@pytest.mark.parametrize(("script", "flag"), EACH_PATH)
def test_a_file_of_another_kind_is_named(script, flag, refused, run):
    path = run / PATHS[script][flag]
    assert str(path) in refused(script, **{flag: path})


@pytest.mark.parametrize(
    ("script", "flag"),
    [pair for pair in EACH_PATH if pair[1] not in ("dataset_path", "config_path", "condition_image")],
)
def test_a_checkpoint_cut_short_is_named(script, flag, refused, run, tmp_path):
    kinds = {"model_path": STAGES[script], "decoder_path": "autoencoder"}
    kind = "autoencoder" if script == "generate_fmap_dataset" else kinds.get(flag, "codebook_1")
    content = (run / kind / WEIGHTS).read_bytes()
    path = tmp_path / "cut.pt"
    for share in (0.2, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        assert str(path) in refused(script, **{flag: path})


@pytest.mark.parametrize("script", MAINS)
def test_an_out_dir_that_is_a_file_is_named(script, refused, tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert str(path) in refused(script, out_dir=path)
    assert str(path) in refused(script, out_dir=path / "below")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "", "cpu:x", "meta"])
@pytest.mark.parametrize("script", [script for script in MAINS if script != "make_dataset"])
def test_a_device_that_is_not_there_is_named(script, device, refused):
    line = refused(script, device=device)
    assert f"--device {device}" in line
    assert "--device auto" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda is there")
@pytest.mark.parametrize("script", [script for script in MAINS if script != "make_dataset"])
def test_cuda_that_is_not_there_is_named(script, refused):
    assert "--device cuda" in refused(script, device="cuda")


WRONG_VALUES = [
    ("train_autoencoder", "batch_size", 0),
    ("train_autoencoder", "checkpoint_step", "x"),
    ("train_autoencoder", "lr_step", -1),
    ("train_autoencoder", "max_epoch", 0),
    ("train_autoencoder", "max_step", 1.5),
    ("train_autoencoder", "num_workers", -1),
    ("train_autoencoder", "log_step", 0),
    ("train_autoencoder", "val_fraction", 1),
    ("train_autoencoder", "test_fraction", 1),
    ("train_autoencoder", "precision", "fp8"),
    ("train_autoencoder", "warmup_step", -1),
    ("train_autoencoder", "lr_schedule", "linear"),
    ("train_autoencoder", "grad_clip", 0),
    ("train_autoencoder", "grad_clip", "nan"),
    ("train_autoencoder", "ema_decay", 1),
    ("train_autoencoder", "grad_accum_step", 0),
    ("train_autoencoder", "keep_checkpoint", 0),
    ("train_autoencoder", "seed", "x"),
    ("generate_fmap_dataset", "num_files_folder", 0),
    ("prune_codebook", "prune_threshold", -1),
    ("prune_codebook", "val_fraction", 1),
    ("train_quantized_transformer", "temperature", 0),
    ("train_quantized_transformer", "test_num_sample", 0),
    ("generate_images", "num_images", 0),
    ("generate_images", "batch_size", 0),
    ("generate_images", "num_beam", 0),
    ("generate_images", "beam_width", "x"),
    ("generate_images", "keep_beam", 0),
    ("generate_images", "top_k", 0),
    ("generate_images", "top_p", 0),
    ("generate_images", "top_p", 1.5),
    ("generate_images", "temperature", -1),
    ("generate_images", "guidance_scale", -1),
    ("generate_images", "condition_index", -1),
    ("generate_images", "keep_rows", -1),
    ("generate_images", "from_stage", -1),
    ("generate_images", "animate", "mp4"),
    ("make_dataset", "fit", "stretch"),
    ("make_dataset", "image_size", 0),
    ("make_dataset", "background", "no-colour"),
]


@pytest.mark.parametrize(("script", "flag", "value"), WRONG_VALUES)
def test_a_flag_out_of_its_range_is_named(script, flag, value, run, capsys):
    flag = "--" + flag.replace("_", "-")
    before = contents(run)
    assert expect_exit(MAINS[script], words(good(run, script) | {flag: value})) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"error: argument ([-\w]+/)?{flag}: .*{value}", line)
    assert contents(run) == before


def test_a_split_that_leaves_nothing_is_named(refused):
    assert "--val-fraction and --test-fraction" in refused("train_autoencoder", val_fraction=0.9999)


def config(write_json, path, name, **changes):
    return write_json(path, json.loads((TINY / f"{name}.json").read_text()) | changes)


@pytest.mark.parametrize(
    ("script", "name", "key", "value"),
    [
        ("train_autoencoder", "autoencoder", "hidden_activation_type", "swish"),
        ("train_autoencoder", "autoencoder", "num_layers", 0),
        ("train_autoencoder", "autoencoder", "min_chanel", 8),
        ("train_codebook", "codebook_1", "patch_H", 3),
        ("train_codebook", "codebook_1", "num_embeddings", "many"),
        ("train_quantized_transformer", "transformer_1", "self_attn_heads", 3),
        ("train_quantized_transformer", "transformer_1", "use_sliding_window", 1),
    ],
)
def test_a_wrong_key_is_named_with_its_file(script, name, key, value, refused, write_json, tmp_path):
    path = config(write_json, tmp_path / "wrong.json", name, **{key: value})
    line = refused(script, config_path=path)
    assert line.startswith(f"error: {path}: ")
    assert f"'{key}'" in line


@pytest.mark.parametrize("num_layers", [6, 9])
def test_images_that_cannot_be_halved_so_often_are_named(num_layers, refused, run, write_json, tmp_path):
    path = config(write_json, tmp_path / "deep.json", "autoencoder", num_layers=num_layers, max_channel=16)
    line = refused("train_autoencoder", config_path=path)
    assert str(run / "data/dataset.json") in line
    assert "32×32" in line
    assert str(num_layers) in line


def test_images_of_a_size_the_autoencoder_cannot_halve_are_named(refused, run, tmp_path):
    argv = (run / "data/images", "--out-dir", tmp_path / "odd", "--image-size", 30, "--num-workers", 0)
    run_main(make_dataset.main, *argv)
    line = refused("generate_fmap_dataset", dataset_path=tmp_path / "odd/dataset.json")
    assert str(tmp_path / "odd/dataset.json") in line
    assert "30×30" in line


@pytest.mark.parametrize("changes", [{"image_H": 16, "image_W": 16}, {"image_C": 3}])
def test_a_codebook_config_for_other_maps_is_named(changes, refused, write_json, tmp_path):
    path = config(write_json, tmp_path / "other.json", "codebook_1", **changes)
    line = refused("train_codebook", config_path=path)
    assert str(path) in line
    assert "(4, 8, 8)" in line


def test_more_units_than_patches_are_refused_by_key(refused, write_json, tmp_path):
    path = config(write_json, tmp_path / "many.json", "codebook_cond", num_embeddings=100)
    line = refused("train_codebook", config_path=path)
    assert "'num_embeddings' is 100" in line
    assert re.search(r"\b66 patches", line)  # 66 maps are to be trained on, and the patch is the whole map


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"condition_index": 99}, "unit 99: the condition codebook has units 0 to"),
        ({"label": "cats"}, "label 'cats': this model does not know it; labels that it knows: none: train its base"),
        ({"keep_rows": 1}, "--init-image goes with --keep-rows or --from-stage"),
        ({"init_image": "face.png"}, "--init-image goes with --keep-rows or --from-stage"),
        ({"init_image": "face.png", "from_stage": 1}, "face.png: no such image file; check the path"),
        ({"guidance_scale": 2}, "'guidance_scale' is 2.0, but the stage was trained without 'condition_dropout'"),
        ({"num_beam": 1, "keep_beam": 2}, "stage 0: 'keep_beam' is 2, expected at most 'num_beam' 1"),
    ],
)
def test_what_a_generation_cannot_do_is_named(changes, expected, refused):
    assert expected in refused("generate_images", **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"from_stage": 3}, "stage 3: the stages are 0 to 2"),
        ({"keep_rows": 3}, "3 rows to keep: the base stage's grid, whose rows count, has 2"),
    ],
)
def test_a_start_that_the_cascade_does_not_have_is_named(changes, expected, refused, run):
    image = next((run / "data/images").rglob("*.png"))
    assert expected in refused("generate_images", init_image=image, **changes)


def test_labels_of_a_wrong_type_are_named(refused, run, tmp_path):
    content = json.loads((run / "data/dataset.json").read_text())
    next(iter(content["_default"].values()))["labels"] = "cats"
    path = run / "data" / "wrong_labels.json"
    path.write_text(json.dumps(content))
    try:
        assert f"{path}: 'labels' of record 1 is no list of strings" in refused("train_autoencoder", dataset_path=path)
    finally:
        path.unlink()


def test_labels_are_for_the_base_stage(refused, write_json, tmp_path):
    path = config(write_json, tmp_path / "labelled.json", "transformer_1", use_labels=True)
    assert "'use_labels' is for the base stage" in refused("train_quantized_transformer", config_path=path)


def other_maps(run, folder):
    """A data set of feature maps of another shape."""
    shutil.copytree(run / "feature_maps", folder)
    for path in folder.rglob("*.npy"):
        np.save(path, np.load(path)[:, :4, :4])
    return folder / "dataset.json"


@pytest.mark.parametrize(
    ("script", "named"),
    [
        ("train_codebook", TINY / "codebook_1.json"),
        ("prune_codebook", f"codebook_1/{WEIGHTS}"),
        ("train_quantized_transformer", f"codebook_0/{PRUNED}"),
    ],
)
def test_maps_of_another_shape_are_refused(script, named, refused, run, tmp_path):
    line = refused(script, dataset_path=other_maps(run, tmp_path / "maps"))
    assert str(run / named) in line
    assert "(4, 4, 4)" in line
    assert "(4, 8, 8)" in line


def resave(path, to, **changes):
    """Write a checkpoint to another place, with changes."""
    content = torch.load(path, weights_only=True) | changes
    torch.save(content | {"fingerprint": fingerprint(content.get("ema") or content["model"])}, to)


def changed_decoder(run, path, part):
    """An autoencoder whose averaged weights differ from the run's where their names begin with `part`."""
    weights = torch.load(run / "autoencoder" / WEIGHTS, weights_only=True)["ema"]
    moved = {name: value + 0.5 if name.startswith(part) else value for name, value in weights.items()}
    resave(run / "autoencoder" / WEIGHTS, path, ema=moved)
    return path


@pytest.fixture(scope="module")
def further(run, tmp_path_factory):
    """The run's autoencoder with a decoder that was trained further."""
    return changed_decoder(run, tmp_path_factory.mktemp("further") / "autoencoder.pt", "decoder.")


@pytest.fixture(scope="module")
def stranger(run, tmp_path_factory):
    """An autoencoder of the same shape with another encoder, a codebook and a stage made with it."""
    folder = tmp_path_factory.mktemp("stranger")
    origin = Autoencoder.load(changed_decoder(run, folder / "autoencoder.pt", "encoder.")).origin
    for name, file in (("codebook_1", PRUNED), ("transformer_1", WEIGHTS)):
        before = torch.load(run / name / file, weights_only=True)["trained_from"]
        resave(run / name / file, folder / f"{name}.pt", trained_from=before | origin)
    return folder


# What reads the autoencoder beside what was made with it, and the first file that it then names.
READERS = {
    "train_codebook": "feature_maps/dataset.json",
    "prune_codebook": f"codebook_1/{WEIGHTS}",
    "train_quantized_transformer": "feature_maps/dataset.json",
    "generate_images": f"transformer_0/{BEST}",
    "evaluation": "feature_maps/dataset.json",
}


def read(reader, run, decoder, tmp_path):
    """Do what this reader does with a run, but with another autoencoder."""
    if reader != "evaluation":
        flags = good(run, reader) | {"--decoder-path": decoder, "--out-dir": tmp_path / "out"}
        return run_main(MAINS[reader], *words(flags))
    folder = RunFolder(shutil.copytree(run, tmp_path / "run"))
    shutil.copy(decoder, folder.autoencoder.latest)
    evaluated = TrainedRun(folder, torch.device("cpu"))
    assert len(evaluated.stages) == 3 and evaluated.cascade(1) is not None
    assert evaluated.missing == []


@pytest.mark.parametrize("reader", READERS)
def test_a_decoder_that_was_trained_further_is_accepted(reader, run, further, tmp_path):
    read(reader, run, further, tmp_path)


@pytest.mark.parametrize("reader", READERS)
def test_another_encoder_is_refused(reader, run, stranger, tmp_path):
    with pytest.raises(UserError, match=f"{READERS[reader]}: was made with another encoder "):
        read(reader, run, stranger / "autoencoder.pt", tmp_path)


DAMAGES = {"not finite": "holds NaN or infinity", "changed": "has changed since it was written"}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("script", ["train_codebook", "prune_codebook", "train_quantized_transformer"])
def test_a_map_that_is_not_as_it_should_be_is_named(script, damage, run, capsys, tmp_path):
    maps = shutil.copytree(run / "feature_maps", tmp_path / "maps")
    shutil.rmtree(maps / "tokens")
    content = json.loads((maps / "dataset.json").read_text())
    path = maps / content["_default"]["7"]["fmap_path"]
    fmap = np.load(path)
    if damage == "not finite":
        fmap[1, 2, 3] = np.inf if script == "prune_codebook" else np.nan
        np.save(path, fmap)
    for record in content["_default"].values():
        record["checksum"] = checksum((maps / record["fmap_path"]).read_bytes())
    (maps / "dataset.json").write_text(json.dumps(content))
    if damage == "changed":
        np.save(path, fmap + np.float32(0.01))
    flags = good(run, script) | {"--dataset-path": maps / "dataset.json", "--out-dir": tmp_path / "out"}
    assert f"error: {path}: {DAMAGES[damage]}" in expect_error(capsys, MAINS[script], words(flags))
    assert not list((tmp_path / "out").rglob("*.pt")) and not list(maps.rglob("*.pt"))


@pytest.mark.parametrize(
    ("script", "flag"),
    [
        ("train_codebook", "codebook_path"),
        ("prune_codebook", "codebook_path"),
        ("train_quantized_transformer", "lr_codebook_path"),
        ("train_quantized_transformer", "hr_codebook_path"),
    ],
)
def test_codebooks_of_another_autoencoder_are_refused(script, flag, refused, stranger):
    path = stranger / "codebook_1.pt"
    line = refused(script, **{flag: path})
    assert line.startswith(f"error: {path}: was made with another encoder")


def test_a_base_stage_wants_one_token_of_condition(refused, run):
    line = refused("train_quantized_transformer", train_base_model=True)
    assert "4 patches" in line
    assert str(run / "codebook_0" / PRUNED) in line


def test_too_high_a_threshold_is_refused_with_one_that_works(refused, run, tmp_path):
    line = refused("prune_codebook", prune_threshold=10**6)
    assert str(run / "codebook_1" / WEIGHTS) in line
    most = int(re.search(r"--prune-threshold 1000000 would leave 0 of 16 units.*: give at most (\d+)$", line).group(1))
    assert "--prune-threshold" in refused("prune_codebook", prune_threshold=most + 1)
    flags = good(run, "prune_codebook") | {"--prune-threshold": most, "--out-dir": tmp_path}
    run_main(prune_codebook.main, *words(flags))
    units = torch.load(tmp_path / PRUNED, weights_only=True)["model"]["units"]
    assert 2 <= len(units) < 16


@pytest.mark.parametrize("keep", [1, 17])
def test_a_number_of_units_to_keep_that_cannot_be_is_refused(keep, run, capsys):
    flags = good(run, "prune_codebook") | {"--keep": keep}
    del flags["--prune-threshold"]
    line = expect_error(capsys, prune_codebook.main, words(flags))
    assert f"--keep {keep} is not possible: {run / 'codebook_1' / WEIGHTS} has 16 units" in line


def test_a_threshold_and_a_number_to_keep_exclude_each_other(run, capsys):
    assert expect_exit(prune_codebook.main, words(good(run, "prune_codebook") | {"--keep": 4})) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_pruning_refuses_the_decoder_of_other_maps(run, capsys, tmp_path):
    run_main(
        train_autoencoder.main, *words(good(run, "train_autoencoder") | {"--seed": 5, "--out-dir": tmp_path / "other"})
    )
    flags = good(run, "prune_codebook") | {"--decoder-path": tmp_path / "other" / WEIGHTS}
    assert str(run / "codebook_1" / WEIGHTS) in expect_error(capsys, prune_codebook.main, words(flags))


def generation(run, write_json, tmp_path, change):
    """A generation config with absolute paths, changed."""
    stages = json.loads((run / "generate.json").read_text())
    for stage in stages.values():
        stage |= {key: str(run / value) for key, value in stage.items() if key.endswith("_path")}
    changed = change(stages)
    return write_json(tmp_path / "generate.json", stages if changed is None else changed)


def swap(stages):
    return {"0": stages["1"], "1": stages["0"], "2": stages["2"]}


GENERATIONS = {
    "an unknown key": (lambda s: s["1"].update(temprature=1.0), ["stage 1", "'temprature'", "'temperature'"]),
    "a missing key": (lambda s: s["2"].pop("hr_codebook_path") and None, ["stage 2", "'hr_codebook_path'"]),
    "a wrong type": (lambda s: s["0"].update(num_beam="two"), ["stage 0", "'num_beam'", "'two'"]),
    "a wrong value": (lambda s: s["1"].update(temperature=0), ["stage 1", "'temperature'"]),
    "more to keep than beams": (lambda s: s["1"].update(keep_beam=3), ["stage 1", "'keep_beam'", "'num_beam'"]),
    "a stage that is no object": (lambda s: s.update({"1": "x"}), ["stage 1"]),
    "a missing number": (lambda s: s.pop("1") and None, ["'2'"]),
    "a number that is none": (lambda s: s.update(last=s.pop("2")), ["'last'"]),
    "a zero in front": (lambda s: s.update({"02": s.pop("2")}), ["'02'"]),
    "no stage": (lambda s: {}, ["no stage"]),
}


@pytest.mark.parametrize("name", GENERATIONS)
def test_a_wrong_generation_config_is_named_with_stage_and_key(name, refused, run, write_json, tmp_path):
    change, named = GENERATIONS[name]
    path = generation(run, write_json, tmp_path, change)
    line = refused("generate_images", config_path=path)
    assert line.startswith(f"error: {path}: ")
    assert [word for word in named if word not in line] == []


def test_a_generation_without_change_works(run, write_json, tmp_path):
    path = generation(run, write_json, tmp_path, lambda stages: None)
    run_main(
        generate_images.main, *words(good(run, "generate_images") | {"--config-path": path, "--out-dir": tmp_path})
    )
    assert (tmp_path / "images/recon_model_2.png").exists()


@pytest.mark.parametrize("key", ["model_path", "lr_codebook_path", "hr_codebook_path"])
@pytest.mark.parametrize("stage", ["0", "1"])
def test_a_wrong_path_in_a_generation_is_named(stage, key, refused, run, write_json, tmp_path):
    for bad in ("no/such.pt", str(run / "autoencoder" / WEIGHTS), str(run / "generate.json")):
        path = generation(run, write_json, tmp_path, lambda stages, bad=bad: stages[stage].update({key: bad}))
        assert str(tmp_path / bad) in refused("generate_images", config_path=path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swap, f"transformer_1/{BEST}"),
        (lambda s: {"0": s["1"]}, f"transformer_1/{BEST}"),
        (lambda s: {"0": s["0"], "1": s["2"]}, f"codebook_1/{PRUNED}"),
        (lambda s: {"0": s["0"], "1": s["0"]}, f"transformer_0/{BEST}"),
        (lambda s: s["1"].update(hr_codebook_path=s["2"]["hr_codebook_path"]), f"transformer_1/{BEST}"),
        (lambda s: s["1"].update(lr_codebook_path=s["2"]["hr_codebook_path"]), f"transformer_1/{BEST}"),
        (lambda s: s["2"].update(model_path=s["1"]["model_path"]), f"transformer_1/{BEST}"),
    ],
)
def test_stages_that_do_not_meet_are_refused(change, named, refused, run, write_json, tmp_path):
    path = generation(run, write_json, tmp_path, change)
    assert f"error: {run / named}: " in refused("generate_images", config_path=path)


def test_a_stage_made_with_another_autoencoder_is_refused(refused, run, stranger, write_json, tmp_path):
    transformer = str(stranger / "transformer_1.pt")
    path = generation(run, write_json, tmp_path, lambda stages: stages["1"].update(model_path=transformer))
    assert f"error: {transformer}: " in refused("generate_images", config_path=path)
    line = refused("generate_images", decoder_path=stranger / "autoencoder.pt")
    assert str(run / "transformer_0" / BEST) in line


def test_a_condition_codebook_that_was_not_counted_is_named(refused, run, write_json, tmp_path):
    weights = torch.load(run / "codebook_cond" / PRUNED, weights_only=True)["model"]
    weights["counts"].zero_()
    uncounted, model = tmp_path / "uncounted.pt", tmp_path / "model.pt"
    resave(run / "codebook_cond" / PRUNED, uncounted, model=weights)
    origin = torch.load(run / "transformer_0" / WEIGHTS, weights_only=True)["trained_from"]
    origin["lr_codebook"] = fingerprint(weights)
    resave(run / "transformer_0" / WEIGHTS, model, trained_from=origin)
    change = {"model_path": str(model), "lr_codebook_path": str(uncounted)}
    path = generation(run, write_json, tmp_path, lambda stages: stages["0"].update(change))
    line = refused("generate_images", config_path=path)
    assert str(uncounted) in line
    assert "counted" in line.replace(str(uncounted), "")


@pytest.mark.parametrize(
    ("prepare", "named"),
    [
        (lambda folder: folder / "missing", "missing"),
        (lambda folder: (folder / "file").touch() or folder / "file", "file"),
        (lambda folder: (folder / "empty").mkdir() or folder / "empty", "empty"),
    ],
)
def test_a_folder_without_images_is_named(prepare, named, refused, tmp_path):
    assert str(tmp_path / named) in refused("make_dataset", folder=prepare(tmp_path))


def test_a_folder_of_unreadable_images_is_named(refused, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_bytes(b"garbage")
    line = refused("make_dataset", folder=tmp_path / "bad", out_dir=tmp_path / "out")
    assert str(tmp_path / "out/skipped.txt") in line


def test_feature_maps_are_never_half_of_one_autoencoder_and_half_of_another(run, stranger, tmp_path, capsys):
    """A second run that fails on the way leaves the old maps, or none that can be read: never a mixture."""
    out = shutil.copytree(run / "feature_maps", tmp_path / "maps")
    old = FeatureMapDataset(out / "dataset.json")
    before = old[np.arange(len(old))]
    data = shutil.copytree(run / "data", tmp_path / "data")
    last = list(json.loads((data / "dataset.json").read_text())["_default"].values())[-1]["image_fpath"]
    (data / last).write_bytes(b"garbage")
    flags = {"--dataset-path": data / "dataset.json", "--model-path": stranger / "autoencoder.pt", "--out-dir": out}
    line = expect_error(
        capsys, generate_fmap_dataset.main, words({**flags, "--flip": True, "--overwrite": True, "--device": "cpu"})
    )
    assert str(data / last) in line
    try:
        new = FeatureMapDataset(out / "dataset.json")
    except UserError as error:
        assert str(out / "dataset.json") in str(error)
    else:
        assert torch.equal(new[np.arange(len(new))], before)
