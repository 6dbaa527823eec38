"""*Train*: the chain of a planned recipe, from the images to the report, within the hours.

Before a step that has not begun, the time that is left is divided again, by the rates measured so far. A step that has
begun keeps its numbers, so a resume is exact; the finest stage is stopped where it would take the time of what follows.
"""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any

from models.autoencoder import KIND as AUTOENCODER
from models.stage import KIND as STAGE
from scripts import evaluate, near_duplicates
from scripts.auto import expect, hours
from scripts.auto import plan as planning
from scripts.auto.look import Fingerprint, look, survey
from scripts.auto.measure import shorten, try_briefly
from scripts.auto.plan import Plan, Reason
from scripts.demo import is_older
from scripts.dry_run import Cost, seconds_to_start
from utils.core.config import build_config, read_json
from utils.core.files import UserError, write_file
from utils.core.lock import lock
from utils.core.options import words_of
from utils.data.checksums import checksum
from utils.data.dataset import ImageDataset
from utils.data.images import image_files
from utils.runs.chain import Recipe, Step, steps_of
from utils.runs.checkpoint import load_checkpoint
from utils.runs.folders import RunFolder
from utils.runtime.child import Attendant
from utils.runtime.device import choose_device, usable_memory
from utils.runtime.progress import duration
from utils.training.metrics import read_rows

MISSING = {  # what is said of packages that are not there
    ("imagehash",): "near-duplicates are not kept on one side of the split: pip install -r requirements-data.txt",
    evaluate.PACKAGES: "there is no evaluation: pip install -r requirements-eval.txt",
    ("jinja2", "plotly"): "there is no report: pip install -r requirements-eval.txt",
}
NEEDED = {"val_loss", "val_images", "stage_bits"}  # keys of the row of a checkpoint
TWICE = (
    "on the demo's faces 15.2 minutes instead of 8.5 left 0.57 of the distance (docs/experiments.md#time-to-quality)"
)
BEAT = 5.0  # seconds between notes of the time that was used
LEARNED_BY_HEART = 0.9  # share of a stage's steps, before which its best checkpoint means that more do not help
OVER = 1.08  # that the finest stage is planned to overrun: what is cut off are steps at nearly no learning rate
SLACK = 1.5  # of its planned time, after which a training is stopped that is not the last one
KINDS = {"train_autoencoder": AUTOENCODER, "train_quantized_transformer": STAGE}  # of checkpoints that may be stopped
LATE = "steps took longer than measured, so the hours may not be kept"
MARGIN = 0.01  # share of the hours that is left over
SURE = 4  # times the hours: where so much is guessed to be needed, nothing is tried
DISK = 2**28  # bytes of logs, pictures and codebooks


@dataclass
class State:
    """What OUT/recipe/auto.json keeps from one start to the next."""

    hours: float
    written: list = field(default_factory=list)  # checksums of recipe.json, before and after it was written last
    start: float = 0.0  # seconds that a script takes to start
    costs: dict = field(default_factory=dict)  # of each step, as measured in the short pass
    guessed: float = 0.0  # seconds of a training step of the autoencoder on the machine of docs/times.md
    drift: float = 1.0  # how much slower steps were than these costs say
    reasons: list = field(default_factory=list)
    seconds: dict = field(default_factory=dict)  # planned, of each step
    took: dict = field(default_factory=dict)  # true, of each step that has ended
    notes: list = field(default_factory=list)  # what else was decided
    outlook: list = field(default_factory=list)  # what more hours or images would bring


class Clock:
    """The seconds that were used, also by earlier starts; a thread notes them, since a process may be killed."""

    def __init__(self, path: Path) -> None:
        self.path, self.since = path, time.monotonic()
        self.before = read_json(path)["seconds"] if path.is_file() else 0.0

    @property
    def used(self) -> float:
        """Seconds so far."""
        return self.before + time.monotonic() - self.since

    @contextmanager
    def running(self) -> Iterator[None]:
        """Note the time in this block."""
        ended = Event()

        def beat() -> None:
            while not ended.wait(BEAT):
                self.note()

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            if self.path.with_name("fingerprint.json").is_file():  # else nothing was begun
                self.note()

    def note(self) -> None:
        """Write the time that was used."""
        write_file(self.path, json.dumps({"seconds": round(self.used, 1)}))


class Auto:
    """The three parts of `scripts.train_cascade auto`, whose options these are; `chain` is its class `Chain`."""

    def __init__(self, options: Any, attendant: Attendant, chain: Callable) -> None:
        self.options, self.attendant, self.chain = options, attendant, chain
        if options.out is None:
            raise UserError("OUT: give the folder to write to, after auto and DATASET")
        self.folder = RunFolder(options.out)
        self.path = self.folder.recipe
        self.device = choose_device(options.device or "auto")
        self.limit = 3600 * options.hours

    def run(self) -> None:
        """Look, plan and train, as far as it is not done."""
        with lock(self.path):
            self.clock = Clock(self.path / "clock.json")
            if self.options.plan_only:
                self.prepare()
                words = ["python -m scripts.train_cascade", f"{self.path}/", self.dataset, self.folder.path]
                print("planned; edit it if you like. Go on within the hours by the same command without --plan-only,")
                print("or train it as any recipe:", *words)
                return
            with self.clock.running():
                self.prepare()
                self.train()

    def prepare(self) -> None:
        """Look and plan, unless an earlier start has."""
        self.dataset = self.find_images()
        self.prints = self.look()
        print("look:", *self.prints.lines(), sep="\n  ", flush=True)
        given = self.folder.planned
        is_planned = given.is_file() and (self.path / "recipe.json").is_file()
        self.state = build_config(State, read_json(given), str(given)) if is_planned else self.plan()
        self.costs = {name: Cost(**cost) for name, cost in self.state.costs.items()}
        recipe = Recipe.find(self.path)
        self.folder = RunFolder(self.options.out, len(recipe.stages))
        self.steps = {step.name: step for step in steps_of(self.folder, recipe, self.dataset)}
        self.is_edited = checksum(recipe.path.read_bytes()) not in self.state.written
        if self.is_edited:
            print(f"{recipe.path} was edited, so its numbers of training steps are kept, and the hours may not be")
        elif self.state.hours != self.options.hours or not self.state.seconds:
            self.state.hours = self.options.hours
            self.replan()
        print(f"plan: {self.path / 'recipe.md'}", *self.state.notes, sep="\n  ")
        print("expect:", expect.sentence(self.prints, self.options.hours))

    def find_images(self) -> Path:
        """The dataset.json that is meant; that of a folder of pictures is made first."""
        given, written = self.options.dataset, self.folder.images
        is_folder = given.is_dir() and not (given / "dataset.json").is_file() and not any(given.glob("*.tar"))
        if not is_folder or written.is_file():
            return written if is_folder else given
        files = image_files(given)[0]
        sizes, transparent = survey(files)
        if not sizes:
            raise UserError(f"{given}: holds no dataset.json and no image that can be read; give a folder of images")
        size = planning.choose_size(sizes, self.options.hours, is_gpu=self.device.type == "cuda")
        smaller = sum(each.width < size.width or each.height < size.height for each in sizes)
        print(f"data: {len(files)} files become {written}, of {size.shown} pixels; of {len(sizes)} files {smaller} are")
        print(f"  smaller and are enlarged, and {transparent} may be transparent, which becomes white", flush=True)
        group = "near" if near_duplicates.is_installed() else None
        self.call("make_dataset", given, out_dir=written.parent, image_size=size, group_by=group)
        return written

    def look(self) -> Fingerprint:
        """The fingerprint of the images; that of an earlier start must be of the same ones."""
        path = self.path / "fingerprint.json"
        if path.is_file() and (self.path / "recipe.json").is_file():
            before = build_config(Fingerprint, read_json(path), str(path))
            if before.data == ImageDataset(self.dataset).fingerprint["index"]:
                return before
            if not self.options.overwrite:
                advice = f"give another OUT, or --overwrite, or bring back what {self.path} was planned for"
                raise UserError(f"{self.dataset}: has changed since it was looked at; {advice}")
            (self.path / "recipe.json").unlink()
        prints = look(self.dataset)
        write_file(path, json.dumps(dataclasses.asdict(prints), indent=1) + "\n")
        return prints

    def plan(self) -> State:
        """Choose the models, measure what their steps cost in a short pass, and write the recipe with guesses."""
        options, is_gpu = self.options, self.device.type == "cuda"
        memory = usable_memory(self.device)
        plan = planning.choose_models(self.prints, options.hours, is_gpu=is_gpu, memory=memory)
        self.check_disk(plan)
        start, guess = seconds_to_start(), planning.guess_costs(plan, self.prints, is_gpu)
        slow = max(1.0, start / planning.START)  # a busy machine makes a shorter pass
        guess = {name: cost.times(slow) for name, cost in guess.items()}
        sections = self.sections_of(plan)
        try:
            numbers, _ = hours.choose_steps(self.limit, guess, guess, sections)
        except hours.TooShort as short:
            if short.seconds > SURE * self.limit:
                least = f"this data and this machine need about {short.seconds / 3600:.2g}"
                raise UserError(f"--hours {options.hours:g}: {least}; give so many") from None
            numbers = {name: {"max_step": section.low} for name, section in sections.items()}
        since = time.monotonic()
        more = self.path / "trial", self.folder.first, start, options.device, self.attendant
        costs, start = try_briefly(shorten(plan, numbers), self.dataset, *more)
        print(f"a short pass of all steps took {time.monotonic() - since:.0f} s; first pictures: {self.folder.first}")
        for name, section in sections.items():
            plan.settings[name] |= numbers.get(name, {"max_step": section.low})
        plan.write(self.path)
        guessed = planning.guess_costs(plan, self.prints)["autoencoder"].per_step
        state = State(options.hours, [checksum((self.path / "recipe.json").read_bytes())], start, guessed=guessed)
        state.costs = {name: dataclasses.asdict(cost) for name, cost in costs.items()}
        state.reasons = [list(reason) for reason in plan.reasons]
        state.notes = [note for packages, note in MISSING.items() if not has(*packages)]
        write_file(self.folder.planned, json.dumps(dataclasses.asdict(state)))
        return state

    def check_disk(self, plan: Plan) -> None:
        """Raise `UserError` if the disk has no room for feature maps and checkpoints."""
        wide = plan.files["transformer_0"]["in_dim"] / 128
        maps = self.prints.images * (1 + plan.settings.get("flip", False)) * 4 * planning.cells_of(plan) * 4
        needed = DISK + maps + 4 * 30e6 * wide**2 * len(plan.files["generate"])
        if (free := shutil.disk_usage(self.path).free) < needed:
            sizes = f"{needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} are free"
            raise UserError(f"{self.folder.path}: {sizes}; make room, or give an OUT on another disk")

    def train(self) -> None:
        """Run what has not run: each step of the chain, the evaluation, the report."""
        for name, step in self.steps.items():
            since, is_new, is_done = self.clock.used, not step.folder.record.is_file(), self.folder.mark(name).is_file()
            if not self.has_begun(step) and not self.is_edited:
                self.replan()
            self.run_step(name, self.seconds_for(name))
            if not is_done:
                self.note_time(name, self.clock.used - since, is_new)
        self.evaluate()
        self.end()

    def seconds_for(self, name: str) -> float | None:
        """Seconds after which a training by gradients is stopped; None for other steps."""
        trained = [name for name, step in self.steps.items() if step.script in KINDS]
        if self.is_edited or name not in trained:
            return None
        if name == trained[-1]:
            return max(1.0, self.limit - self.clock.used - self.after(name))
        return SLACK * (self.state.seconds[name] + self.state.drift * self.state.start)

    def run_step(self, name: str, seconds: float | None) -> None:
        """Run a step of the chain; one that is stopped after so many seconds ends with what it has learned."""
        options = dataclasses.replace(self.options, recipe=f"{self.path}/", dataset=self.dataset, hours=None)
        try:
            self.chain(Recipe.find(self.path), options).run(self.attendant, name, seconds)
        except SystemExit:
            if self.attendant.stop or not self.attendant.is_late:
                raise
            latest = self.steps[name].folder.latest
            if not latest.is_file():
                raise UserError(f"{name}: its time was over before its first step; give more --hours") from None
            done = load_checkpoint(latest, KINDS[self.steps[name].script], memory_map=True)["step"]
            recipe = read_json(self.path / "recipe.json")
            planned = recipe[name]["max_step"]
            recipe[name] |= {"max_step": done}
            self.state.notes.append(f"{name} was stopped after {done} of {planned} training steps, to keep the hours")
            self.write_recipe(recipe)
            self.chain(Recipe.find(self.path), options).run(self.attendant, name)

    def sections_of(self, plan: Plan) -> dict[str, hours.Section]:
        """What trains, and for how long at least and at most."""
        share = planning.CHOICES[self.prints.kind].share
        return hours.sections_of(plan.settings, self.prints.training, share)

    def has_begun(self, step: Step) -> bool:
        """Whether a step has begun, or one that has the same options."""
        section = step.section
        return any(each.folder.record.is_file() for each in self.steps.values() if each.section == section)

    def after(self, name: str) -> float:
        """Seconds that must be left once a step has ended."""
        names, stopping = list(self.steps), self.state.drift * self.state.start + self.now(name).per_checkpoint
        rest = sum(self.now(each).once for each in names[names.index(name) + 1 :])
        return self.closing + rest + stopping + MARGIN * self.limit

    @property
    def closing(self) -> float:
        """Seconds of evaluation and report."""
        chosen = self.evaluation(hours.EVALUATED * self.limit)
        return self.state.drift * 3 * self.state.start + (chosen.seconds if chosen else 0.0)

    def evaluation(self, seconds: float) -> hours.Evaluation | None:
        """How the run is evaluated in so many seconds; None where it cannot be."""
        if not has(*evaluate.PACKAGES):
            return None
        slowness = self.state.drift * self.costs["autoencoder"].per_step / self.state.guessed
        tokens = planning.cells_of(self.files())
        return hours.choose_evaluation(self.prints, tokens, seconds, slowness, self.state.drift * self.state.start)

    def now(self, name: str) -> Cost:
        """What a step costs at the pace of the steps before."""
        return self.costs[name].times(self.state.drift)

    def replan(self) -> None:
        """Divide the time that is left among the steps that have not begun."""
        plan = self.files()
        sections = self.sections_of(plan)
        costs = {}
        for name, step in self.steps.items():
            if self.folder.mark(name).is_file():
                continue
            costs[name] = self.now(name)
            if step.section in sections and self.has_begun(step):  # its number of training steps stays
                costs[name] = Cost(costs[name].seconds(plan.settings[step.section].get("max_step", 0), 1))
        begun = {step.section for step in self.steps.values() if self.has_begun(step)}
        open_sections = {name: section for name, section in sections.items() if name not in begun}
        if not open_sections:
            return
        left = self.limit - self.closing - (0.0 if self.options.plan_only else self.clock.used)
        if len(open_sections) == 1:  # the finest stage, which is stopped in time
            left *= OVER
        try:
            numbers, seconds = hours.choose_steps(left, costs, costs, open_sections)
        except hours.TooShort as short:
            if not begun:
                needed = (self.limit + short.seconds - left) / 3600
                least = f"this data and this machine need at least {1.05 * needed:.2f}"
                raise UserError(f"--hours {self.options.hours:g}: {least}; give so many") from None
            numbers = {name: {"max_step": section.low} for name, section in open_sections.items()}
            seconds = {}
            self.state.notes = list(dict.fromkeys([*self.state.notes, LATE]))
        for name, options in numbers.items():
            plan.settings[name] |= options
        self.state.seconds |= seconds | {hours.EVALUATION: self.closing}
        needed = (self.limit - left + sum(seconds.values())) / 3600
        if not begun and sum(seconds.values()) < 0.9 * left:
            early = f"about {needed:.2g} of the {self.options.hours:g} hours are needed"
            self.state.notes.append(f"{early}: more training steps would only learn so few images by heart")
        self.write_recipe(plan.settings)

    def files(self) -> Plan:
        """The recipe as it is now."""
        reasons = [Reason(*reason) for reason in self.state.reasons]
        return Plan(planning.read_recipe(self.path), reasons, self.state.seconds)

    def write_recipe(self, settings: dict) -> None:
        """Replace recipe.json, and remember that it was not a person who did."""
        text, path = json.dumps(settings, indent=4) + "\n", self.path / "recipe.json"
        self.state.written = [checksum(path.read_bytes()), checksum(text.encode())]
        self.save()  # first, since the process may be killed between the two
        write_file(path, text)
        self.save()

    def save(self) -> None:
        """Write auto.json, and recipe.md for people."""
        write_file(self.folder.planned, json.dumps(dataclasses.asdict(self.state), indent=1) + "\n")
        text = planning.describe(self.files(), self.prints, self.state.hours, self.state.took, self.state.notes)
        write_file(self.path / "recipe.md", text)

    def note_time(self, name: str, took: float, is_whole: bool) -> None:
        """Note how long a step took, and if that was all of it by how much steps are slower than planned."""
        state, planned = self.state, self.state.seconds.get(name, 0.0)
        state.took[name] = took
        if is_whole and planned > state.start and not self.is_edited:
            state.drift = min(10.0, max(0.1, state.drift * (took / planned) ** 0.5))
        self.save()

    def evaluate(self) -> None:
        """Evaluate the run, as thoroughly as the time allows that is left."""
        left = self.limit - self.clock.used - 3 * self.state.drift * self.state.start
        chosen = self.evaluation(0.9 * left)
        if chosen is None:
            return None
        if is_older(self.folder.evaluation.results, *(self.folder.path / ".done").iterdir()):
            since = self.clock.used
            print("== evaluation", flush=True)
            sizes = {"num_images": chosen.num_images, "num_training": chosen.num_training}
            self.call("evaluate", self.folder.path, dataset_path=self.dataset, device=self.options.device, **sizes)
            self.state.took[hours.EVALUATION] = self.clock.used - since
        return None

    def end(self) -> None:
        """Say what more would bring, and write the report."""
        self.state.outlook = self.outlook()
        self.save()
        print(*self.state.outlook, sep="\n")
        if has("jinja2", "plotly"):
            self.call("report", self.folder.path)
        used = self.clock.used
        print(f"{duration(used)} of {duration(self.limit)} used ({used / self.limit:.0%})")

    def outlook(self) -> list[str]:
        """What more hours or images would bring, as far as the finest stage shows it."""
        name = list(self.steps)[-2]
        losses = {
            row["step"]: row["val_loss"] for row in read_rows(self.steps[name].folder.metrics) if row.keys() >= NEEDED
        }
        if len(losses) < 2:
            return []
        best, last = min(losses, key=losses.get), max(losses)
        if best < LEARNED_BY_HEART * last:
            why = f"the finest stage was best after {best} of {last} training steps, then learned images by heart"
            return [f"more hours will not help: {why}; more images will"]
        return [f"more hours may help: the finest stage was best at its end, after {last} training steps; {TWICE}"]

    def call(self, script: str, *words: object, **flags: object) -> None:
        """Run a script to its end, or end with its status."""
        self.attendant.check([sys.executable, "-m", f"scripts.{script}", *words, *words_of(flags)])


def has(*packages: str) -> bool:
    """Whether these packages are installed."""
    return all(find_spec(package) for package in packages)
