"""The chain of steps: stages of a recipe, what is skipped and what runs again, and how a signal ends it.

A stub stands for the Python of the steps (`tests/helpers/stub.py`).
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from scripts import train_cascade
from tests.helpers.chain import Chain
from tests.helpers.files import edited
from tests.helpers.runs import SMALL
from utils.core.files import UserError
from utils.runs.chain import ROOT, steps_in
from utils.runs.folders import RunFolder
from utils.runtime.cores import available_cores

# Starts two steps, one after the other, as the chain does.
TWO_STEPS = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from utils.runtime import child
with child.attending() as attendant:
    for name in ("codebook_cond", "codebook_0"):
        attendant.check([os.environ["STUB"], "train_codebook.py", "--out-dir", name])
"""


@pytest.fixture
def make(tmp_path, faces, tiny_run):
    """A function: a chain of a recipe with so many stages."""
    return lambda number=1: Chain(tmp_path, faces, tiny_run / "feature_maps", number)


@pytest.fixture
def chain(make):
    return make()


def flag(command, name):
    words = command.split()
    return words[words.index(name) + 1]


@pytest.mark.parametrize("number", [1, 4])
def test_a_recipe_of_any_number_of_stages_is_chained(number, make, tmp_path):
    chain = make(number)
    status, _, errors, commands = chain.run()
    assert status == 0, errors
    out, names = tmp_path / "out", ["codebook_cond", *(f"codebook_{level}" for level in range(number))]
    folders = [Path(flag(command, "--out-dir")).relative_to(out).as_posix() for command in commands]
    trained = [f"transformer_{level}" for level in range(number)]
    books = [name for name in names for _ in ("trained", "pruned")]
    assert folders == ["autoencoder", "feature_maps", *books, "decoder", *trained, "generated"]
    for level, command in enumerate(commands[-1 - number : -1]):
        assert ("--train-base-model" in command) == (level == 0)
        for name, book in (("--lr-codebook-path", names[level]), ("--hr-codebook-path", names[level + 1])):
            assert flag(command, name) == f"{out}/{book}/models_checkpoint/pruned_codebook.pt"
        if level:
            assert flag(command, "--previous-path") == f"{out}/transformer_{level - 1}/models_checkpoint/best.pt"
        assert flag(command, "--max-step") == str(7 + level)
    assert len(json.loads((out / "generate.json").read_text())) == number


BOOK = "codebook_0/models_checkpoint/latest.pt"
MISTAKES = [  # a file of a recipe of two stages, its changes, and what of it the error names
    ("recipe", {"transformer_0": None}, "'transformer_0'"),
    ("recipe", {"image_size": None}, "'image_size'"),
    ("recipe", {"pruning": {}}, "'pruning'"),
    ("recipe", {"prune__prune_treshold": 1}, "'prune': unknown key 'prune_treshold'"),
    ("recipe", {"prune__out_dir": "x"}, "'prune': unknown key 'out_dir'"),
    ("recipe", {"codebook__max_epoch": "x"}, "'codebook': 'max_epoch' is 'x'"),
    ("recipe", {"prune__keep": 3}, "'prune': 'prune_threshold' and 'keep' exclude"),
    ("recipe", {"feature_maps__flip": True}, "'flip' in 'feature_maps'"),
    ("recipe", {"image_size": "32x50"}, "'image_size' is 32x50, the nearest that fit are 32x48 or 32x64"),
    ("recipe", {"image_size": [64, 96]}, "'image_size'"),
    ("codebook_0", {"image_C": 3}, "'image_C' is 3, expected 4"),
    ("codebook_0", {"image_W": 16}, "'image_W' is 16, expected 8"),
    ("codebook_0", {"patch_W": None}, "'patch_W'"),
    ("codebook_cond", {"patch_H": 8, "patch_W": 4}, "'patch_H' and 'patch_W'"),
    ("transformer_0", {"cell": 2}, "'cell'"),
    ("transformer_0", {"in_dm": 8}, "'in_dm'"),
    ("transformer_1", {"use_labels": True}, "'use_labels'"),
    ("transformer_1", {"cell": 4}, "'cell' is 4"),
    ("generate", {"0__top": 1}, "stage 0: unknown key 'top'"),
    ("generate", {"2": {}}, "stage 2"),
    ("generate", {"0__lr_codebook_path": BOOK}, "stage 0: 'lr_codebook_path'"),
]


@pytest.mark.parametrize(("name", "changes", "named"), MISTAKES)
def test_a_mistake_in_a_recipe_is_named_before_anything_is_written(name, changes, named, make):
    chain = make(2)
    chain.edit(name, **changes)
    line = chain.refused()
    assert line.startswith(f"error: {chain.recipe}/") and named in line
    assert not chain.out.exists()


def test_a_broken_file_a_missing_one_and_images_of_another_size_are_named(chain, tmp_path):
    path = chain.recipe / "transformer_0.json"
    content = path.read_text()
    path.write_text('{"model_lr": 0.1 "in_dim": 32}')
    assert chain.refused().startswith(f"error: {path}: ")
    path.unlink()
    assert chain.refused().startswith(f"error: {path}: ")
    path.write_text(content)
    for image in chain.dataset.parent.rglob("*.png"):
        Image.new("RGB", (16, 16)).save(image)
    assert chain.refused().startswith(f"error: {chain.dataset}: ")
    for index, name in ((1, str(tmp_path / "none.json")), (0, "no-such")):
        chain.arguments[index] = name
        assert name in chain.refused()
    assert not chain.out.exists()


SEVERAL = "--nproc-per-node 4 --nnodes 3 --rdzv-backend c10d --rdzv-endpoint first:29400 --rdzv-id"


@pytest.mark.parametrize(
    ("flags", "launcher"),
    [
        ([], []),
        (["--nproc", "2"], ["--nproc-per-node", "2", "--standalone"]),
        (["--nproc", "4", "--nnodes", "3", "--rdzv-endpoint", "first:29400"], SEVERAL.split()),
    ],
)
def test_every_step_has_the_flags_and_nothing_runs_again_with_another_number_of_processes(flags, launcher, chain):
    common = ["--device", "cpu", "--overwrite", "--verify"]
    status, _, errors, commands = chain.run(*flags, *common)
    assert status == 0, errors
    for words in map(str.split, commands):
        assert words[: len(launcher)] == launcher
        if launcher:
            assert words[words.index("threads:") - 1] == str(max(1, available_cores() // int(flags[1])))
        assert words[-4:] == common
    assert "generate_images.py" in commands[-1]
    assert chain.ended()[1] == []


LAST = ["generate_images.py"]
LEARNED = ["train_autoencoder.py", "train_quantized_transformer.py"]  # the decoder, and a stage from maps alone
BOOKS = ["train_codebook.py", "prune_codebook.py"] * 2


def test_a_step_whose_result_is_gone_runs_again(chain):
    chain.ended()
    results = [(step, result) for step in steps_in(RunFolder(chain.out)) for result in step.results]
    assert len(results) == 11
    for step, result in results:
        result.unlink()
        assert chain.ended()[1] == [f"{step.script}.py"]
    next((chain.out / "feature_maps").rglob("*.npy")).unlink()
    assert chain.ended()[1] == ["generate_fmap_dataset.py"]  # the same maps, so what follows from them stays
    assert chain.ended()[1] == []


def test_a_step_that_leaves_no_result_is_an_error_and_not_done(chain):
    status, _, errors, _ = chain.run(FORGETFUL="transformer_0")
    assert status == 2
    assert "best.pt" in errors.splitlines()[-1]
    assert chain.ended()[1] == ["train_quantized_transformer.py", *LAST]


def test_a_model_that_has_changed_makes_what_was_made_with_it_anew(tiny_run, faces, tmp_path):
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    options = train_cascade.Options(recipe="", dataset=faces, out=out)

    def reasons(options):
        chain = train_cascade.Chain(SMALL, options)
        return [step.name for step in chain.steps if chain.reason(step) is not None]

    assert reasons(options) == []
    path = RunFolder(out).codebooks[1].pruned
    torch.save(torch.load(path, weights_only=True) | {"fingerprint": "another"}, path)
    with pytest.raises(UserError, match=r"transformer_0: was made with another ../codebook_0/.*pruned_codebook.pt"):
        reasons(options)
    anew = dataclasses.replace(options, overwrite=True)
    assert reasons(anew) == ["transformer_0", "transformer_1", "generate"]


def test_other_data_make_all_that_follows_from_them_anew_if_they_may(chain):
    chain.ended()
    for dataset, first, scripts in (
        (chain.out / "feature_maps/dataset.json", "codebook_cond", [*BOOKS, *LEARNED[-1:]]),
        (chain.dataset, "autoencoder", ["train_autoencoder.py", "generate_fmap_dataset.py", *BOOKS, *LEARNED]),
    ):
        with edited(dataset) as content:
            content["_default"]["1"]["labels"] = ["other"]
        assert chain.refused().startswith(f"error: {chain.out}/{first}: was made with another data set")
        assert chain.ended("--overwrite")[1] == scripts
        assert chain.ended()[1] == []


def test_data_of_other_times_are_the_same_once_they_are_verified_and_other_files_are_others(chain):
    chain.ended()
    image = next(chain.dataset.parent.rglob("*.png"))
    os.utime(image, (1, 1))
    assert "--verify" in chain.refused()
    assert chain.ended("--verify")[1] == []
    assert chain.ended()[1] == []
    image.write_bytes(image.read_bytes() + b" ")
    assert "--verify" in chain.refused()
    assert str(image) in chain.refused("--verify")
    # The stub's feature maps are the same as before, so only what reads the images is made anew.
    assert chain.ended("--overwrite")[1] == ["train_autoencoder.py", "generate_fmap_dataset.py", "train_autoencoder.py"]
    assert chain.ended()[1] == []


@pytest.mark.parametrize(
    ("edit", "folder", "named", "scripts"),
    [
        (("recipe", {"autoencoder__max_step": 1600}), "autoencoder", "max_step (1500, now 1600)", 1),
        (("recipe", {"prune__prune_threshold": 3}), "codebook_cond", "prune_threshold (2, now 3)", 2),
        (("recipe", {"transformer_0__batch_size": 3}), "transformer_0", "batch_size (8, now 3)", 1),
        (("transformer_0", {"dropout": 0.5}), "transformer_0", "'dropout' (0.0, now 0.5)", 1),
        # It may decide which checkpoint is the best.
        (("recipe", {"transformer_0__checkpoint_step": 7}), "transformer_0", "checkpoint_step (1000, now 7)", 1),
        (("recipe", {"generate__seed": 3}), "generated", "seed (0, now 3)", 1),
    ],
)
def test_an_edited_recipe_is_refused_before_any_step_without_overwrite(edit, folder, named, scripts, chain):
    chain.ended()
    with edited(chain.out / "autoencoder/manifest.json") as content:  # interrupted: it would be trained first
        content["attempts"][-1]["outcome"] = "running"
    chain.edit(edit[0], **edit[1])
    if folder != "autoencoder":
        line = chain.refused()
        assert line.startswith(f"error: {chain.out}/{folder}: ") and named in line
    assert len(chain.ended("--overwrite")[1]) == scripts + (folder != "autoencoder")
    assert chain.ended()[1] == []


def test_what_results_do_not_depend_on_may_be_edited_and_what_is_gone_is_made_as_the_recipe_now_says(chain):
    chain.ended()
    chain.edit("recipe", autoencoder__log_step=7, transformer_0__num_workers=1)
    assert chain.ended()[1] == []
    chain.edit("recipe", generate__seed=3)
    shutil.rmtree(chain.out / "generated")
    assert chain.ended()[1] == LAST
    assert chain.ended()[1] == []


def test_the_config_of_the_generation_is_the_recipes_or_that_of_a_person(chain):
    recipe, copy = chain.recipe / "generate.json", chain.out / "generate.json"
    chain.ended()
    assert copy.read_text() == recipe.read_text()
    copy.write_text(recipe.read_text().replace("1.0", "0.9"))
    assert "stage 0: 'temperature' (1.0, now 0.9)" in chain.refused()
    for expected in (LAST, []):
        output, scripts = chain.ended("--overwrite")
        assert scripts == expected
        assert f"{copy} is not that of the recipe, and is kept" in output
    copy.write_text("{}")
    assert str(copy) in chain.refused()
    copy.unlink()
    assert chain.ended("--overwrite")[1] == LAST
    assert copy.read_text() == recipe.read_text()


def test_a_signal_to_several_processes_ends_the_chain_with_its_number(chain):
    """torchrun ends with 1, whatever the signal."""
    process = chain.start("codebook_cond", "--nproc", "2")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert (process.returncode, chain.received) == (143, [signal.SIGTERM])


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Two steps that are run one after the other, of which the first is the slow one."""
    monkeypatch.chdir(tmp_path)
    pair = Chain(tmp_path)
    pair.command = [sys.executable, "-c", TWO_STEPS]
    return pair


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_signal_to_a_process_or_to_its_group_reaches_the_step_once(number, send, pair):
    process = pair.start("codebook_cond")
    send(process.pid, number)
    process.communicate(timeout=20)
    assert (process.returncode, pair.received, len(pair.commands)) == (7, [number], 1)


def test_a_signal_between_two_programs_ends_a_script(tmp_path):
    script = f"""
import os, signal
from utils.runtime.child import attending
with attending() as attendant:
    assert attendant.run(["true"]) == 0
    os.kill(os.getpid(), signal.SIGTERM)
    attendant.run(["touch", "{tmp_path}/more"])
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (143, "")
    assert not (tmp_path / "more").exists()
