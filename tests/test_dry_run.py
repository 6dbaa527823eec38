"""The table of a dry run: what is run for it, and how it follows from few training steps."""

import json
import re
import shutil
from datetime import datetime, timedelta

import pytest

from scripts import dry_run
from tests.helpers.deaths import dying
from tests.helpers.reports import change_attempt
from tests.helpers.scripts import TINY, expect_error, run_main
from utils.progress import duration
from utils.run_folder import RunFolder

STEPS = ["autoencoder", "feature_maps", "codebook_cond", "prune_codebook_cond", "codebook_0", "prune_codebook_0"]
STEPS += ["transformer_0", "generate"]
GIB = 2**30
RECIPE = """
IMAGE_SIZE=32
AUTOENCODER="--max-step 100 --batch-size 16 --checkpoint-step 30"
FEATURE_MAPS="--flip"
CODEBOOK="--max-epoch 2 --batch-size 16"
PRUNE="--batch-size 16"
TRANSFORMER_0="--max-step 90 --checkpoint-step 45"
TRANSFORMER_1="--max-step 1000000 --keep-checkpoint 2"
TRANSFORMER_2="--max-epoch 1"
GENERATE="--num-images 4"
"""
PLAN = {"seconds_per_step": 0.5, "checkpoint": 2 * GIB, "seconds_per_checkpoint": 3.0}
COUNTED = {"batch": 16, "memory": GIB, "memory_per_image": GIB / 8}
# Of 40 images 20 were used. It takes 2 seconds to start, then 32, of a training 10 for its 20 training steps and 3 for
# its checkpoint. What pruning has taken, the trainings take once more for the other images.
ONCE = 2 + 32 - 10 - 3
ROWS = {
    "autoencoder, train_autoencoder.py": ("100", ONCE + 100 * 0.5 + 4 * 3, "8.0 GiB", "3.0 GiB"),
    "feature_maps, generate_fmap_dataset.py": ("", 2 + 2 * 32, " MiB", ""),
    # 72 feature maps, in two epochs of five batches
    "codebook_0, train_codebook.py": ("10", ONCE + 10 * 0.5 + 3 + 32, "2.0 GiB", ""),
    "codebook_0, prune_codebook.py": ("", 2 + 2 * 32, "0.0 MiB", ""),
    # which reads two new codebooks
    "transformer_0, train_quantized_transformer.py": ("90", ONCE + 45 + 2 * 3 + 2 * 32, "4.0 GiB", "3.0 GiB"),
    # 1,000 epochs of nine batches, of whose checkpoints two are kept, and the best
    "transformer_1, train_quantized_transformer.py": ("9000", ONCE + 4500 + 9 * 3 + 32, "6.0 GiB", "3.0 GiB"),
    "transformer_2, train_quantized_transformer.py": ("9", ONCE + 4.5 + 3 + 32, "2.0 GiB", "3.0 GiB"),
    "generated, generate_images.py": ("", 2 + 32, " MiB", ""),
}


@pytest.fixture
def recipe(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "mine")
    (folder / "recipe.sh").write_text(RECIPE)
    return folder


def test_a_shortened_recipe_is_the_recipe_with_few_training_steps(recipe, tmp_path):
    before, short = dry_run.read_settings(recipe), dry_run.shorten(recipe, tmp_path / "short")
    after, few = dry_run.read_settings(short), f" {dry_run.SHORT}"
    trained = {"AUTOENCODER", "CODEBOOK", "TRANSFORMER_0", "TRANSFORMER_1", "TRANSFORMER_2"}
    assert all(after[name] == before[name] + few for name in trained)
    assert all(after[name] == before[name] for name in ("FEATURE_MAPS", "GENERATE"))
    assert after["DECODER"] == ""  # this recipe has none
    assert after["PRUNE"] == "--batch-size 16 --prune-threshold 0"
    with (recipe / "recipe.sh").open("a") as file:
        file.write('DECODER="--max-step 9"')
    other = dry_run.read_settings(dry_run.shorten(recipe, tmp_path / "other", "--max-step 3"))
    assert other["DECODER"] == "--max-step 9 --max-step 3"
    assert other["CODEBOOK"] == after["CODEBOOK"]


def test_the_table_grows_with_training_steps_checkpoints_and_images(recipe, faces, tiny_run, monkeypatch, capsys):
    def run_steps(short, folder, device):
        """Stands for the chain: a run whose scripts have each taken 32 seconds."""
        run = RunFolder(shutil.copytree(tiny_run, folder / "run"))
        for step in run.steps:
            shutil.rmtree(step.checkpoints, ignore_errors=True)
            shutil.rmtree(step.images, ignore_errors=True)
            for number in range(2 if step.kind == "codebook" else 1):
                begin = datetime.now().astimezone()
                times = {"begin": begin.isoformat(), "end": (begin + timedelta(seconds=32)).isoformat()}
                is_trained = step.kind in ("autoencoder", "codebook", "transformer") and number == 0
                plan = PLAN | (COUNTED if step.kind != "codebook" else {}) if is_trained else None
                change_attempt(step, number, **times, peak_memory=4 * GIB, plan=None)
                change_attempt(step, number, plan=plan)

    monkeypatch.setattr(dry_run, "run_steps", run_steps)
    monkeypatch.setattr(dry_run, "seconds_to_start", lambda: 2.0)
    monkeypatch.setattr(dry_run, "MOST", 20)
    run_main(dry_run.main, recipe, faces)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    lines = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    found = {name: (steps, time, disk, half) for name, steps, time, disk, _, half in lines[1:-1]}
    assert found.keys() >= ROWS.keys()
    for name, (steps, seconds, disk, half) in ROWS.items():
        assert found[name][:2] + found[name][3:] == (steps, duration(seconds), half)
        assert found[name][2].endswith(disk)
    assert {memory for *_, memory, _ in lines[1:]} == {"4.0 GiB"}


def test_the_images_of_a_part_are_where_they_were(tmp_path):
    record = dry_run.absolute({"image_fpath": "../a.png", "labels": ["x"]}, tmp_path / "data")
    assert record == {"image_fpath": str(tmp_path.resolve() / "a.png"), "labels": ["x"]}


def test_a_dry_run_that_fails_ends_with_the_status_of_the_chain(recipe, faces, tmp_path, capfd):
    (recipe / "transformer_0.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        dry_run.run_steps(recipe, tmp_path, "cpu")
    assert stopped.value.code == 2
    assert "has no transformer_0.json" in capfd.readouterr().err


def test_a_chain_has_ended_when_an_interrupted_dry_run_ends(tmp_path, monkeypatch):
    script = tmp_path / "scripts/train_cascade.sh"
    script.parent.mkdir()
    script.write_text(
        f"trap 'sleep 1; echo late; touch {tmp_path}/ended; exit 143' TERM\necho '== one'\nwhile :; do sleep 0.1; done"
    )
    monkeypatch.setattr(dry_run, "ROOT", tmp_path)
    monkeypatch.setattr(dry_run, "print", dying(print, 0), raising=False)
    with pytest.raises(KeyboardInterrupt):
        dry_run.run_steps(tmp_path, tmp_path, "cpu")
    assert (tmp_path / "ended").exists()


def test_images_of_another_size_are_refused_before_anything_runs(recipe, faces, capsys):
    (recipe / "recipe.sh").write_text("IMAGE_SIZE=64")
    line = expect_error(capsys, dry_run.main, [recipe, faces])
    assert line.startswith(f"error: {faces}: holds images of 32×32")


def test_a_recipe_of_one_stage_is_tried_as_a_whole(recipe, faces, capfd):
    for name in ("codebook_1", "codebook_2", "transformer_1", "transformer_2"):
        (recipe / f"{name}.json").unlink()
    (recipe / "generate.json").write_text(json.dumps({"0": json.loads((TINY / "generate.json").read_text())["0"]}))
    run_main(dry_run.main, recipe, faces, "--device", "cpu")
    output = capfd.readouterr().out.splitlines()
    assert [line for line in output if line.startswith("== ")] == [f"== {name}" for name in STEPS]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output if line.startswith("| ")][1:]
    folders = [name.removeprefix("prune_") for name in STEPS[:-1]]
    assert [row[0].split(",")[0] for row in rows] == [*folders, "generated", "all"]
    assert all(re.fullmatch(r"0:\d\d:\d\d", row[2]) and row[4].endswith(" MiB") for row in rows)
    assert rows[0][1] == "100" and rows[-2][1] == "" and rows[-3][1] == "90"
    assert rows[-1][2] > max(row[2] for row in rows[:-1])
