"""What a recipe will take on this machine: all of its steps, each training for a few training steps, and a table.

    bash scripts/train_cascade.sh --dry-run demo-64 data/photos/dataset.json

calls this with the folder of the recipe. The steps run with up to 1,000 images of the data set, taken evenly, in a
temporary folder (of TMPDIR, if that is set). From there, times and disk grow with the recipe's training steps and
checkpoints and with the number of images. Not counted is that checkpoints are measured on more images, and log lines on
some, which adds a few percent. Memory is the most that a process has held, or its GPU; what half a batch saves is
counted by the tensors of a training step.
"""

import utils.threads  # noqa: F401

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from reporting.run import Step, read_run
from utils import cli
from utils.attempt import Attempt
from utils.footprint import readable
from utils.index import check_size, read_dataset, write_dataset
from utils.metrics import TIMED
from utils.options import flag_of, option, parse_options
from utils.progress import duration
from utils.run_folder import CONDITION, RunFolder
from utils.task import TrainingOptions
from utils.training import Plan, kept

ROOT = Path(__file__).parent.parent
MOST = 1000  # images that the steps run with
SHORT = f"--max-epoch {TIMED} --max-step {TIMED} --checkpoint-step {TIMED} --log-step {TIMED}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of scripts.dry_run."""

    recipe: Path = option("folder of the recipe", positional=True)
    dataset: Path = option("dataset.json of images", positional=True)
    device: str = option("auto (cuda, mps or cpu), or a torch device", "auto")


@dataclass(frozen=True)
class Estimate:
    """A row of the table: what one script does in one step."""

    name: str
    steps: int | None  # of a training
    seconds: float
    disk: float  # bytes
    memory: int  # bytes
    half: float | None  # bytes with half the batch


def main(argv: list[str] | None = None) -> None:
    """Cut the data set, run all steps, print the table."""
    options = parse_options(Options, __doc__, argv)
    records, _ = read_dataset(options.dataset, ("image_fpath",))
    settings = read_settings(options.recipe)
    if "IMAGE_SIZE" in settings:
        check_size(options.dataset, records[0], int(settings["IMAGE_SIZE"]))
    used = [absolute(record, options.dataset.parent) for record in records[:: -(-len(records) // MOST)]]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_dataset(folder / "dataset.json", used)
        run_steps(shorten(options.recipe, folder / "recipe"), folder, options.device)
        whole = Whole(len(records), len(records) / len(used), seconds_to_start(), settings)
        rows = whole.estimates(list(read_run(RunFolder(folder / "run")).steps.values()))
    measured = f"by {TIMED} training steps each with {len(used)} of them"
    print(f"{options.recipe.name} with {len(records)} images, {measured}:\n")
    print_table(rows)


def absolute(record: dict, folder: Path) -> dict:
    """A record whose path does not depend on where its dataset.json lies."""
    return record | {"image_fpath": str((folder / record["image_fpath"]).resolve())}


def shorten(recipe: Path, out: Path, words: str = SHORT) -> Path:
    """Copy a recipe to `out`, with few training steps, one checkpoint for each training, and all units kept.

    `words` are added to the settings of all trainings by gradients.
    """
    shutil.copytree(recipe, out)
    names = ["AUTOENCODER", *(path.stem.upper() for path in out.glob("transformer_*.json"))]
    lines = [f'{name}="${name} {words}"' for name in names]
    lines += [f'DECODER="${{DECODER:+$DECODER {words}}}"', f'CODEBOOK="$CODEBOOK {SHORT}"']
    lines += ['case $PRUNE in *--keep*) ;; *) PRUNE="$PRUNE --prune-threshold 0" ;; esac']
    with (out / "recipe.sh").open("a", encoding="utf-8") as file:
        file.write("\n".join(["", *lines, ""]))
    return out


def run_steps(recipe: Path, folder: Path, device: str) -> None:
    """Run the chain in `folder`; show which step it is at, its progress and its errors."""
    command = ["bash", ROOT / "scripts/train_cascade.sh", recipe, folder / "dataset.json", folder / "run"]
    environment = os.environ | {"PYTHON": sys.executable}
    with subprocess.Popen([*command, "--device", device], env=environment, stdout=subprocess.PIPE, text=True) as chain:
        try:
            for line in chain.stdout:
                if line.startswith("== "):
                    print(line, end="", flush=True)
        except BaseException:  # a signal: the chain must end before the folder goes
            chain.terminate()
            chain.communicate()
            raise
    if chain.returncode:
        sys.exit(chain.returncode)


def read_settings(recipe: Path) -> dict[str, str]:
    """The variables that a recipe.sh sets, and those of the environment."""
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    command = ["bash", "-c", 'set -a; source "$1"; "$2" -c "$3"', "bash", recipe / "recipe.sh", sys.executable, show]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def options_of(script: str, words: str) -> TrainingOptions:
    """The options of a trainer as a recipe.sh has them; what the chain adds to them is not meant."""
    cls = import_module(script).Options
    required = [flag_of(field) for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
    return parse_options(cls, "", [*shlex.split(words), *(word for flag in required for word in (flag, "unread"))])


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
    settings: dict[str, str]  # of the recipe

    def estimates(self, steps: list[Step]) -> list[Estimate]:
        """What each script takes in each step."""
        jobs = [(step, job.last) for step in steps for job in step.jobs.values()]
        # A pass over all feature maps by each codebook, which its training and the stages make once more.
        passes = {step.folder.level: last.seconds for step, last in jobs if last.script == "prune_codebook.py"}
        return [self.estimate(step, last, passes) for step, last in jobs]

    def estimate(self, step: Step, attempt: Attempt, passes: dict[str, float]) -> Estimate:
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

    def asked(self, step: Step, attempt: Attempt) -> TrainingOptions:
        """What the recipe asks of a trainer."""
        name = "CODEBOOK" if step.folder.kind == "codebook" else step.folder.name.upper()
        return options_of(attempt.script.removesuffix(".py"), self.settings[name])

    def items(self, asked: TrainingOptions, attempt: Attempt) -> int:
        """About how many images or feature maps a trainer trains on."""
        flips = attempt.script != "train_autoencoder.py" and "--flip" in self.settings.get("FEATURE_MAPS", "")
        return round(self.images * (1 - asked.val_fraction - asked.test_fraction)) * (1 + flips)


def print_table(rows: list[Estimate]) -> None:
    """Print the rows in Markdown, and their sum."""
    print("| step | training steps | h:min:s | disk | peak memory | about, with half the batch |")
    print("|---" * 6 + "|")
    for row in rows:
        half = "" if row.half is None else readable(row.half)
        numbers = f"{duration(row.seconds)} | {readable(row.disk)} | {readable(row.memory)} | {half}"
        print(f"| {row.name} | {row.steps or ''} | {numbers} |")
    seconds, disk = sum(row.seconds for row in rows), sum(row.disk for row in rows)
    memory = max(row.memory for row in rows)
    print(f"| all | | {duration(seconds)} | {readable(disk)} | {readable(memory)} | |")


if __name__ == "__main__":
    cli.run(main)
