"""What each step of a recipe costs on this machine: a short pass of all steps, whose pictures are the first ones."""

import copy
import shutil
from pathlib import Path

from scripts.auto.plan import Plan
from scripts.dry_run import WHOLE, Cost, Scaling, run_steps, seconds_to_start, write_few
from utils.data.dataset import ImageDataset
from utils.runs.chain import Recipe
from utils.runs.folders import RunFolder
from utils.runtime.child import Attendant
from utils.training.metrics import TIMED

TRIED = 0.03  # of the planned training steps


def shorten(plan: Plan, numbers: dict[str, dict[str, int]]) -> Plan:
    """The recipe with a few of these numbers of training steps, and all units kept."""
    short = Plan(copy.deepcopy(plan.files))
    for name, options in numbers.items():
        steps = max(TIMED, round(TRIED * options["max_step"]))
        short.settings[name] |= dict.fromkeys(("max_step", "checkpoint_step", "log_step"), steps)
        short.settings[name] |= {} if name == "codebook" else {"warmup_step": steps // 10}
    short.settings["prune"]["prune_threshold"] = 0
    short.settings["generate"] = {"num_images": 25, "seed": 0}
    return short


def try_briefly(
    plan: Plan, dataset: Path, scratch: Path, first: Path, start: float, device: str | None, attendant: Attendant
) -> tuple[dict[str, Cost], float]:
    """Run all steps of a short recipe in one process, in the folder `scratch`; leave its pictures as `first`.

    Its models are thrown away: they could not be gone on with exactly, since a schedule must know its last step. To
    start, a script took `start` seconds before; the lesser of that and of now is returned, since it is a part of all.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    plan.write(scratch / "recipe")
    recipe, images = Recipe.find(scratch / "recipe"), ImageDataset(dataset)
    run = RunFolder(scratch / "run", len(recipe.stages))
    number = write_few(images, scratch / "dataset.json")
    print(f"measuring the rates of this machine, in a short pass of all steps with {number} images", flush=True)
    run_steps(recipe, run, scratch / "dataset.json", device, attendant, WHOLE)
    start = min(start, seconds_to_start())
    scaling = Scaling(len(images), len(images) / number, start, recipe, is_whole=True)
    costs = {step.name: cost for step, _, cost in scaling.costs(run)}
    shutil.copy(run.generated.grids[-1], first)
    shutil.rmtree(scratch)
    return costs, start
