"""How good the pictures are after how much time: `auto` with so many minutes, or a recipe with a share of its steps.

    python -m benchmarks.quality out/demo-avatars/data/dataset.json --minutes 4 20 --runs 3
    python -m benchmarks.quality out/demo-avatars/data/dataset.json --shares 0.3 1

Trains one after the other and evaluates each on all test images. Prints a table in Markdown: the minutes of `auto` from
the first look to the report, or those of a recipe's steps alone, and what scripts.evaluate measures. What was trained
before is not trained again.
"""

import utils.runtime.threads  # noqa: F401

import math
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import options, print_head, print_row
from evaluation.results import SETS, TRAINING, Results
from reporting.run import read_run
from scripts import train_cascade
from scripts.evaluate import Options as EvaluationOptions
from scripts.evaluate import evaluate
from utils.core.config import load_config, read_json
from utils.core.options import option, parse_options
from utils.runs.chain import Recipe
from utils.runs.folders import RunFolder
from utils.runtime import cli

MINUTES = (4, 6, 12, 20)  # where neither these nor shares are given
STEPS = ("max_step", "schedule_step", "checkpoint_step", "log_step", "warmup_step")
Options = options(
    dataset=(Path, option("dataset.json of images, such as that of scripts/demo.py", positional=True)),
    out_dir=(Path, option("where to train", Path("out/quality"))),
    minutes=(tuple[float, ...], option("minutes to give auto", (), above=0, unset="4 6 12 20, and with --shares none")),
    runs=(int, option("runs of auto for each number of minutes, with seeds from 0 on", 1, low=1)),
    recipe=(str, option("folder of configs/", "demo-64")),
    shares=(tuple[float, ...], option("shares of the training steps of the recipe", (), above=0)),
)


class Measured(NamedTuple):
    name: str
    seconds: float
    results: Results


def share_of(recipe: Recipe, share: float) -> Recipe:
    """A recipe with a share of its training steps and epochs, but at least one."""
    for section, given in recipe.settings.items():
        steps = {key: max(1, round(given[key] * share)) for key in STEPS if key in given}
        epochs = {key: math.ceil(given[key] * share) for key in ("max_epoch",) if key in given}
        recipe = recipe.change((section,), **steps, **epochs)
    return recipe


def train_auto(dataset: Path, minutes: float, seed: int, out: Path) -> float:
    """Let `auto` train in so many minutes, unless it has; return the seconds that it took."""
    folder = RunFolder(out)
    if not folder.report.is_file():
        words = ["auto", dataset, out, "--hours", minutes / 60, "--seed", seed]
        train_cascade.main([*map(str, words)])
    return read_json(folder.clock)["seconds"]


def train_recipe(dataset: Path, recipe: Recipe, out: Path) -> float:
    """Train a recipe, unless it is; return the seconds of its steps."""
    train_cascade.Chain(recipe, train_cascade.Options(recipe="", dataset=dataset, out=out)).run()
    return sum(job.seconds for step in read_run(RunFolder(out)).steps.values() for job in step.jobs.values())


def measured_anew(dataset: Path, out: Path) -> Results:
    """Measure a run by all test images, again each time, since the recipe may have changed."""
    evaluate(EvaluationOptions(run_dir=out, dataset_path=dataset))
    return load_config(RunFolder(out).evaluation.results, Results)


def measure(args: Options) -> list[Measured]:
    dataset, out, recipe = args.dataset.resolve(), args.out_dir.resolve(), Recipe.find(args.recipe)
    measured = []
    for minutes in sorted(args.minutes or (() if args.shares else MINUTES)):
        for seed in range(args.runs):
            folder = out / f"auto-{minutes:g}-{seed}"
            seconds = train_auto(dataset, minutes, seed, folder)
            measured.append(Measured(f"auto, {minutes:g} minutes", seconds, measured_anew(dataset, folder)))
    for share in sorted(args.shares):
        folder = out / f"{share:g}"
        seconds = train_recipe(dataset, share_of(recipe, share), folder)
        measured.append(Measured(f"{args.recipe}, {share:g} of the steps", seconds, measured_anew(dataset, folder)))
    return measured


def main(argv: list[str] | None = None) -> None:
    args = parse_options(Options, __doc__, argv)
    measured, names = measure(args), [name for name in SETS if name != TRAINING]
    print_head("", "minutes", "PSNR (dB)", *names, "precision", "recall")
    for name, seconds, results in measured:
        kernels, samples = (f"{results.distance(name).kernel:.3f}" for name in names), results.distance(names[-1])
        quality = f"{seconds / 60:.1f}", f"{results.reconstruction[0].psnr:.1f}"
        print_row(name, *quality, *kernels, f"{samples.precision:.2f}", f"{samples.recall:.2f}")


if __name__ == "__main__":
    cli.run(main)
