"""The chain takes the number of stages from its recipe."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUB = '#!/usr/bin/env bash\nprintf "%s\\n" "$(basename "$1") ${*:2}" >> "$CALLS"\n'


@pytest.fixture
def chain(tmp_path):
    """A function: run the chain of so many stages with a stub for Python; return status, errors and commands."""

    def run(number, is_complete=True):
        for name in ("scripts", "configs"):
            shutil.copytree(ROOT / name, tmp_path / name, dirs_exist_ok=True)
        recipe = shutil.copytree(tmp_path / "configs/tiny-32", tmp_path / "configs/mine")
        for path in recipe.glob("*_[0-9].json"):
            path.unlink()
        for level in range(number):
            for kind in ("codebook", "transformer"):
                shutil.copy(tmp_path / f"configs/tiny-32/{kind}_{min(level, 2)}.json", recipe / f"{kind}_{level}.json")
        (recipe / "generate.json").write_text(json.dumps({str(level): {} for level in range(number)}))
        if number == 4 and is_complete:
            with (recipe / "recipe.sh").open("a") as file:
                file.write('TRANSFORMER_3="--max-step 7"\n')
        stub, dataset = tmp_path / "python", tmp_path / "dataset.json"
        stub.write_text(STUB)
        stub.chmod(0o755)
        dataset.touch()
        environment = os.environ | {"PYTHON": str(stub), "CALLS": str(tmp_path / "calls")}
        command = ["bash", str(tmp_path / "scripts/train_cascade.sh"), "mine", str(dataset), str(tmp_path / "out")]
        found = subprocess.run(command, env=environment, capture_output=True, text=True)
        calls = tmp_path / "calls"
        return found.returncode, found.stderr, calls.read_text().splitlines() if calls.exists() else []

    return run


def flag(command, name):
    words = command.split()
    return words[words.index(name) + 1]


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_recipe_of_any_number_of_stages_is_chained(number, chain, tmp_path):
    status, errors, commands = chain(number)
    assert status == 0, errors
    out, names = tmp_path / "out", ["codebook_cond", *(f"codebook_{level}" for level in range(number))]
    folders = [Path(flag(command, "--out-dir")).relative_to(out).as_posix() for command in commands]
    trained = [f"transformer_{level}" for level in range(number)]
    books = [name for name in names for _ in ("trained", "pruned")]
    assert folders == ["autoencoder", "feature_maps", *books, *trained, "generated"]
    for level, command in enumerate(commands[-1 - number : -1]):
        assert ("--train-base-model" in command) == (level == 0)
        for name, book in (("--lr-codebook-path", names[level]), ("--hr-codebook-path", names[level + 1])):
            assert flag(command, name) == f"{out}/{book}/models_checkpoint/pruned_codebook.pt"
        if level:
            assert flag(command, "--previous-path") == f"{out}/transformer_{level - 1}/models_checkpoint/best.pt"
    assert number < 4 or flag(commands[-2], "--max-step") == "7"
    assert len(json.loads((out / "generate.json").read_text())) == number


@pytest.mark.parametrize(("number", "named"), [(0, "has no transformer_0.json"), (4, "does not set TRANSFORMER_3")])
def test_an_incomplete_recipe_is_refused_in_one_line(number, named, chain, tmp_path):
    status, errors, commands = chain(number, is_complete=False)
    assert status == 2
    assert named in errors.splitlines()[-1]
    assert commands == []
