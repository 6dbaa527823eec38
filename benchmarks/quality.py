"""How good the demo is after how much time: its recipe with a share of the training steps.

    python -m benchmarks.quality out/demo-avatars/data/dataset.json --out-dir out/quality

Trains the demo's cascade with each share of the training steps of its recipe, one after the other, and evaluates it.
Prints a table in Markdown: the seconds of all steps before the evaluation, and what scripts.evaluate measures on test
images; and draws the kernel distances over the time (quality.png). What was trained before is not trained again.
"""

import math
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.common import options, print_head, print_row
from evaluation.results import SETS, TRAINING, Results
from reporting.run import read_run
from scripts.train_cascade import Options as ChainOptions
from scripts.train_cascade import run_recipe
from utils.core.config import load_config
from utils.core.options import option, parse_options
from utils.runs.chain import ROOT, Recipe
from utils.runs.folders import RunFolder
from utils.runtime import cli

STEPS = ("max_step", "checkpoint_step", "log_step", "warmup_step")
Options = options(
    dataset=(Path, option("dataset.json of images, such as that of scripts/demo.py", positional=True)),
    out_dir=(Path, option("where to train", Path("out/quality"))),
    recipe=(str, option("folder of configs/", "demo-64")),
    shares=(tuple[float, ...], option("of the steps", (0.15, 0.3, 0.6, 1.0))),
)


def share_of(recipe: Recipe, share: float) -> Recipe:
    """A recipe with a share of its training steps and epochs, but at least one."""
    for section, told in recipe.settings.items():
        steps = {key: max(1, round(told[key] * share)) for key in STEPS if key in told}
        epochs = {key: math.ceil(told[key] * share) for key in ("max_epoch",) if key in told}
        recipe = recipe.change((section,), **steps, **epochs)
    return recipe


def train(dataset: Path, recipe: Recipe, out: Path) -> tuple[float, Results]:
    """Train and evaluate a recipe; return the seconds of the training and what was measured."""
    run_recipe(recipe, ChainOptions(recipe="", dataset=dataset, out=out))
    folder, command = RunFolder(out), [sys.executable, "-m", "scripts.evaluate", out, "--dataset-path", dataset]
    subprocess.run(command, check=True, cwd=ROOT)  # each time, since the recipe may have changed
    jobs = [job for step in read_run(folder).steps.values() for job in step.jobs.values()]
    return sum(job.seconds for job in jobs), load_config(folder.evaluation.results, Results)


def draw(results: dict[float, Results], path: Path) -> None:
    """Draw the kernel distance of each set of images over the minutes of training."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in SETS:
        axes.plot([seconds / 60 for seconds in results], [row.distance(name).kernel for row in results.values()], "o-")
    axes.set(xlabel="minutes of training", ylabel="kernel distance to test images", ylim=(0, None), xlim=(0, None))
    axes.legend(SETS)
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> None:
    """Train all shares, print the table, draw the curves."""
    args = parse_options(Options, __doc__, argv)
    dataset, out = args.dataset.resolve(), args.out_dir.resolve()
    recipe, shares = Recipe.find(args.recipe), sorted(args.shares)
    measured = dict(train(dataset, share_of(recipe, share), out / f"{share:g}") for share in shares)  # by seconds
    names = [name for name in SETS if name != TRAINING]
    print_head("share of the steps", "minutes", "PSNR (dB)", *names, "precision", "recall")
    for share, (seconds, results) in zip(shares, measured.items(), strict=True):
        kernels, samples = (f"{results.distance(name).kernel:.3f}" for name in names), results.distance(names[-1])
        quality = f"{seconds / 60:.1f}", f"{results.reconstruction[0].psnr:.1f}"
        print_row(f"{share:g}", *quality, *kernels, f"{samples.precision:.2f}", f"{samples.recall:.2f}")
    draw(measured, out / "quality.png")


if __name__ == "__main__":
    cli.run(main)
