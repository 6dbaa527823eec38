"""The table of a dry run: what is run for it, and how it follows from few training steps."""

import re
import shutil
import tempfile
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from scripts import dry_run, train_cascade
from tests.helpers.chain import recipe_of
from tests.helpers.reports import change_attempt
from tests.helpers.runs import recipe_json
from tests.helpers.scripts import TINY, run_main
from utils.core.files import UserError
from utils.core.size import Size
from utils.runs.chain import Recipe, folders_in
from utils.runtime.progress import duration
from utils.training.metrics import TIMED

STEPS = ["autoencoder", "feature_maps", "codebook_cond", "prune_codebook_cond", "codebook_0", "prune_codebook_0"]
STEPS += ["transformer_0", "generate"]
GIB = 2**30
RECIPE = Recipe(
    TINY,
    {
        "autoencoder": {"max_step": 100, "batch_size": 16, "checkpoint_step": 30},
        "feature_maps": {"flip": True, "num_moved": 2},
        "codebook": {"max_epoch": 2, "batch_size": 16},
        "prune": {"batch_size": 16},
        "transformer_0": {"max_step": 90, "checkpoint_step": 45},
        "transformer_1": {"max_step": 1000000, "keep_checkpoint": 2},
        "transformer_2": {"max_epoch": 1},
        "generate": {"num_images": 4},
    },
    image_size=Size(32, 32),
)
PLAN = {"seconds_per_step": 0.5, "checkpoint": 2 * GIB, "seconds_per_checkpoint": 3.0}
# Of 40 images 20 are used. Each step takes 32 s; of a training's 32 s, its 20 training steps
# take 10 and its checkpoint 3. The time to prune is added once more to trainings that also go through the other images.
ONCE = 32 - 10 - 3
ROWS = {
    "autoencoder, train_autoencoder.py": ("100", ONCE + 100 * 0.5 + 4 * 3, "8.0 GiB"),
    "feature_maps, generate_fmap_dataset.py": ("", 2 * 32, " MiB"),
    # 72 feature maps, in two epochs of five batches
    "codebook_0, train_codebook.py": ("10", ONCE + 10 * 0.5 + 3 + 32, "2.0 GiB"),
    "codebook_0, prune_codebook.py": ("", 2 * 32, "0.0 MiB"),
    # which reads two new codebooks
    "transformer_0, train_quantized_transformer.py": ("90", ONCE + 45 + 2 * 3 + 2 * 32, "4.0 GiB"),
    # with moved copies 1,000 epochs of 18 batches, of whose checkpoints two are kept, and the best
    "transformer_1, train_quantized_transformer.py": ("18000", ONCE + 9000 + 18 * 3 + 2 * 32, "8.0 GiB"),
    "transformer_2, train_quantized_transformer.py": ("18", ONCE + 9 + 3 + 2 * 32, "2.0 GiB"),
    "generated, generate_images.py": ("", 32, " MiB"),
}


def test_a_shortened_recipe_is_the_recipe_with_few_training_steps_and_images():
    short, few = dry_run.shorten(RECIPE), dict.fromkeys(dry_run.SHORT, TIMED)
    for name in ("autoencoder", "codebook", *RECIPE.stages):
        assert short.settings[name] == RECIPE.settings[name] | few
    assert all(short.settings[name] == RECIPE.settings[name] for name in ("feature_maps", "generate"))
    assert "decoder" not in short.settings  # this recipe has none
    assert short.settings["prune"] == {"batch_size": 16, "prune_threshold": 0}
    more = {"decoder": {"max_step": 99}, "prune": {"keep": 3}, "generate": {"num_images": 25}}
    other = dry_run.shorten(replace(RECIPE, settings=RECIPE.settings | more)).settings
    assert (other["decoder"], other["prune"], other["generate"]) == (few, {"keep": 3}, {"num_images": 5})
    more = {"autoencoder": {"max_step": 5000, "warmup_step": 100, "schedule_step": 5000}}
    more |= {"generate": {"num_images": 25}}
    tenth = dry_run.shorten(replace(RECIPE, settings=RECIPE.settings | more), 0.1).settings
    expected = {"warmup_step": 50, "schedule_step": 500} | dict.fromkeys(dry_run.SHORT, 500)
    assert (tenth["autoencoder"], tenth["generate"]) == (expected, {"num_images": 25})


def test_the_table_grows_with_training_steps_checkpoints_and_images(faces, tiny_run, monkeypatch, capsys):
    def run_steps(recipe, run, *_):
        """Stands for the chain: a run whose scripts have each taken 32 seconds."""
        shutil.copytree(tiny_run, run.path)
        for step in folders_in(run):
            shutil.rmtree(step.checkpoints, ignore_errors=True)
            shutil.rmtree(step.images, ignore_errors=True)
            for number in range(2 if step.kind == "codebook" else 1):
                begin = datetime.now().astimezone()
                times = {"begin": begin.isoformat(), "end": (begin + timedelta(seconds=32)).isoformat()}
                is_trained = step.kind in ("autoencoder", "codebook", "transformer") and number == 0
                plan = PLAN if is_trained else None
                change_attempt(step, number, **times, peak_memory=4 * GIB, plan=None)
                change_attempt(step, number, plan=plan, arguments={"max_step": TIMED, "num_images": 4})

    monkeypatch.setattr(dry_run, "run_steps", run_steps)
    monkeypatch.setattr(dry_run, "MOST", 20)
    dry_run.estimate(RECIPE, faces, None)
    output = capsys.readouterr()
    assert "warning: 40 images, fewer than 500" in output.err
    assert output.out.startswith("trying all steps with 20 of 40 images\n")
    rows = [line for line in output.out.splitlines() if line.startswith("| ")]
    lines = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    shown = {name: (steps, time, disk) for name, steps, time, disk, _ in lines[1:-1]}
    assert shown.keys() >= ROWS.keys()
    for name, (steps, seconds, disk) in ROWS.items():
        assert shown[name][:2] == (steps, duration(seconds))
        assert shown[name][2].endswith(disk)
    assert {memory for *_, memory in lines[1:]} == {"4.0 GiB"}


def test_a_dry_run_that_fails_says_why_and_leaves_nothing(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match="--device none-such cannot be used here"):
        dry_run.estimate(RECIPE, faces, "none-such")
    assert [*tmp_path.iterdir()] == []


def test_a_recipe_of_one_stage_is_tried_as_a_whole(faces, tmp_path, capsys):
    folder = recipe_of(1, tmp_path / "mine")
    sections = {name: options for name, options in RECIPE.settings.items() if name not in RECIPE.stages[1:]}
    (folder / "recipe.json").write_text(recipe_json(sections, image_size=32))
    run_main(train_cascade.main, "--dry-run", f"{folder}/", faces, "--device", "cpu")
    output = capsys.readouterr().out.splitlines()
    assert [line for line in output if line.startswith("== ")] == [f"== {name}" for name in STEPS]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output if line.startswith("| ")][1:]
    folders = [name.removeprefix("prune_") for name in STEPS[:-1]]
    assert [row[0].split(",")[0] for row in rows] == [*folders, "generated", "all"]
    assert all(re.fullmatch(r"0:\d\d:\d\d", row[2]) and row[4].endswith(("MiB", "GiB")) for row in rows)
    assert rows[0][1] == "100" and rows[-2][1] == "" and rows[-3][1] == "90"
    assert rows[-1][2] > max(row[2] for row in rows[:-1])
