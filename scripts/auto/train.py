"""*Train*: the chain of a planned recipe, from the images to the report, within the hours.

Before a step that has not begun, the time that is left is divided again, by the rates of the short pass and by how much
slower steps have been since. A step that has begun keeps its numbers, so a resume is exact; the finest stage is stopped
where it would take the time of what follows, and goes on where the same command gives more hours.
"""

import utils.runtime.threads  # noqa: F401

import dataclasses
import json
import math
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.autoencoder import KIND as AUTOENCODER
from models.stage import KIND as STAGE
from scripts import evaluate, report
from scripts.auto import expect, hours
from scripts.auto import plan as planning
from scripts.auto.begin import check_source, count_left_out, find_images, look_at, plan_for
from scripts.auto.kept import Clock, Plan
from scripts.dry_run import Cost
from utils.core.files import UserError, is_older, write_file
from utils.core.lock import lock
from utils.runs.chain import Recipe, folders_in, manifests_in, steps_of, with_seed
from utils.runs.checkpoint import load_checkpoint
from utils.runs.folders import RunFolder
from utils.runs.manifest import is_finished
from utils.runtime.cli import has, stopping_after
from utils.runtime.device import choose_device
from utils.runtime.progress import duration

OVER = 1.15  # that the finest stage is planned to overrun: what is cut off are steps at a low learning rate
SLACK = 1.5  # of its planned time, after which a training is stopped that is not the last one
KINDS = {"train_autoencoder": AUTOENCODER, "train_quantized_transformer": STAGE}  # of checkpoints that may be stopped
MISSING = {  # what is said of packages that are not there
    evaluate.PACKAGES: "there is no evaluation: pip install -r requirements-extra.txt",
    report.PACKAGES: "there is no report: pip install -r requirements-extra.txt",
}
EARLY = "more training steps would only memorize so few images"
REPORT = 7.0  # seconds that the report takes where `slowness` is 1
SURE = 0.85  # of the time that is left for the evaluation, which may be planned: it can take longer
MARGIN = 0.02, 9.0  # that is left over: a share of the hours, and seconds at least
MORE = 1.1  # times its training steps, from which on the finest stage goes on where there are more hours


class Auto:
    """The three parts of `scripts.train_cascade auto`, whose options these are; `chain` is its class `Chain`."""

    def __init__(self, options: Any, chain: Callable) -> None:
        self.options, self.chain = options, chain
        self.verified: set[Path] = set()  # of `Chain`, which each step makes anew
        self.folder, self.device = RunFolder(options.out), choose_device(options.device or "auto")
        self.path, self.limit = self.folder.recipe, 3600 * options.hours
        self.began = time.time()

    def run(self) -> None:
        with lock(self.path):
            self.clock = Clock(self.folder.clock)
            if self.options.plan_only:
                self.prepare()
                print("planned; go on within the hours by the same command without --plan-only, or edit the recipe and")
                print("train it as any other:", self.by_hand)
                return
            with self.clock:
                self.prepare()
                self.train()
                self.evaluate()
                self.end()

    @property
    def by_hand(self) -> str:
        words = ["python", "-m", "scripts.train_cascade", f"{self.path}/", self.dataset, self.folder.path]
        return shlex.join(map(str, words))

    def look(self) -> None:
        options, images, was_planned = self.options, self.folder.images, self.folder.planned.is_file()
        if not options.overwrite:
            check_source(options.dataset, images)
        number = count_left_out(options.dataset, images)
        is_anew = options.overwrite or (number > 0 and not was_planned)
        if number and not is_anew:
            lacks = f"{number} pictures of {options.dataset} that were added or changed since, or can be read now"
            print(f"{images}: lacks {lacks}; run with --overwrite to include them")
        self.dataset = find_images(options.dataset, images, options.hours, self.device.type == "cuda", is_anew)
        self.prints = look_at(self.dataset, self.folder, is_anew)
        print("look:", *self.prints.lines(), sep="\n  ", flush=True)
        if was_planned and not self.folder.planned.is_file():
            self.clock.before = 0.0  # the seconds of another plan

    def prepare(self) -> None:
        options, recipe = self.options, self.path / "recipe.json"
        begun = [folder for folder in folders_in(self.folder) if folder.record.is_file()]
        if begun and not self.folder.planned.is_file():
            raise UserError(f"{begun[0].path}: belongs to a run that auto has not planned; give another OUT")
        self.look()
        if not self.folder.planned.is_file() or not recipe.is_file():
            plan_for(self.prints, self.dataset, self.folder, options.hours, options.seed, self.device)
        self.take_up(Plan.read(self.folder))
        if with_seed(self.plan.settings, options.seed) != self.plan.settings:
            raise UserError(f"--seed {options.seed}: {recipe} has another one; leave it out, or give another OUT")
        self.plan.dataset = str(options.dataset)
        if self.plan.hours != options.hours:
            print(f"the models stay as planned for {self.plan.hours:g} hours; give another OUT to plan new ones")
        has_more, self.plan.hours = options.hours > self.plan.hours, options.hours
        if has_more and self.is_done(self.finest):
            self.go_on()
        self.replan()
        self.save()
        lacks = [note for packages, note in MISSING.items() if not has(*packages)]
        print(f"plan: {self.path / 'recipe.md'}", *self.plan.notes, *lacks, sep="\n  ")
        print("expect:", expect.sentence(self.prints, options.hours))

    def is_done(self, name: str) -> bool:
        step = self.steps[name]
        return is_finished(step.folder, step.script) and name not in self.anew

    @property
    def anew(self) -> tuple[str, ...]:
        """The steps that are run again since there are more hours."""
        return (self.finest, self.last) if self.plan.goes_on else ()

    def take_up(self, plan: Plan) -> None:
        self.plan, recipe = plan, Recipe.find(self.path)
        self.folder = RunFolder(self.options.out, len(recipe.stages))
        self.steps = {step.name: step for step in steps_of(self.folder, recipe, self.dataset)}

    def train(self) -> None:
        for name, step in self.steps.items():
            is_done = self.is_done(name)
            if step.section not in self.begun:
                self.replan()
                self.save()
            since = self.plan.took.get(name, 0.0) - self.clock.used
            self.run_step(name, None if is_done else self.seconds_for(name))
            if not is_done:
                self.plan.took[name] = since + self.clock.used
            self.save()

    # --- The time that is left ---

    @property
    def begun(self) -> set[str]:
        return {step.section for step in self.steps.values() if step.folder.record.is_file()}

    @property
    def pace(self) -> float:
        """How many times as long as the short pass says the trainings have taken so far."""
        done = [name for name in self.plan.took if name in self.steps and self.is_done(name)]
        expected = sum(self.cost_of(name, 1.0).seconds(*self.numbers(name)) for name in done)
        return min(10.0, max(0.1, sum(self.plan.took[name] for name in done) / expected)) if expected else 1.0

    def numbers(self, name: str) -> tuple[int, int]:
        """The training steps and the checkpoints of a step; none of one that trains nothing."""
        options = self.plan.settings.get(hours.section_of(name), {})
        steps = options.get("max_step", 0)
        return steps, math.ceil(steps / options.get("checkpoint_step", max(steps, 1)))

    def cost_of(self, name: str, pace: float | None = None) -> Cost:
        return Cost(**self.plan.costs[name]).times(pace or self.pace)

    def evaluation(self, seconds: float) -> tuple[dict[str, int], float]:
        """Options of an evaluation in so many seconds, and those that it takes; none where it cannot be."""
        if not has(*evaluate.PACKAGES):
            return {}, 0.0
        sides = self.prints.test or self.prints.validation, self.prints.training
        return hours.choose_evaluation(*sides, planning.cells_of(self.plan), seconds, self.plan.slowness * self.pace)

    @property
    def closing(self) -> float:
        return REPORT * self.plan.slowness * self.pace + self.evaluation(hours.EVALUATED * self.limit)[1]

    @property
    def finest(self) -> str:
        return [name for name, step in self.steps.items() if step.script in KINDS][-1]

    @property
    def last(self) -> str:
        return [*self.steps][-1]

    @property
    def stopping(self) -> float:
        """Seconds that a stop of the finest stage takes, which begins once more to end, and what is left over."""
        own = self.cost_of(self.finest)
        return max(MARGIN[0] * self.limit, MARGIN[1]) + own.once + own.per_checkpoint

    def seconds_for(self, name: str) -> float | None:
        """Seconds after which a training by gradients is stopped; None for other steps."""
        if self.steps[name].script not in KINDS:
            return None
        if name != self.finest:
            return SLACK * self.plan.seconds[name] + MARGIN[1]
        return max(1.0, self.left)

    @property
    def left(self) -> float:
        """Seconds of the hours for the finest stage."""
        return self.limit - self.clock.used - self.stopping - self.cost_of(self.last).once - self.closing

    def replan(self) -> None:
        begun, sections = self.begun, planning.sections_of(self.plan, self.prints)
        still_open = {name: section for name, section in sections.items() if name not in begun}
        if not still_open:
            return
        # A gain of pace may not last, so it is not spent before the finest stage, which would lack it.
        pace = self.pace if len(still_open) == 1 else max(1.0, self.pace)
        costs = {name: self.cost_of(name, pace) for name in self.steps if not self.is_done(name)}
        for name in costs:
            if self.steps[name].section in sections.keys() & begun:  # its number of training steps stays
                costs[name] = Cost(costs[name].seconds(*self.numbers(name)))
        left = self.limit - self.closing - (0.0 if self.options.plan_only else self.clock.used)
        if len(still_open) == 1:  # the finest stage, which is stopped in time
            left = OVER * (left - self.stopping)
        numbers, seconds = hours.choose_steps(left, costs, still_open)
        total, notes, given = sum(seconds.values()), self.plan.notes, f"{self.plan.hours:g}"
        needed = (self.limit - left + total) / 3600
        if total > left and not begun:
            least = f"this data and this machine need at least {math.ceil(105 * needed) / 100:g}"
            raise UserError(f"--hours {given}: {least}; give at least that many")
        if total < 0.9 * left and not begun:
            notes[:] = [note for note in notes if EARLY not in note]
            notes.append(f"about {needed:.2g} of the {given} hours are needed: {EARLY}")
        self.plan.change(numbers)
        self.plan.seconds |= seconds | {hours.EVALUATION: self.closing}

    def go_on(self) -> None:
        """Give the finest stage, which has ended, the training steps for which there are more hours now."""
        if (why := expect.memorized(self.steps[self.finest].folder.metrics)) is not None:
            print(f"no step is trained further: {why}")
            return
        options, most = self.plan.settings[self.finest], planning.sections_of(self.plan, self.prints)[self.finest].high
        steps = min(most, options["max_step"] + int(self.left / self.cost_of(self.finest).per_step))
        if steps < MORE * options["max_step"]:
            print(f"no step is trained further: {EARLY if steps == most else 'the hours leave too little time'}")
            return
        print(f"{self.finest} goes on from {options['max_step']} to {steps} training steps")
        options |= {"max_step": steps, "schedule_step": steps, "checkpoint_step": math.ceil(steps / 6)}
        self.plan.goes_on = True

    # --- The steps ---

    def run_step(self, name: str, seconds: float | None) -> None:
        """Run a step of the chain; one that is stopped after so many seconds ends with what it has learned."""
        more = {"recipe": f"{self.path}/", "dataset": self.dataset, "hours": None, "minutes": None}
        given = dataclasses.replace(self.options, **more), self.verified, self.anew
        try:
            chain = self.chain(Recipe.find(self.path), *given)
        except UserError as error:
            advice = f"with auto, --overwrite also reads the pictures again; {self.by_hand} --overwrite does not"
            raise UserError(f"{error}; {advice}" if "--overwrite" in str(error) else error) from None
        try:
            with stopping_after(seconds) as is_late:
                chain.run(name, f", {duration(max(0.0, self.limit - self.clock.used))} left of {duration(self.limit)}")
        except SystemExit:
            if not is_late.is_set():
                raise
            latest, settings = self.steps[name].folder.latest, self.plan.settings[name]
            if not latest.is_file():
                raise UserError(f"{name}: its time was over before its first step; give more --hours") from None
            done = load_checkpoint(latest, KINDS[self.steps[name].script], memory_map=True)["step"]
            stopped = f"{name} was stopped after {done} of {settings['max_step']} training steps"
            self.plan.notes.append(f"{stopped}, to keep the hours")
            settings["max_step"] = done
            self.save()
            self.chain(Recipe.find(self.path), *given).run(name)

    def evaluate(self) -> None:
        sizes, _ = self.evaluation(SURE * (self.limit - self.clock.used - REPORT * self.plan.slowness * self.pace))
        if sizes and is_older(self.folder.evaluation.results, *manifests_in(self.folder)):
            print("== evaluation", flush=True)
            since = self.clock.used
            given = {"run_dir": self.folder.path, "dataset_path": self.dataset, "device": str(self.device)}
            evaluate.evaluate(evaluate.Options(**given, **sizes))
            self.plan.took[hours.EVALUATION] = self.clock.used - since

    def end(self) -> None:
        all_passed = any(EARLY in note for note in self.plan.notes)
        self.plan.goes_on = False
        self.plan.outlook = expect.outlook(self.folder.transformers[-1].metrics, all_passed)
        self.save()
        print(*self.plan.outlook, sep="\n")
        if has(*report.PACKAGES):
            report.write_report(report.Options(run_dir=self.folder.path))
        results = [*manifests_in(self.folder), self.folder.evaluation.results]
        if all(path.stat().st_mtime < self.began for path in results if path.exists()):
            self.clock.since = time.monotonic()  # nothing was left to do
        used = self.clock.used
        print(f"{duration(used)} of {duration(self.limit)} used ({used / self.limit:.0%})")

    def save(self) -> None:
        """Write the recipe with its numbers, what was decided, and both for a person to read."""
        write_file(self.path / "recipe.json", json.dumps(self.plan.settings, indent=4) + "\n")
        self.plan.save(self.folder)
        write_file(self.path / "recipe.md", planning.describe(self.plan, self.prints))
