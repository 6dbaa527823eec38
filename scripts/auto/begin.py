"""*Begin*: from pictures and hours to a data set, its fingerprint, and a recipe whose rates this machine has shown."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import torch

from scripts import make_dataset, near_duplicates
from scripts.auto import hours as dividing
from scripts.auto import plan as planning
from scripts.auto.kept import Plan, read_recipe
from scripts.auto.look import Fingerprint, look, survey
from scripts.dry_run import Scaling, run_steps, write_few
from utils.core.config import build_config, read_json
from utils.core.files import UserError, write_file
from utils.core.lock import lock
from utils.data.dataset import ImageDataset
from utils.data.images import image_files, reads_heif
from utils.data.records import read_dataset
from utils.data.shards import HEIF_SUFFIXES
from utils.runs.chain import Recipe, folders_in, with_seed
from utils.runs.folders import RunFolder
from utils.runtime.device import usable_memory
from utils.runtime.progress import duration
from utils.training.metrics import TIMED

TRIED = 0.03  # of the guessed training steps, in the short pass


def count_left_out(pictures: Path, written: Path) -> int:
    if not (written.is_file() and pictures.is_dir()):
        return 0
    states, since = (path.lstat() for path in image_files(pictures)[0]), written.stat().st_mtime
    ignored = written.with_name("ignored.txt")
    lines = ignored.read_text(errors="replace").lower().splitlines() if reads_heif() and ignored.is_file() else []
    newer = sum(max(state.st_mtime, state.st_ctime) > since for state in states)  # a copy can keep an old mtime
    return newer + sum(line.endswith(HEIF_SUFFIXES) for line in lines)


def holds_pictures(given: Path) -> bool:
    if not given.is_dir() or (given / "dataset.json").is_file():
        return False
    return not any(given.glob("*.tar")) or len(image_files(given)[0]) > 0


def check_source(given: Path, written: Path) -> None:
    if not (written.is_file() and holds_pictures(given)):
        return
    if (before := read_dataset(written, ())[1].get("folder")) != str(given.resolve()):
        advice = f"give another OUT, or --overwrite to make it of {given}, or give {written} instead of {given}"
        raise UserError(f"{written}: was made of {before}; {advice}")


def find_images(given: Path, written: Path, hours: float, is_gpu: bool, is_anew: bool) -> Path:
    """The dataset.json that is meant; that of a folder of pictures is `written` first, unless it is there already."""
    if not given.exists() and given.suffix not in (".json", ".tar"):
        raise UserError(f"{given}: no such folder; give a folder of images, or a dataset.json")
    is_written = written.is_file()
    if not holds_pictures(given):
        return given
    if is_written and not is_anew:
        return written
    files = image_files(given)[0]
    sizes = survey(files)
    if not sizes:
        raise UserError(f"{given}: holds no dataset.json and no image that can be read; give a folder of images")
    if written.resolve().is_relative_to(given.resolve()):
        raise UserError(f"OUT: {written.parent.parent} lies inside {given}; give one outside of it")
    size = planning.choose_size(sizes, hours, is_gpu=is_gpu)
    smaller = sum(each.width < size.width or each.height < size.height for each in sizes)
    shown = f"{written}, of {size.shown} pixels; of {len(sizes)} files seen, {smaller} are smaller and are enlarged"
    print(f"data: {len(files)} files become {shown}", flush=True)
    group = "near" if near_duplicates.is_installed() else None
    options = {"out_dir": written.parent, "image_size": size, "group_by": group, "overwrite": is_written}
    make_dataset.make_dataset(make_dataset.Options(folder=given, **options))
    return written


def look_at(dataset: Path, run: RunFolder, overwrite: bool) -> Fingerprint:
    """The fingerprint of the images; that of an earlier start must be of the same ones."""
    path, is_other = run.fingerprint, False
    if path.is_file() and run.planned.is_file():
        before = build_config(Fingerprint, read_json(path), str(path))
        if not (is_other := before.data != ImageDataset(dataset).fingerprint["index"]):
            return before
        if not overwrite:
            advice = f"give another OUT, or --overwrite, or restore the data that {run.recipe} was planned for"
            raise UserError(f"{dataset}: has changed since it was looked at; {advice}")
    prints = look(dataset)
    if is_other:  # and can be learned from
        forget(run)
    write_file(path, json.dumps(dataclasses.asdict(prints), indent=1) + "\n")
    return prints


def forget(run: RunFolder) -> None:
    """Remove a plan, its seconds, and the folders of its steps, so that no step counts as begun."""
    folders = [folder.path for folder in folders_in(run) if folder.path.is_dir()]
    for folder in folders:
        with lock(folder):  # where another process is at work this ends
            pass
    recipe = [run.recipe / f"{name}.json" for name in read_recipe(run.recipe)]
    for folder in folders:
        shutil.rmtree(folder)
    for each in (run.evaluation.results, run.report, run.clock, *recipe, run.planned):  # the plan last
        each.unlink(missing_ok=True)


def plan_for(
    prints: Fingerprint, dataset: Path, run: RunFolder, hours: float, seed: int | None, device: torch.device
) -> None:
    """Choose the models, measure what their steps cost in a short pass, and write the recipe with guesses."""
    is_gpu, memory = device.type == "cuda", usable_memory(device)
    plan = planning.choose_models(prints, hours, is_gpu=is_gpu, memory=memory)
    plan.files["recipe"] = with_seed(plan.settings, seed)
    guess = planning.guess_costs(plan, prints, is_gpu)
    numbers, _ = dividing.choose_steps(3600 * hours, guess, planning.sections_of(plan, prints))
    plan.change(numbers)
    since, steps = time.monotonic(), {name: TRIED * options["max_step"] for name, options in numbers.items()}
    about = sum(cost.seconds(max(TIMED, steps.get(dividing.section_of(name), 0)), 1) for name, cost in guess.items())
    try_briefly(plan, dataset, run, device, about)
    print(f"a short pass of all steps took {time.monotonic() - since:.0f} s; first pictures: {run.first}")
    plan.write(run.recipe)
    plan.slowness = plan.costs["autoencoder"]["per_step"] / planning.guess_costs(plan, prints)["autoencoder"].per_step
    plan.save(run)


def try_briefly(plan: Plan, dataset: Path, run: RunFolder, device: torch.device, about: float) -> None:
    """Run all steps of the shortened recipe: note what they cost, and keep the first pictures.

    Its models are thrown away: they could not be gone on with exactly, since a schedule must know its last step.
    """
    scratch, images = run.recipe / "trial", ImageDataset(dataset)
    shutil.rmtree(scratch, ignore_errors=True)
    plan.write(scratch / "recipe")
    recipe = Recipe.find(scratch / "recipe")
    trial, few = RunFolder(scratch / "run", len(recipe.stages)), scratch / "dataset.json"
    number = write_few(images, few)
    what = f"a short pass of all steps with {number} images, whose models are thrown away"
    print(f"measuring the rates of this machine in {what}: about {duration(about)}", flush=True)
    run_steps(recipe, trial, few, str(device), TRIED)
    scaling = Scaling(len(images), len(images) / number, recipe)
    plan.costs = {step.name: dataclasses.asdict(cost) for step, _, cost in scaling.costs(trial)}
    shutil.copy(trial.generated.grids[-1], run.first)
    shutil.rmtree(scratch)
