"""What a recipe will take on this machine: all of its steps, each training for a few training steps, and a table.

    python -m scripts.train_cascade --dry-run demo-64 data/photos/dataset.json

The steps run with up to 1,000 images of the data set, taken evenly, in a temporary folder (of TMPDIR, if that is set).
From there, times and disk grow with the recipe's training steps and checkpoints and with the number of images. Not
counted is that checkpoints are measured on more images, and log lines on some, which adds a few percent. Memory is the
most that a process has held, or its GPU; what half a batch saves is counted by the tensors of a training step.
"""

import utils.threads

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from reporting.run import Step as DoneStep
from reporting.run import read_run
from scripts.recipe import check, open_images, options_of
from utils.attempt import Attempt
from utils.chain import ROOT, Recipe, steps_of
from utils.child import Attendant, attending
from utils.footprint import readable
from utils.index import read_dataset, write_dataset
from utils.metrics import TIMED
from utils.options import words_of
from utils.progress import duration
from utils.run_folder import CONDITION, RunFolder
from utils.tables import table
from utils.task import TrainingOptions
from utils.training import Plan, kept

MOST = 1000  # images that the steps run with
SHORT = dict.fromkeys(("max_epoch", "max_step", "checkpoint_step", "log_step"), TIMED)


@dataclass(frozen=True)
class Estimate:
    """A row of the table: what one script does in one step."""

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
        check(recipe, steps_of(run, recipe, dataset), run, recipe.folder / "generate.json")
        images = open_images(recipe, dataset)
        records, _ = read_dataset(dataset, ("image_fpath",))
        used = [absolute(record, images.folder) for record in records[:: -(-len(records) // MOST)]]
        write_dataset(Path(scratch, "dataset.json"), used)
        run_steps(recipe, run, Path(scratch, "dataset.json"), device, attendant)
        whole = Whole(len(records), len(records) / len(used), seconds_to_start(), recipe)
        rows = whole.estimates(list(read_run(run).steps.values()))
    measured = f"by {TIMED} training steps each with {len(used)} of them"
    print(f"{recipe.folder.name} with {len(records)} images, {measured}:\n")
    print_table(rows)


def absolute(record: dict, folder: Path) -> dict:
    """A record whose path does not depend on where its dataset.json lies."""
    return record | {"image_fpath": str((folder / record["image_fpath"]).resolve())}


def shorten(recipe: Recipe, **options: object) -> Recipe:
    """A recipe with few training steps, one checkpoint for each training, and all units kept.

    `options` are those of all trainings by gradients, instead of the usual ones.
    """
    short = recipe.change(("autoencoder", "decoder", *recipe.stages), **options or SHORT).change(("codebook",), **SHORT)
    return short if "keep" in short.settings["prune"] else short.change(("prune",), prune_threshold=0)


def run_steps(recipe: Recipe, run: RunFolder, dataset: Path, device: str | None, attendant: Attendant) -> None:
    """Run the steps of the shortened recipe; show which one it is, its progress and its errors."""
    run.path.mkdir()
    shutil.copy(recipe.folder / "generate.json", run.generation)
    for step in steps_of(run, shorten(recipe), dataset):
        print(f"== {step.name}")
        command, environment = [sys.executable, *step.command, *words_of({"device": device})], utils.threads.inherited()
        attendant.check(command, env=environment, stdout=subprocess.DEVNULL)


def seconds_to_start() -> float:
    """How long a script takes before it does anything."""
    since = time.monotonic()
    subprocess.run([sys.executable, ROOT / "train_autoencoder.py", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - since


@dataclass(frozen=True)
class Whole:
    """From what was measured to all images and all training steps."""

    images: int
    growth: float  # images for each one that was used
    start: float  # seconds that a script takes before its attempt begins
    recipe: Recipe

    def estimates(self, steps: list[DoneStep]) -> list[Estimate]:
        """What each script takes in each step."""
        jobs = [(step, job.last) for step in steps for job in step.jobs.values()]
        # A pass over all feature maps by each codebook, which its training and the stages make once more.
        passes = {step.folder.level: last.seconds for step, last in jobs if last.script == "prune_codebook.py"}
        return [self.estimate(step, last, passes) for step, last in jobs]

    def estimate(self, step: DoneStep, attempt: Attempt, passes: dict[str, float]) -> Estimate:
        """What a script takes."""
        folder, name = step.folder, f"{step.folder.name}, {attempt.script}"
        files = (path for path in folder.path.rglob("*") if path.is_file() and path.parent != folder.checkpoints)
        size = sum(path.stat().st_size for path in files)
        if attempt.plan is None:
            growth = 1.0 if folder.kind == "generated" else self.growth
            disk = 0.0 if folder.kind == "codebook" else growth * size  # a pruned codebook is small
            return Estimate(name, None, self.start + growth * attempt.seconds, disk, attempt.peak_memory, None)
        plan, asked = Plan(**attempt.plan), self.asked(step, attempt)
        steps = asked.planned_steps(self.items(asked, attempt))
        checkpoints = -(-steps // asked.checkpoint_step)
        levels = [folder.level, *([CONDITION] if folder.level == "0" and folder.kind == "transformer" else [])]
        more = (self.growth - 1) * sum(passes.get(level, 0.0) for level in levels)
        once = attempt.seconds - TIMED * plan.seconds_per_step - plan.seconds_per_checkpoint
        seconds = steps * plan.seconds_per_step + checkpoints * plan.seconds_per_checkpoint
        disk = kept(steps, asked.checkpoint_step, asked.keep_checkpoint) * plan.checkpoint + checkpoints * size
        half = plan.batch and attempt.peak_memory - plan.batch / 2 * plan.memory_per_image
        return Estimate(name, steps, self.start + max(0.0, once) + more + seconds, disk, attempt.peak_memory, half)

    def asked(self, step: DoneStep, attempt: Attempt) -> TrainingOptions:
        """What the recipe asks of a trainer."""
        chain = steps_of(RunFolder(step.folder.path.parent, len(self.recipe.stages)), self.recipe, Path("unread"))
        name, script = step.folder.name, attempt.script.removesuffix(".py")
        return options_of(
            self.recipe, next(each for each in chain if (each.folder.name, each.script) == (name, script))
        )

    def items(self, asked: TrainingOptions, attempt: Attempt) -> int:
        """About how many images or feature maps a trainer trains on."""
        flips = attempt.script != "train_autoencoder.py" and self.recipe.settings["feature_maps"].get("flip", False)
        return round(self.images * (1 - asked.val_fraction - asked.test_fraction)) * (1 + flips)


def print_table(rows: list[Estimate]) -> None:
    """Print the rows in Markdown, and their sum."""
    seconds, disk = sum(row.seconds for row in rows), sum(row.disk for row in rows)
    whole = Estimate("all", None, seconds, disk, max(row.memory for row in rows), None)
    heads = ("step", "training steps", "h:min:s", "disk", "peak memory", "about, with half the batch")
    cells = []
    for row in (*rows, whole):
        half = "" if row.half is None else readable(row.half)
        cells.append([row.name, row.steps or "", duration(row.seconds), readable(row.disk), readable(row.memory), half])
    print(table(heads, cells))
