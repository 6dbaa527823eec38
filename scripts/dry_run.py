"""The hours, disk and memory of a recipe on this machine: a short run of all its steps, and a table.

    python -m scripts.train_cascade --dry-run demo-64 data/photos/dataset.json

The steps run with up to 1,000 images of the data set, taken evenly, in a temporary folder (of TMPDIR, if that is set).
Times and disk are then scaled to the recipe's training steps and checkpoints and to the number of images. Not counted
is that checkpoints are measured on more images, and log lines on some, which adds a few percent. Memory is the most
that a step has held, or its GPU, perhaps with some that the steps before it have left, since one process runs them all;
the saving of half a batch is counted by the tensors of a training step.
"""

from utils.runtime.threads import inherited

import gc
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from scripts import few_images
from scripts.recipe import check, load_configs, open_images, options_of
from utils.core.tables import table
from utils.data.dataset_json import write_dataset
from utils.data.records import read_dataset
from utils.runs.attempt import Attempt, read_attempts
from utils.runs.chain import ROOT, Recipe, Step, steps_of
from utils.runs.folders import CONDITION, RunFolder
from utils.runtime import cli
from utils.runtime.child import Attendant, attending
from utils.runtime.device import reset_peak_memory
from utils.runtime.footprint import readable
from utils.runtime.progress import duration
from utils.training.loop import Plan, kept
from utils.training.metrics import TIMED

MOST = 1000  # images that the steps run with
DRAWN = 5  # images that are generated, at most
# What a dry run takes itself, in starts of a script, which are as slow as the machine and its other work make them: so
# many, and one more for so many tokens of the finest grid. Measured: tiny-32 6, demo-64 26, laptop-128 about 45.
STARTS, TOKENS = 10, 20
SHORT = dict.fromkeys(("max_epoch", "max_step", "checkpoint_step", "log_step"), TIMED)


@dataclass(frozen=True)
class Estimate:
    """A row of the table: one script in one step."""

    name: str
    steps: int | None  # of a training
    seconds: float
    disk: float  # bytes
    memory: int  # bytes
    half: float | None  # bytes with half the batch


def estimate(recipe: Recipe, dataset: Path, device: str | None) -> None:
    """Check the recipe, cut the data set, run all steps, print the table."""
    with attending() as attendant, tempfile.TemporaryDirectory() as scratch:
        run = RunFolder(Path(scratch, "run"), len(recipe.stages))
        steps = steps_of(run, recipe, dataset)
        check(recipe, steps, run, recipe.folder / "generate.json")
        images = open_images(recipe, dataset)
        records, _ = read_dataset(dataset, ("image_fpath",))
        used = records[:: -(-len(records) // MOST)]
        for record in used:  # in a data set that lies elsewhere
            record["image_fpath"] = str((images.folder / record["image_fpath"]).resolve())
        write_dataset(Path(scratch, "dataset.json"), used)
        start, tokens = seconds_to_start(), math.prod(load_configs(recipe, steps)[run.codebooks[-1].name].grid)
        own = duration(start * (STARTS + tokens / TOKENS))
        print(f"trying all steps with {len(used)} of {len(records)} images takes about {own}", flush=True)
        run_steps(recipe, run, Path(scratch, "dataset.json"), device, attendant)
        rows = Scaling(len(records), len(records) / len(used), start, recipe).estimates(run)
    measured = f"by {TIMED} training steps each with {len(used)} of them"
    print(f"{recipe.folder.name} with {len(records)} images, {measured}:\n")
    seconds, disk = sum(row.seconds for row in rows), sum(row.disk for row in rows)
    whole = Estimate("all", None, seconds, disk, max(row.memory for row in rows), None)
    cells = []
    for row in (*rows, whole):
        half = "" if row.half is None else readable(row.half)
        cells.append([row.name, row.steps or "", duration(row.seconds), readable(row.disk), readable(row.memory), half])
    print(table(("step", "training steps", "h:min:s", "disk", "peak memory", "about, with half the batch"), cells))
    few_images.warn(len(records))


def shorten(recipe: Recipe) -> Recipe:
    """A recipe with few training steps and few images to generate, and all units kept."""
    short = recipe.change(("autoencoder", "decoder", "codebook", *recipe.stages), **SHORT)
    short = short.change(("generate",), num_images=min(DRAWN, recipe.settings["generate"].get("num_images", DRAWN)))
    return short if "keep" in short.settings["prune"] else short.change(("prune",), prune_threshold=0)


def run_steps(recipe: Recipe, run: RunFolder, dataset: Path, device: str | None, attendant: Attendant) -> None:
    """Run the steps of the shortened recipe in a process of their own, since each start of one takes seconds."""
    run.path.mkdir()
    shutil.copy(recipe.folder / "generate.json", run.generation)
    command = [sys.executable, "-m", "scripts.dry_run", recipe.folder.resolve(), run.path, dataset, device or "auto"]
    attendant.check(command, env=inherited(), cwd=ROOT)


def main(argv: list[str] | None = None) -> None:
    """What that process does: show which step it is, its progress and its errors, but not its log."""
    folder, path, dataset, device = argv or sys.argv[1:]
    recipe = shorten(Recipe.find(Path(folder)))
    with Path(os.devnull).open("w") as nowhere:
        for step in steps_of(RunFolder(Path(path), len(recipe.stages)), recipe, Path(dataset)):
            print(f"== {step.name}", flush=True)
            gc.collect()
            torch.compiler.reset()
            reset_peak_memory()
            with redirect_stdout(nowhere):
                import_module(step.script).main([*step.command[1:], "--device", device])


def seconds_to_start() -> float:
    """How long a script takes before it does anything."""
    since = time.monotonic()
    subprocess.run([sys.executable, ROOT / "train_autoencoder.py", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - since


@dataclass(frozen=True)
class Scaling:
    """From the measured steps to all images and all training steps."""

    images: int
    growth: float  # images for each one that was used
    start: float  # seconds that a script takes before its attempt begins
    recipe: Recipe

    def estimates(self, run: RunFolder) -> list[Estimate]:
        """The estimates of all steps."""
        pairs = []
        for step in steps_of(run, self.recipe, Path("unread")):
            newest = {attempt.script: attempt for attempt in read_attempts(step.folder)}
            pairs.append((step, newest[f"{step.script}.py"]))
        # A pass over all feature maps by each codebook, which its training and the stages make once more.
        passes = {step.folder.level: attempt.seconds for step, attempt in pairs if step.section == "prune"}
        return [self.estimate(step, attempt, passes) for step, attempt in pairs]

    def estimate(self, step: Step, attempt: Attempt, passes: dict[str, float]) -> Estimate:
        """The estimate of a step; `passes` are the seconds of a pass by each codebook."""
        folder, name = step.folder, f"{step.folder.name}, {attempt.script}"
        files = (path for path in folder.path.rglob("*") if path.is_file() and path.parent != folder.checkpoints)
        size = sum(path.stat().st_size for path in files)  # bytes
        if attempt.plan is None:
            growth = self.growth
            if step.section == "generate":
                growth = max(1.0, options_of(self.recipe, step).num_images / DRAWN)
            disk = 0.0 if step.section == "prune" else growth * size  # a pruned codebook is small
            return Estimate(name, None, self.start + growth * attempt.seconds, disk, attempt.peak_memory, None)
        plan, options = Plan(**attempt.plan), options_of(self.recipe, step)
        flips = step.script != "train_autoencoder" and self.recipe.settings["feature_maps"].get("flip", False)
        items = round(self.images * (1 - options.val_fraction - options.test_fraction)) * (1 + flips)
        steps = options.planned_steps(items)
        checkpoints = -(-steps // options.checkpoint_step)
        levels = [folder.level, *([CONDITION] if step.name == "transformer_0" else [])]
        more = (self.growth - 1) * sum(passes.get(level, 0.0) for level in levels)
        once = attempt.seconds - TIMED * plan.seconds_per_step - plan.seconds_per_checkpoint
        seconds = steps * plan.seconds_per_step + checkpoints * plan.seconds_per_checkpoint
        disk = kept(steps, options.checkpoint_step, options.keep_checkpoint) * plan.checkpoint + checkpoints * size
        half = plan.batch and attempt.peak_memory - plan.batch / 2 * plan.memory_per_image
        return Estimate(name, steps, self.start + max(0.0, once) + more + seconds, disk, attempt.peak_memory, half)


if __name__ == "__main__":
    cli.run(main)
