"""The hours, disk and memory of a recipe on this machine: a short run of all its steps, and a table.

    python -m scripts.train_cascade --dry-run demo-64 data/photos/dataset.json

The steps run with up to 1,000 images of the data set, taken evenly, in a temporary folder (of TMPDIR, if that is set).
Times and disk are then scaled to the recipe's training steps and checkpoints and to the number of images. Not counted
is that checkpoints are measured on more images, and log lines on some, which adds a few percent. Memory is the peak of
a step (of its GPU, if it has one). One process runs all steps, so it can include memory that earlier steps have not
released.
"""

import utils.runtime.threads  # noqa: F401

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from scripts import groups
from scripts.recipe import check, open_images, options_of, run_step
from utils.core.tables import table
from utils.data.dataset import ImageDataset
from utils.data.dataset_json import write_dataset
from utils.data.records import read_dataset
from utils.runs.chain import Recipe, Step, maps_per_image, steps_of
from utils.runs.folders import CONDITION, RunFolder
from utils.runs.manifest import Attempt, read_attempts
from utils.runtime.progress import duration, readable
from utils.training.loop import Plan, most_checkpoints
from utils.training.metrics import TIMED

MOST = 1000  # images that the steps run with
DRAWN = 5  # images that are generated, at most
SHORT = ("max_epoch", "max_step", "checkpoint_step", "log_step")  # options that become the number of training steps


@dataclass(frozen=True)
class Cost:
    """What a step takes: seconds once, for each training step and for each checkpoint, and the most bytes of memory."""

    once: float
    per_step: float = 0.0
    per_checkpoint: float = 0.0
    memory: int = 0

    def seconds(self, steps: float = 0, checkpoints: int = 0) -> float:
        """All seconds of so many training steps."""
        return self.once + steps * self.per_step + checkpoints * self.per_checkpoint

    def times(self, factor: float) -> "Cost":
        return Cost(self.once * factor, self.per_step * factor, self.per_checkpoint * factor, self.memory)


@dataclass(frozen=True)
class Estimate:
    name: str
    steps: int | None  # of a training
    seconds: float
    disk: float  # bytes
    memory: int  # bytes


def estimate(recipe: Recipe, dataset: Path, device: str | None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        run = RunFolder(Path(scratch, "run"), len(recipe.stages))
        check(recipe, steps_of(run, recipe, dataset), run, recipe.folder / "generate.json")
        images = open_images(recipe, dataset)
        number = write_few(images, Path(scratch, "dataset.json"))
        print(f"trying all steps with {number} of {len(images)} images", flush=True)
        run_steps(recipe, run, Path(scratch, "dataset.json"), device)
        rows = Scaling(len(images), len(images) / number, recipe).estimates(run)
    measured = f"by {TIMED} training steps each with {number} of them"
    print(f"{recipe.folder.name} with {len(images)} images, {measured}:\n")
    seconds, disk = sum(row.seconds for row in rows), sum(row.disk for row in rows)
    whole = Estimate("all", None, seconds, disk, max(row.memory for row in rows))
    cells = []
    for row in (*rows, whole):
        cells.append([row.name, row.steps or "", duration(row.seconds), readable(row.disk), readable(row.memory)])
    print(table(("step", "training steps", "h:min:s", "disk", "peak memory"), cells))
    groups.warn_of_few(len(images))


def write_few(images: ImageDataset, path: Path) -> int:
    """Write a dataset.json of up to `MOST` of the images, taken evenly; return their number."""
    records, _ = read_dataset(images.index, ("image_fpath",))
    used = records[:: -(-len(records) // MOST)]
    for record in used:  # in a data set that lies elsewhere
        record["image_fpath"] = str((images.folder / record["image_fpath"]).resolve())
    write_dataset(path, used)
    return len(used)


def shorten(recipe: Recipe, share: float = 0.0) -> Recipe:
    """The recipe with `share` of its training steps, but at least `TIMED`, and all units kept.

    With share 0 few images are generated.
    """
    short = recipe if "keep" in recipe.settings["prune"] else recipe.change(("prune",), prune_threshold=0)
    for name in ("autoencoder", "decoder", "codebook", *recipe.stages):
        given = recipe.settings.get(name, {})
        steps = max(TIMED, round(share * given.get("max_step", 0)))
        fitted = {"warmup_step": steps // 10, "schedule_step": steps}
        options = dict.fromkeys(SHORT, steps) | {key: fitted[key] for key in fitted if key in given}
        short = short.change((name,), **options)
    drawn = recipe.settings["generate"].get("num_images", DRAWN)
    return short.change(("generate",), num_images=drawn if share else min(DRAWN, drawn))


def run_steps(recipe: Recipe, run: RunFolder, dataset: Path, device: str | None, share: float = 0.0) -> None:
    """Run all steps of the shortened recipe; show which step it is, its progress and its errors, but not its log."""
    run.path.mkdir()
    shutil.copy(recipe.folder / "generate.json", run.generation)
    recipe = shorten(recipe, share)
    try:
        with Path(os.devnull).open("w") as nowhere:
            for step in steps_of(run, recipe, dataset):
                print(f"== {step.name}", flush=True)
                with redirect_stdout(nowhere):
                    run_step(recipe, step, device=device or "auto")
    finally:
        logging.getLogger().handlers.clear()  # which write to nowhere


@dataclass(frozen=True)
class Scaling:
    images: int
    growth: float  # images for each one that was used
    recipe: Recipe

    def estimates(self, run: RunFolder) -> list[Estimate]:
        return [self.estimate(step, attempt, cost) for step, attempt, cost in self.costs(run)]

    def costs(self, run: RunFolder) -> Iterator[tuple[Step, Attempt, Cost]]:
        pairs = []
        for step in steps_of(run, self.recipe, Path("unread")):
            newest = {attempt.script: attempt for attempt in read_attempts(step.folder)}
            pairs.append((step, newest[f"{step.script}.py"]))
        # A pass over all maps but moved copies by each codebook, which its training and the stages make once more.
        passes = {step.folder.level: attempt.seconds for step, attempt in pairs if step.section == "prune"}
        for step, attempt in pairs:
            yield step, attempt, self.cost(step, attempt, passes)

    def grown(self, step: Step, attempt: Attempt) -> float:
        """How many times as much a step without training does for all images, or for all that are generated."""
        if step.section != "generate":
            return self.growth
        return options_of(self.recipe, step).num_images / attempt.arguments["num_images"]

    def cost(self, step: Step, attempt: Attempt, passes: dict[str, float]) -> Cost:
        """What a step takes; `passes` are the seconds of a pass by each codebook."""
        if attempt.plan is None:
            return Cost(self.grown(step, attempt) * attempt.seconds, memory=attempt.peak_memory)
        plan, levels = Plan(**attempt.plan), [step.folder.level, *([CONDITION] if step.name == "transformer_0" else [])]
        copies = maps_per_image(self.recipe.settings, step.section) / maps_per_image(self.recipe.settings, "prune")
        more = (self.growth - 1) * copies * sum(passes.get(level, 0.0) for level in levels)
        once = attempt.seconds - attempt.arguments["max_step"] * plan.seconds_per_step - plan.seconds_per_checkpoint
        seconds = plan.seconds_per_step, plan.seconds_per_checkpoint
        return Cost(max(0.0, once) + more, *seconds, attempt.peak_memory)

    def estimate(self, step: Step, attempt: Attempt, cost: Cost) -> Estimate:
        folder, name = step.folder, f"{step.folder.name}, {attempt.script}"
        files = (path for path in folder.path.rglob("*") if path.is_file() and path.parent != folder.checkpoints)
        size = sum(path.stat().st_size for path in files)  # bytes
        if attempt.plan is None:
            disk = 0.0 if step.section == "prune" else self.grown(step, attempt) * size  # a pruned codebook is small
            return Estimate(name, None, cost.once, disk, cost.memory)
        plan, options = Plan(**attempt.plan), options_of(self.recipe, step)
        looks = 1 if step.script == "train_autoencoder" else maps_per_image(self.recipe.settings, step.section)
        items = round(self.images * (1 - options.val_fraction - options.test_fraction)) * looks
        steps = options.planned_steps(items)
        checkpoints = -(-steps // options.checkpoint_step)
        kept = most_checkpoints(steps, options.checkpoint_step, options.keep_checkpoint)
        disk = kept * plan.checkpoint + checkpoints * size
        return Estimate(name, steps, cost.seconds(steps, checkpoints), disk, cost.memory)
