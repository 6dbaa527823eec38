"""The chain of steps: stages of a recipe, what is skipped and what runs again, and how a signal ends it.

A stub stands for the Python of the steps (`tests/helpers/stub.py`).
"""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.chain import STUB, Chain
from tests.helpers.files import edited
from tests.helpers.jobs import until
from utils.runs.chain import ROOT, steps_in
from utils.runs.folders import RunFolder
from utils.runtime import child
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
MISTAKES = [  # a file, its changes, and the line
    ("recipe", {"transformer_0": None}, "recipe.json: missing key 'transformer_0'; add it"),
    ("recipe", {"transformer_1": {}}, "codebook_1.json: no such file"),
    ("recipe", {"image_size": None}, "recipe.json: missing key 'image_size'"),
    ("recipe", {"pruning": {}}, "recipe.json: unknown key 'pruning'; did you mean 'prune'?"),
    ("recipe", {"prune__prune_treshold": 1}, "recipe.json: 'prune': unknown key 'prune_treshold'; did you mean"),
    ("recipe", {"prune__out_dir": "x"}, "recipe.json: 'prune': unknown key 'out_dir'"),
    (
        "recipe",
        {"codebook__max_epoch": "x"},
        "recipe.json: 'codebook': argument --max-epoch: 'x' is not a whole number",
    ),
    ("recipe", {"prune__keep": 3}, "recipe.json: 'prune': argument --keep: not allowed with"),
    ("recipe", {"feature_maps__flip": True}, "recipe.json: 'flip' in 'feature_maps': is a setting of the whole recipe"),
    ("recipe", {"decoder__model_path": "x"}, "recipe.json: 'decoder': --resume goes on with"),
    ("recipe", {"image_size": 31}, "recipe.json: 'image_size' is 31, the nearest that fit are 16 or 32: autoencoder.j"),
    ("recipe", {"image_size": "32x50"}, "recipe.json: 'image_size' is 32x50, the nearest that fit are 32x48 or 32x64"),
    ("recipe", {"image_size": "9x100"}, "recipe.json: 'image_size' is 9x100, the nearest that fit are 16x96 or 16x112"),
    *(
        ("recipe", {"image_size": size}, f"recipe.json: 'image_size': {size!r} is not a size; expected WIDTHxHEIGHT")
        for size in ("64x", 0)
    ),
    ("recipe", {"image_size": [64, 96]}, "recipe.json: 'image_size' is [64, 96], expected a whole number or a string"),
    ("recipe", {"image_size": True}, "recipe.json: 'image_size' is True, expected a whole number or a string"),
    ("codebook_0", {"patch_H": 3}, "recipe.json: 'image_size' is 32, the nearest that fit are 32x24 or 32x36: autoen"),
    ("codebook_0", {"patch_W": None}, "codebook_0.json: missing key 'patch_W'; add it"),
    ("codebook_0", {"image_C": 3}, "codebook_0.json: 'image_C' is 3, expected 4"),
    ("codebook_0", {"image_W": 16}, "codebook_0.json: 'image_W' is 16, expected 8"),
    ("codebook_cond", {"patch_H": 8, "patch_W": 4}, "codebook_cond.json: 'patch_H' and 'patch_W' are 8 and 4, expect"),
    ("transformer_0", {"cell": 2}, "transformer_0.json: 'cell' is for cascade stages"),
    ("transformer_0", {"in_dm": 8}, "transformer_0.json: unknown key 'in_dm'"),
    ("generate", {"0__top": 1}, "generate.json: stage 0: unknown key 'top'"),
    ("generate", {"1": {}}, "generate.json: stage 1: missing key 'model_path'"),
    ("generate", {"0__lr_codebook_path": BOOK}, f"generate.json: stage 0: 'lr_codebook_path' is '{BOOK}', expected"),
]


@pytest.mark.parametrize(("name", "changes", "named"), MISTAKES)
def test_a_mistake_in_a_recipe_is_named_in_one_line_before_anything_is_written(name, changes, named, chain):
    chain.edit(name, **changes)
    assert chain.refused().startswith(f"error: {chain.recipe}/{named}")
    assert not chain.out.exists()


def test_a_broken_file_and_a_missing_one_are_named(chain):
    path = chain.recipe / "transformer_0.json"
    path.write_text('{"model_lr": 0.1 "in_dim": 32}')
    assert chain.refused().startswith(f"error: {path}: not valid JSON")
    path.unlink()
    assert chain.refused().startswith(f"error: {path}: no such file")


def test_labels_are_for_the_base_stage_and_a_stage_of_the_generation_needs_a_step(make):
    chain = make(2)
    chain.edit("transformer_1", use_labels=True)
    assert chain.refused().startswith(f"error: {chain.recipe}/transformer_1.json: 'use_labels' is for the base stage")
    chain.edit("transformer_1", use_labels=False, cell=4)
    expected = f"error: {chain.recipe}/transformer_1.json: 'cell' is 4: from 2×2 tokens the stage writes 8×8, not 4×4"
    assert chain.refused().startswith(expected)
    chain.edit("transformer_1", cell=2)
    chain.edit("transformer_0", use_labels=True)
    chain.ended()
    stages = json.loads((chain.recipe / "generate.json").read_text())
    chain.edit("generate", **{"2": stages["1"]})
    assert "/generate.json: stage 2 has no transformer_2.json in the recipe" in chain.refused()


def test_images_of_another_size_and_names_of_nothing_are_refused(chain, tmp_path):
    for path in chain.dataset.parent.rglob("*.png"):
        Image.new("RGB", (16, 16)).save(path)
    line = chain.refused()
    assert line.startswith(f"error: {chain.dataset}: holds images of 16×16 (")
    assert f"'image_size' in {chain.recipe}/recipe.json is 32; make the images with --image-size 32" in line
    chain.edit("recipe", image_size="16x32")
    assert "is 16x32; make the images with --image-size 16x32, or give a recipe whose 'image_size' is 16" in (
        chain.refused()
    )
    chain.arguments[1] = str(tmp_path / "none.json")
    assert "none.json: no such data set" in chain.refused()
    chain.arguments[0] = "no-such"
    assert "no-such/recipe.json: no such recipe; configs/ holds: demo-64 gpu-128" in chain.refused()
    assert not chain.out.exists()


def test_a_recipe_for_a_gpu_names_another_without_one_before_anything_is_read(chain, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    chain.arguments[:2] = ["gpu-128", "none.json"]
    assert "none.json: no such data set" in chain.refused("--device", "cpu")
    *_, out = chain.arguments
    for arguments in ([out], [out, "--device", "auto"], ["--dry-run"]):
        chain.arguments[2:] = arguments
        line = chain.refused()
        assert "gpu-128 is for a GPU with CUDA" in line and "use laptop-128, for images of 128×128 pixels" in line
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "none.json: no such data set" in chain.refused()


@pytest.mark.parametrize("name", ["train_cascade", "demo", "test"])
def test_the_shell_scripts_run_the_python_scripts_of_their_names_with_the_python_that_is_named(name, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nif [ "$1" != -c ]; then echo "$@"; fi\n')
    python.chmod(0o755)
    ended = subprocess.run(
        ["bash", ROOT / f"scripts/{name}.sh", "a b", "--c"],
        env=os.environ | {"PYTHON": str(python)}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{ROOT}/scripts/{name}.py a b --c\n"


def test_a_python_that_is_too_old_is_passed_over(tmp_path):
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / "scripts").mkdir()
    for name in ("python.sh", "demo.sh"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    for tool in ("dirname", "basename"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    command = [shutil.which("bash"), tmp_path / "scripts/demo.sh"]
    ended = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: no Python 3.11 or newer was found; install one")


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


def test_flags_that_exclude_or_need_others_are_refused(chain):
    line = "error: --dry-run: tries each step in one process and a folder of its own; leave out OUT and all flags"
    assert chain.refused("--dry-run").startswith(line)
    line = "error: --nnodes 2: add --rdzv-endpoint HOST:PORT, an address of one of the machines"
    assert chain.refused("--nnodes", "2").startswith(line)


LAST = ["generate_images.py"]
BOOKS = ["train_codebook.py", "prune_codebook.py"] * 2
AFTER_MAPS = [*BOOKS, "train_autoencoder.py", "train_quantized_transformer.py", *LAST]


def test_a_step_whose_result_is_gone_runs_again(chain):
    chain.ended()
    results = [(step, result) for step in steps_in(RunFolder(chain.out)) for result in step.results]
    assert len(results) == 11
    for step, result in results:
        result.unlink()
        output, scripts = chain.ended()
        assert scripts == [f"{step.script}.py"]
        assert f"{result} is gone: {step.name} runs again" in output.splitlines()
    next((chain.out / "feature_maps").rglob("*.npy")).unlink()
    output, scripts = chain.ended()
    assert scripts == ["generate_fmap_dataset.py"]  # the same maps, so what follows from them stays
    line = f"{chain.out}/feature_maps/dataset.json or a file of it is gone: feature_maps runs again"
    assert line in output.splitlines()
    assert chain.ended()[1] == []
    assert not list((chain.out / ".done").glob("*.new"))


def test_a_step_that_leaves_no_result_is_an_error_and_not_done(chain):
    status, _, errors, _ = chain.run(FORGETFUL="transformer_0")
    assert status == 2
    assert re.fullmatch(r"error: transformer_0 has ended without \S+/best.pt; .*", errors.splitlines()[-1])
    assert chain.ended()[1] == ["train_quantized_transformer.py", *LAST]


REMEDY = "change it back, or add --overwrite to make it and all that follows from it anew"


def test_other_data_make_all_that_follows_from_them_anew_if_they_may(chain):
    chain.ended()
    for dataset, first, scripts in (
        (chain.out / "feature_maps/dataset.json", "codebook_cond", AFTER_MAPS),
        (chain.dataset, "autoencoder", ["train_autoencoder.py", "generate_fmap_dataset.py", *AFTER_MAPS]),
    ):
        with edited(dataset) as content:
            content["_default"]["1"]["labels"] = ["other"]
        line = chain.refused()
        assert line.startswith(f"error: {chain.out}/{first}: was made with another data set (")
        assert line.endswith(REMEDY)
        assert chain.ended("--overwrite")[1] == scripts
        assert chain.ended()[1] == []


def test_data_of_other_times_are_the_same_once_they_are_verified_and_other_files_are_others(chain):
    chain.ended()
    image = next(chain.dataset.parent.rglob("*.png"))
    os.utime(image, (1, 1))
    line = chain.refused()
    assert "the files of its data set have other times or sizes than when" in line and "add --verify" in line
    assert chain.ended("--verify")[1] == []
    assert chain.ended()[1] == []
    image.write_bytes(image.read_bytes() + b" ")
    assert "add --verify" in chain.refused()
    assert f"{image}: is not the file that was written" in chain.refused("--verify")
    # The stub's feature maps are the same as before, so only what reads the images is made anew.
    assert chain.ended("--overwrite")[1] == ["train_autoencoder.py", "generate_fmap_dataset.py", "train_autoencoder.py"]
    assert chain.ended()[1] == []


@pytest.mark.parametrize(
    ("edit", "folder", "named", "scripts"),
    [
        (("recipe", {"autoencoder__max_step": 1600}), "autoencoder", "max_step (1500, now 1600)", 9),
        (("recipe", {"prune__prune_threshold": 3}), "codebook_cond", "prune_threshold (2, now 3)", 6),
        (("recipe", {"transformer_0__batch_size": 3}), "transformer_0", "batch_size (not given, now 3)", 2),
        (("transformer_0", {"dropout": 0.5}), "transformer_0", "'dropout' (0.0, now 0.5)", 2),
        # It may decide which checkpoint is the best.
        (("recipe", {"transformer_0__checkpoint_step": 7}), "transformer_0", "checkpoint_step (not given, now 7)", 2),
        (("generate", {"0__temperature": 0.5}), "generated", "stage 0: 'temperature' (1.0, now 0.5)", 1),
        (("recipe", {"generate__seed": 3}), "generated", "seed (0, now 3)", 1),
    ],
)
def test_an_edited_recipe_is_refused_before_any_step_without_overwrite(edit, folder, named, scripts, chain):
    chain.ended()
    (chain.out / ".done/autoencoder").unlink()  # interrupted: it would be trained first
    chain.edit(edit[0], **edit[1])
    if folder != "autoencoder":
        assert chain.refused() == f"error: {chain.out}/{folder}: was made with another {named}; {REMEDY}"
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


def test_a_folder_of_a_step_that_the_recipe_lost_is_named(chain):
    chain.ended()
    (chain.out / "decoder/run.json").touch()
    chain.edit("recipe", decoder=None)
    line = chain.refused("--overwrite")
    assert f"{chain.out}/decoder: is of a step that {chain.recipe}/recipe.json does not have" in line
    shutil.rmtree(chain.out / "decoder")
    assert chain.ended("--overwrite")[1][-1] == "generate_images.py"


def test_the_config_of_the_generation_follows_the_recipe_until_it_is_edited(chain):
    recipe, copy = chain.recipe / "generate.json", chain.out / "generate.json"
    chain.ended()
    chain.edit("generate", **{"0__temperature": 0.5})
    assert chain.ended("--overwrite")[1] == LAST
    assert copy.read_text() == recipe.read_text()
    copy.write_text(recipe.read_text().replace("0.5", "0.9"))
    assert "stage 0: 'temperature' (0.5, now 0.9)" in chain.refused()
    for expected in (LAST, []):
        output, scripts = chain.ended("--overwrite")
        assert scripts == expected
        assert [line for line in output.splitlines() if "edited" in line and str(copy) in line and "remove" in line]
        assert "0.9" in copy.read_text()
    chain.edit("generate", **{"0__temperature": 0.7})
    assert chain.ended()[1] == []
    copy.write_text("{}")
    assert chain.refused() == f'error: {copy}: holds no stage; expected keys "0", "1", …'
    copy.unlink()
    output, scripts = chain.ended("--overwrite")
    assert (scripts, copy.read_text()) == (LAST, recipe.read_text())
    assert "edited" not in output


@pytest.mark.parametrize("differs", [False, True])
def test_a_config_of_which_nothing_is_remembered_is_kept_where_it_differs(differs, chain):
    recipe, copy = chain.recipe / "generate.json", chain.out / "generate.json"
    copy.parent.mkdir()
    copy.write_text(recipe.read_text().replace("1.0", "0.9" if differs else "1.0"))
    kept = copy.read_text()
    output, _ = chain.ended()
    assert ("edited" in output, copy.read_text()) == (differs, kept)
    chain.edit("generate", **{"0__temperature": 0.7})
    chain.ended("--overwrite")
    assert (copy.read_text() == kept) == differs


def test_the_chain_ends_with_the_status_of_a_step(chain):
    status, _, _, commands = chain.run(FAILING="feature_maps")
    assert (status, len(commands)) == (7, 2)
    assert {path.name for path in (chain.out / ".done").iterdir()} == {"generate.json", "autoencoder"}


def test_a_signal_to_several_processes_ends_the_chain_with_its_number(chain):
    """torchrun ends with 1, whatever the signal."""
    process = chain.start("codebook_cond", "--nproc", "2")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, chain.received) == (143, [signal.SIGTERM])
    assert errors.splitlines() == ["terminal: False", "stopped; the same command as before goes on from here"]
    assert {path.name for path in (chain.out / ".done").iterdir()} == {"generate.json", "autoencoder", "feature_maps"}


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


def test_a_second_signal_is_passed_on_too_but_not_a_second_hangup(pair):
    process = pair.start("codebook_cond")
    for number, so_far in ((signal.SIGHUP, 1), (signal.SIGHUP, 1), (signal.SIGINT, 2), (signal.SIGINT, 3)):
        process.send_signal(number)
        until(lambda so_far=so_far: pair.signals == so_far)
    process.communicate(timeout=20)
    assert pair.received == [signal.SIGHUP, signal.SIGINT, signal.SIGINT]


def test_under_nohup_a_hangup_is_ignored(pair):
    process = pair.start("codebook_cond", before=["nohup"], stdin=subprocess.DEVNULL)
    os.killpg(process.pid, signal.SIGHUP)
    os.kill(pair.child, signal.SIGHUP)
    Path(f"{pair.started}.end").touch()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert (pair.received, len(pair.commands)) == ([], 2)


def test_the_chain_ends_after_a_signal_although_its_step_ends_well(chain):
    """The step is done, and the chain does not go on."""
    chain.stub.write_text(STUB.replace("7 if received else 0", "0"))
    process = chain.start("autoencoder")
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 143
    assert (chain.out / ".done/autoencoder").exists()
    assert len(chain.commands) == 1


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


def test_a_signal_that_comes_as_a_program_starts_is_passed_on_once_it_is_there(monkeypatch):
    popen = subprocess.Popen

    def start(*words, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return popen(*words, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    with child.attending() as attendant:
        assert attendant.run(["sleep", "60"]) == attendant.stop == 143


def terminal_of(pair, slow):
    """Start the pair on a terminal that it controls; return the process and our end of the terminal."""
    ours, theirs = pty.openpty()
    opened, modes = os.ttyname(theirs), termios.tcgetattr(theirs)
    modes[3] |= termios.TOSTOP  # the strictest one: what is not in the foreground must not write
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    # The leader of a session gets the first terminal that it opens.
    command = ["bash", "-c", f'exec "$@" < {opened} > {opened} 2>&1', "bash"]
    process = pair.start(slow, before=command, stdin=None, stdout=None, stderr=None)
    os.close(theirs)
    return process, ours


def everything(terminal):
    """All that was written to a terminal, until its last process closes it."""
    text = b""
    try:
        while part := os.read(terminal, 1 << 16):
            text += part
    except OSError:  # EIO, on Linux
        pass
    os.close(terminal)
    return text.decode()


def test_ctrl_c_on_a_terminal_reaches_the_step_once(pair):
    process, terminal = terminal_of(pair, "codebook_cond")
    os.write(terminal, b"\x03")
    text = everything(terminal)
    assert process.wait(timeout=20) == 7, text
    assert pair.received == [signal.SIGINT]
    assert "terminal: True" in text  # so progress bars are drawn
    lines = [line for line in text.replace("^C", "").splitlines() if line]
    assert [line for line in lines if not line.startswith(("== ", "terminal: ")) and " took " not in line] == []


def test_a_terminal_that_is_lost_ends_the_step(pair):
    process, terminal = terminal_of(pair, "codebook_cond")
    os.close(terminal)
    assert process.wait(timeout=20) == 7
    assert pair.received == [signal.SIGHUP]


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of a process from /proc")
def test_ctrl_z_pauses_the_step_too(pair):
    process, terminal = terminal_of(pair, "codebook_cond")
    os.write(terminal, b"\x1a")
    until(lambda: {state_of(process.pid), state_of(pair.child)} == {"T"})
    process.send_signal(signal.SIGCONT)
    until(lambda: state_of(pair.child) != "T")
    os.write(terminal, b"\x03")
    text = everything(terminal)
    assert process.wait(timeout=20) == 7, text
    assert pair.received == [signal.SIGINT]
