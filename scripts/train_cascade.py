"""Chain all steps of a recipe.

A step that has run to its end with the same options, config and data, and whose results are there, is skipped; one that
was interrupted is resumed. Before anything runs the whole recipe is checked.

    python -m scripts.train_cascade demo-64 data/photos/dataset.json out/photos
    python -m scripts.train_cascade auto photos out/photos --hours 1

With auto in the place of a recipe, one is planned for the images and the hours (docs/auto.md), and OUT/recipe keeps it.
"""

import sys
from pathlib import Path

if not __package__:  # started by its path, from anywhere
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.runtime.threads import inherited

import shlex
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from scripts import dry_run
from scripts.auto.train import Auto
from scripts.recipe import check, check_device, open_images, run_step
from utils.core.files import UserError, write_file
from utils.core.options import MOST_WORKERS, option, parse_options, words_of
from utils.data.checksums import Fingerprint
from utils.data.dataset import FeatureMapDataset
from utils.data.records import verify_files
from utils.runs.chain import Recipe, Step, folders_in, steps_of
from utils.runs.folders import RunFolder
from utils.runs.manifest import RUNNING, check_result, is_finished, note_data, read_attempts
from utils.runtime import child, cli
from utils.runtime.cli import stop_signals
from utils.runtime.cores import available_cores
from utils.training.metrics import read_rows

AUTO = "auto"  # in the place of a recipe
STOPPED = [128 + number for number in stop_signals()]
BEFORE = "result of the step before"
REMEDY = "change it back, or add --overwrite to make it and all that follows from it anew"


@dataclass(frozen=True, kw_only=True)
class Options:
    recipe: str = option(
        "folder of configs/, or the path of another, with a slash; `auto` plans one for the images and --hours",
        positional=True,
    )
    dataset: Path = option("dataset.json of images, or shards; for auto also a folder of pictures", positional=True)
    out: Path | None = option("folder to write to; none with --dry-run", None, positional=True)
    device: str | None = option("auto (cuda, mps or cpu), or a torch device", None, unset="auto")
    overwrite: bool = option("replace results made from different inputs or options", False)
    verify: bool = option("if only timestamps changed (e.g. after copying), compare checksums once", False)
    nproc: int | None = option(
        "processes on this machine, by torchrun, one for each GPU; batch sizes are those of one",
        None,
        unset="1",
        low=1,
        high=MOST_WORKERS,
    )
    nnodes: int = option("number of machines; each runs this command on the same files", 1, low=1)
    rdzv_endpoint: str | None = option("HOST:PORT of one of several machines", None)
    hours: float | None = option("for auto: hours from the images to the report", None, above=0)
    plan_only: bool = option("for auto: write OUT/recipe and stop", False)
    minutes: float | None = option("for auto: the same in minutes", None, above=0)
    tensorboard: bool = option("also write tensorboard/ in the folders of trainings", False)
    seed: int | None = option("of the random choices of all steps", None, unset="those of the recipe", low=0)
    dry_run: bool = option("try every step briefly, then print the hours, disk and memory that the recipe needs", False)

    def __post_init__(self) -> None:
        if self.minutes is not None:
            if self.hours is not None:
                raise UserError("--minutes and --hours say the same: leave one of them out")
            object.__setattr__(self, "hours", self.minutes / 60)
        if self.recipe != AUTO and (self.hours is not None or self.plan_only):
            advice = f"write {AUTO} in its place, or leave them out"
            raise UserError(f"--hours and --plan-only are for {AUTO}, and RECIPE is {self.recipe}; {advice}")
        if self.recipe == AUTO and self.hours is None:
            command = shlex.join(["python", "-m", "scripts.train_cascade", AUTO, *map(str, (self.dataset, self.out))])
            raise UserError(f"auto needs the hours that it may take, such as: {command} --hours 1")
        if self.recipe == AUTO and (self.dry_run or self.launcher("")):
            raise UserError("auto plans for one process: leave out --dry-run, --nproc and the like")
        if self.dry_run and (self.out or self.overwrite or self.verify or self.launcher("")):
            advice = "leave out OUT and all flags but --device"
            raise UserError(f"--dry-run: tries each step in one process and a folder of its own; {advice}")
        if not self.dry_run and self.out is None:
            raise UserError("OUT: give the folder to write to, after RECIPE and DATASET")
        if self.nnodes > 1 and not self.rdzv_endpoint:
            raise UserError(f"--nnodes {self.nnodes}: add --rdzv-endpoint HOST:PORT, an address of one of the machines")

    def launcher(self, name: str) -> list[str]:
        """The arguments of Python that run a script in several processes; none for one."""
        if self.nproc is None and self.rdzv_endpoint is None:
            return []
        words = ["-m", "torch.distributed.run", "--nproc-per-node", str(self.nproc or 1)]
        if self.nnodes == 1:
            return [*words, "--standalone"]
        words += ["--nnodes", str(self.nnodes), "--rdzv-backend", "c10d"]
        return [*words, "--rdzv-endpoint", self.rdzv_endpoint, "--rdzv-id", name]


def main(argv: list[str] | None = None) -> None:
    options = parse_options(Options, __doc__, argv)
    try:
        if options.recipe == AUTO:
            Auto(options, Chain).run()
            return
        recipe = Recipe.find(options.recipe, options.seed)
        check_device(recipe, options.device)
        if options.dry_run:
            dry_run.estimate(recipe, options.dataset, options.device)
        else:
            Chain(recipe, options).run()
    except (KeyboardInterrupt, SystemExit) as stop:
        if not options.dry_run and (isinstance(stop, KeyboardInterrupt) or stop.code in STOPPED):
            with suppress(OSError):  # the terminal may be gone
                print("stopped; the same command as before goes on from here", file=sys.stderr, flush=True)
        raise


def learned(step: Step) -> str:
    """The newest validation result of a training, as text; none of another step."""
    rows = read_rows(step.folder.metrics) if step.script.startswith("train_") and step.folder.metrics.is_file() else []
    known = [f", {name} {row[name]:.4g}" for row in reversed(rows) for name in ("val_psnr", "val_loss") if name in row]
    return known[0] if known else ""


class Chain:
    """The steps of a recipe, and which are done. Raises `UserError` at the first mistake, before it writes anything."""

    def __init__(
        self, recipe: Recipe, options: Options, verified: set[Path] | None = None, anew: Container[str] = ()
    ) -> None:
        """`anew` names steps that may be made again as the recipe now says, as `--overwrite` allows it for all."""
        self.recipe, self.options, self.folder = recipe, options, RunFolder(options.out, len(recipe.stages))
        self.steps = steps_of(self.folder, recipe, options.dataset)
        known = {step.folder.name for step in self.steps}
        for each in folders_in(RunFolder(options.out)):
            if each.record.is_file() and each.name not in known:
                why = "an evaluation, an export and the report would still read it"
                raise UserError(f"{each.path}: is of a step that {recipe.path} does not have, and {why}; remove it")
        config, given = self.folder.generation, recipe.folder / "generate.json"
        self.plans = check(recipe, self.steps, self.folder, config if config.is_file() else given)
        self.images = open_images(recipe, options.dataset)
        self.maps = self.fingerprint_of_maps()
        # Data sets whose files have not changed, whatever their timestamps.
        self.verified, self.anew = set() if verified is None else verified, anew
        for step in self.steps:
            self.reason(step)

    def fingerprint_of_maps(self) -> Fingerprint | None:
        """That of the feature maps; None where the data set or one of its files is missing."""
        with suppress(UserError):
            return FeatureMapDataset(self.folder.feature_maps.dataset).fingerprint

    def reason(self, step: Step) -> str | None:
        """Why a step must run, None if it is done; raises `UserError` if it has ended with other inputs."""
        if not is_finished(step.folder, step.script):
            return ""
        data, fingerprint = step.inputs.get("dataset_path"), None
        if data is not None:  # maps that are still to be made have none
            fingerprint = self.images.fingerprint if data == self.options.dataset else self.maps
        may_read = self.options.verify or self.options.overwrite or data in self.verified
        verify = partial(self.verify, data) if may_read else None
        models = [path for path in step.inputs.values() if isinstance(path, Path)]
        try:
            key = self.plans[step.name]
            check_result(step.folder, step.script, key, fingerprint, models, remedy=REMEDY, verify=verify)
        except UserError:
            if not self.may_replace(step):
                raise
            return ""
        if fingerprint is not None:
            note_data(step.folder, step.script, fingerprint)
        lost = next((path for path in step.results if not path.is_file()), None)
        if lost is None and step.name == "feature_maps" and self.maps is None:
            lost = f"{step.results[0]} or a file of it"
        return f"{lost} is gone: {step.name} runs again" if lost else None

    def may_replace(self, step: Step) -> bool:
        return self.options.overwrite or step.name in self.anew

    def verify(self, data: Path) -> None:
        if data not in self.verified:
            verify_files(self.images.index if data == self.options.dataset else data)
            self.verified.add(data)

    def run(self, only: str | None = None, note: str = "") -> None:
        """Run the steps that are not done, or `only` one of them; a `note` is printed with its name."""
        self.copy_generation()
        for number, step in enumerate(self.steps, 1):
            if only not in (None, step.name):
                continue
            if (reason := self.reason(step)) is None:
                print(f"== {step.name}: done")
            else:
                head = f"== {step.name}, step {number} of {len(self.steps)}{note}"
                print(*([reason] if reason else []), head, sep="\n", flush=True)
                self.run_step(step)
                if step.name == "feature_maps":
                    self.maps = self.fingerprint_of_maps()
                    self.verified.add(step.results[0])
        if only in (None, self.steps[-1].name):
            learned = self.folder.path / "*" / "images"
            print(f"pictures: {self.folder.generated.images} (what each step learned: {learned})")

    def copy_generation(self) -> None:
        config, content = self.folder.generation, (self.recipe.folder / "generate.json").read_bytes()
        if not config.is_file():
            write_file(config, content)
        elif config.read_bytes() != content:
            print(f"{config} is not that of the recipe, and is kept; for the recipe's, remove it and run this again")

    def run_step(self, step: Step) -> None:
        """Run a step, by torchrun in as many processes as were asked for, else in this one."""
        attempts, since = read_attempts(step.folder), time.monotonic()
        if attempts and attempts[-1].outcome == RUNNING:
            advice = f"lower batch_size of {step.section} in {self.recipe.path}, and raise grad_accum_step as much"
            print(f"{step.name} was killed when it last ran; if for lack of memory, {advice}", file=sys.stderr)
        options = self.options
        common = {"device": options.device or "auto", "overwrite": self.may_replace(step), "verify": options.verify}
        common |= {"tensorboard": True} if options.tensorboard and step.script.startswith("train_") else {}
        if launcher := options.launcher(step.name):
            environment = inherited()
            if options.nproc is not None:  # torchrun would choose 1
                environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // options.nproc)))
            with child.attending() as attendant:
                status = attendant.run([sys.executable, *launcher, *step.command, *words_of(common)], env=environment)
            if status:
                sys.exit(attendant.stop or status)  # torchrun ends with 1, whatever the signal
        else:
            run_step(self.recipe, step, **common)
        print(f"{step.name} took {time.monotonic() - since:.0f} s{learned(step)}", flush=True)
        if missing := [path for path in step.results if not path.is_file()]:
            advice = "remove the folder of this step and run this again"
            raise UserError(f"{step.name} has ended without {missing[0]}; {advice}")


if __name__ == "__main__":
    cli.run(main)
