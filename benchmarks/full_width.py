"""Whether a recipe for a GPU learns at its full width: a few training steps of all of it, on any machine.

    python -m scripts.demo_data avatars --out-dir out/faces-128 --image-size 128 --num-images 700
    python -m benchmarks.full_width gpu-128 out/faces-128/dataset.json --out-dir out/full-width-128

Runs every step of the recipe with its configs, but for 30 training steps and with small batches, and then the training
of its finest stage with a quarter of its learning rate and with four times it. Prints a table in Markdown: the training
losses of the first ten steps and of the last ten.
"""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.common import options, print_head, print_row
from scripts.dry_run import shorten
from scripts.train_cascade import Options as ChainOptions
from scripts.train_cascade import run_recipe
from utils.core.config import read_json
from utils.core.options import option, parse_options
from utils.runs.attempt import read_attempts
from utils.runs.chain import ROOT, Recipe
from utils.runs.folders import OutputFolder, RunFolder
from utils.runtime import cli
from utils.training.metrics import read_rows

STEPS, ROW = 30, 10  # training steps, and those of a row of the log
RATES = (0.25, 4.0)
PICTURES = 2  # that each transformer draws, and that are generated
Options = options(
    recipe=(str, option("folder of configs/", positional=True)),
    dataset=(Path, option("dataset.json of images of its size", positional=True)),
    out_dir=(Path, option("where recipe/ and run/ are made anew")),
    batch_size=(int, option("images in a training step", 2, low=1)),
)


def run_briefly(recipe: Recipe, dataset: Path, out: Path, batch_size: int) -> RunFolder:
    """Run all steps of a recipe, each training for `STEPS` training steps of `batch_size` images."""
    shutil.rmtree(out / "run", ignore_errors=True)
    steps = {"max_step": STEPS, "log_step": ROW, "checkpoint_step": STEPS, "warmup_step": ROW}
    short = shorten(recipe, **steps, batch_size=batch_size, grad_accum_step=1)
    short = short.change(short.stages, test_num_sample=PICTURES)
    short = short.change(("generate",), num_images=PICTURES, animate=None)
    run_recipe(short, ChainOptions(recipe="", dataset=dataset, out=out / "run"))
    return RunFolder(out / "run")


def run_again(step: OutputFolder, rate: float) -> OutputFolder:
    """Train the stage of a folder once more, in a folder beside it, with a multiple of its learning rate."""
    last = read_attempts(step)[-1]
    config = read_json(Path(last.arguments["config_path"]))
    out = OutputFolder(step.path.with_name(f"{step.name}_rate_{rate:g}"))
    path = out.path.with_suffix(".json")
    path.write_text(json.dumps(config | {"model_lr": config["model_lr"] * rate}), encoding="utf-8")
    arguments = last.arguments | {"config_path": str(path), "out_dir": str(out.path)}
    _, script, *words = shlex.split(dataclasses.replace(last, arguments=arguments).command)
    subprocess.run([sys.executable, ROOT / script, *words], check=True)
    return out


def main(argv: list[str] | None = None) -> None:
    """Run the chain, the finest stage at other rates, and print the losses."""
    args = parse_options(Options, __doc__, argv)
    run = run_briefly(Recipe.find(args.recipe), args.dataset.resolve(), args.out_dir.resolve(), args.batch_size)
    steps = {step.name: step for step in run.steps if step.kind != "codebook" and step.metrics.exists()}
    for rate in RATES:
        steps[f"{run.transformers[-1].name}, {rate:g} times the rate"] = run_again(run.transformers[-1], rate)
    print_head(args.recipe, f"steps 1 to {ROW}", f"steps {STEPS - ROW + 1} to {STEPS}")
    for name, step in steps.items():
        losses = [row["train_loss"] for row in read_rows(step.metrics) if "train_loss" in row]
        print_row(name, f"{losses[0]:.3f}", f"{losses[-1]:.3f}")


if __name__ == "__main__":
    cli.run(main)
