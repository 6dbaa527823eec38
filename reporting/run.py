"""A run as the report reads it: what each step did and measured, and the results of the evaluation."""

from contextlib import suppress
from dataclasses import dataclass

from evaluation.results import Results
from utils.core.config import build_config, read_json
from utils.core.files import UserError
from utils.runs.chain import folders_in
from utils.runs.checkpoint import fingerprints_of
from utils.runs.folders import OutputFolder, RunFolder
from utils.runs.manifest import Attempt, read_attempts
from utils.training.metrics import is_checkpoint, read_rows


@dataclass(frozen=True)
class Job:
    """What one script did in a step: its attempts, from the last one on that did not go on from an earlier one."""

    attempts: list[Attempt]

    @property
    def last(self) -> Attempt:
        return self.attempts[-1]

    @property
    def seconds(self) -> float:
        return sum(max(0.0, attempt.seconds) for attempt in self.attempts)


@dataclass(frozen=True)
class Step:
    folder: OutputFolder
    jobs: dict[str, Job]  # by script
    rows: list[dict]  # of metrics.jsonl

    def last(self, key: str) -> float | None:
        return next((row[key] for row in reversed(self.rows) if key in row), None)

    @property
    def checkpoints(self) -> list[dict]:
        return [row for row in self.rows if is_checkpoint(row) and "val_loss" in row]


@dataclass(frozen=True)
class Run:
    """A run as `scripts.train_cascade` leaves it, as far as it has come."""

    folder: RunFolder
    steps: dict[str, Step]  # by the names of their folders
    generation: dict | None  # generate.json
    evaluation: Results | None  # of these weights and this generate.json
    plan: dict | None = None  # auto.json, of a run that scripts.auto planned

    def of_kind(self, kind: str) -> list[Step]:
        return [step for step in self.steps.values() if step.folder.kind == kind]

    def job(self, name: str) -> Job | None:
        """What was done in a step that has a single script; None where nothing is known of it."""
        return next(iter(self.steps[name].jobs.values()), None) if name in self.steps else None


def read_run(folder: RunFolder) -> Run:
    """Read all that a run has left; raises `UserError` naming the file that is damaged."""
    steps = {step.name: read_step(step) for step in folders_in(folder) if step.path.is_dir()}
    if not steps:
        advice = "give a folder that scripts.train_cascade writes to, once its first step has begun"
        raise UserError(f"{folder.path}: holds no step of a run; {advice}")
    results = folder.evaluation.results
    generation = read_json(folder.generation) if folder.generation.exists() else None
    content = read_json(results) if results.exists() else {}
    evaluation = None  # of what the folder holds now, by this version of the code
    if content.get("settings") == (generation or {}) and content.get("models") is not None:
        with suppress(UserError):  # of another version
            read = build_config(Results, content, str(results))
            evaluation = read if fingerprints_of(folder).items() <= read.models.items() else None
    return Run(folder, steps, generation, evaluation, read_json(folder.planned) if folder.planned.exists() else None)


def read_step(folder: OutputFolder) -> Step:
    jobs: dict[str, Job] = {}
    for attempt in read_attempts(folder):
        goes_on = attempt.arguments.get("resume") if attempt.goes_on is None else attempt.goes_on
        earlier = jobs[attempt.script].attempts if attempt.script in jobs and goes_on else []
        jobs[attempt.script] = Job([*earlier, attempt])
    rows = read_rows(folder.metrics)  # what a person has written into them does not count
    return Step(folder, jobs, [row for row in rows if all(isinstance(v, int | float | list) for v in row.values())])
