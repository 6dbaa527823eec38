"""The checkpoints of one training: which one to resume from, the latest and the best, how many are kept."""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from utils.core.files import UserError, write_file
from utils.core.provenance import check, check_origin, difference, options_key, same_images
from utils.data.split import Bounds, Learned
from utils.runs.checkpoint import MALFORMED, link_checkpoint, load_checkpoint, measured, read_measured, save_checkpoint
from utils.runs.folders import OutputFolder
from utils.runs.manifest import read_attempts
from utils.runtime.distributed import is_main, num_processes
from utils.training.task import SOURCES, Task, TrainingOptions

log = logging.getLogger(__name__)

STEP_SIZE, TRAINED = "number of images in a step", "number of training images"  # in the settings of a checkpoint
KEPT = {"settings": dict, "trained_from": dict, "data": dict, "metrics": dict, "parts": list}  # beside the learner's
KEPT |= dict.fromkeys(("step", "total_steps", "threads"), int)


class CheckpointFolder:
    """Writes the checkpoints of a training and restores it from them.

    A checkpoint is written once. Its validation numbers go to a JSON beside it, by its fingerprint. Raises `UserError`
    if the folder holds a run that would be lost, or that cannot be resumed, naming the setting that differs.
    """

    def __init__(self, options: TrainingOptions, task: Task) -> None:
        self.options, self.task, self.folder = options, task, OutputFolder(options.out_dir)
        self.total_steps = options.planned_steps(len(task.training))
        self.settings = options_key(options) | _flat(dataclasses.asdict(task.config))
        self.settings |= {STEP_SIZE: options.step_size, TRAINED: len(task.training)}
        self.key = {**self.settings, **task.origin, "data": task.dataset.fingerprint}
        # How a training step is divided: it changes results by rounding alone.
        self.division = [num_processes(), options.batches_per_step, options.batch_size]
        if len(task.training) < num_processes():
            raise UserError(
                f"{task.dataset.index}: {len(task.training)} training images are too few for {num_processes()} "
                "processes: start fewer, or add images"
            )
        self.bounds = options.bounds  # of the images that the weights have learned from, here or before
        self.best = math.inf  # validation loss of best.pt
        self.changes: list[str] = []  # differences between the resumed run and this one that are allowed
        self.saved, self.path = self._find()  # the checkpoint to resume from, or nothing; whole until it is restored

    def _find(self) -> tuple[dict, Path]:
        options, present = self.options, self.folder.made_checkpoints(self.task.prefix)
        paths = self.folder.resumable_checkpoints(self.task.prefix) if options.resume else []
        if present and not paths and not options.overwrite:
            advice = "nothing of it can be resumed: add" if options.resume else "add --resume to go on with it,"
            raise UserError(
                f"{self.folder.path}: holds a run ({present[0].name}); {advice} --overwrite to replace it, or give "
                "another --out-dir"
            )
        if not paths:
            self._check_sources(present)
            return {}, self.folder.latest
        try:
            path, content = self._read(paths)
            self._check(path, content)
        except UserError as error:
            if not options.overwrite:
                raise
            self._check_sources(present)
            log.warning("%s: starting anew, as --overwrite says", error)
            self.changes.clear()  # which are of going on
            return {}, self.folder.latest
        if not self.folder.latest.is_file():
            self.changes.append(f"{self.folder.latest} is gone: going on from {path.name}")
        return content, path

    def _check_sources(self, present: list[Path]) -> None:
        """Raise `UserError` if a fresh start would remove the weights that it starts from, or would forget them."""
        for source in (getattr(self.options, name, None) for name in (*SOURCES, "encoder_path")):
            if source is not None and source.resolve() in [path.resolve() for path in present]:
                raise UserError(f"{source}: --overwrite would remove it; give another --out-dir")
        attempts = read_attempts(self.folder) if self.options.resume and not self.options.overwrite else []
        trainings = [attempt for attempt in attempts if "resume" in attempt.arguments]  # and no pruning
        for before in trainings[-1:]:
            for flag in SOURCES:
                if (earlier := before.arguments.get(flag)) is not None:
                    raise UserError(
                        f"{self.folder.path}: a run that began from {earlier} has saved nothing yet; give its command "
                        "once more, without --resume"
                    )

    def _read(self, paths: list[Path]) -> tuple[Path, dict]:
        errors = []
        for path in paths:
            try:
                content = load_checkpoint(path, self.task.kind)
            except UserError as error:
                errors.append(error)
                continue
            self.changes += [f"{error}: going on from {path.name}" for error in errors]
            return path, content
        raise errors[0]

    def _check(self, path: Path, content: dict) -> None:
        """Raise `UserError` naming the setting that keeps this run from resuming a checkpoint."""
        if missing := [name for name, kind in KEPT.items() if not isinstance(content.get(name), kind)]:
            lacks = f"is not a checkpoint of a training: it lacks {', '.join(sorted(missing))}"
            raise UserError(f"{path}: {lacks}; remove it")
        before = {**content["settings"], **content["trained_from"], "data": content["data"]}
        keep, size = "keep it", self.options.batch_size
        if difference(before, self.key) == STEP_SIZE and before[STEP_SIZE] * size % self.key[STEP_SIZE] == 0:
            keep += f" with --batch-size {before[STEP_SIZE] * size // self.key[STEP_SIZE]}"
        # Nothing is replaced for the times of its data alone.
        verify = self.task.dataset.verify if self.options.verify or self.options.overwrite else None
        check(path, before, self.key, f"{keep}, or start anew with --overwrite", verify)

    def load(self) -> int:
        """Load the state of the run to resume, or the weights of `--model-path`, if any; return the first step.

        Raises `UserError` naming the checkpoint that does not fit.
        """
        if (path := getattr(self.options, "model_path", None)) is not None:
            content = load_checkpoint(path, self.task.kind)
            check_origin(path, content["trained_from"], self.task.origin)
            self.task.learner.begin_from(content, path)
            self._begin_from({path: Learned.saved(content)})
        elif self.saved:
            self._restore()
        else:
            self._begin_from(self.task.begun_from)
        step = self.saved.get("step", 0)
        self.resumed = {key: self.saved.get(key) for key in ("step", "metrics", "fingerprint", "statistics")}
        self.saved = {}  # its weights are loaded
        return step

    def _begin_from(self, sources: Mapping[Path, Learned]) -> None:
        """Note, also for the log, which images the weights that this training starts from have learned from."""
        data = self.task.dataset.fingerprint
        for path, learned in sources.items():
            if same_images(learned.data, data) is None:
                raise UserError(
                    f"{path}: an older version of this code wrote it or {self.task.dataset.index}, so which images it "
                    "has learned from is unknown; train it again, if on feature maps on ones that were made again"
                )
            self.bounds, change = learned.continued(self.bounds, data)
            self.changes += [f"{path}: {change}"] if change else []

    def _restore(self) -> None:
        content, threads = self.saved, torch.get_num_threads()
        self.bounds = Bounds.saved(content)
        if (before := content["total_steps"]) != self.total_steps:
            self.changes.append(
                f"planned were {before} steps, now {self.total_steps}: a cosine and a map's radius follow the new plan"
            )
        if (before := content["threads"]) != threads:
            self.changes.append(
                f"this run began with {before} threads, now there are {threads}: results differ by rounding; for equal "
                f"results set OMP_NUM_THREADS={before}"
            )
        if (before := content["parts"]) != self.division:
            self.changes.append(
                "this run began with {} processes × {} batches × {} images a step, now {} × {} × {}: results differ by "
                "rounding".format(*before, *self.division)
            )
        try:
            self.task.learner.restore(content, self.path)
        except MALFORMED as error:
            if not isinstance(error, UserError):
                reason = f"is not a complete checkpoint of a training ({type(error).__name__}: {error})"
                error = f"{self.path}: {reason}; remove it to resume from an earlier one"
            hint = f"; --overwrite cannot replace it, so remove {self.folder.checkpoints}"
            raise UserError(f"{error}{hint if self.options.overwrite else ''}") from None

    def make_room(self, step: int) -> None:
        """Before a fresh start (`step` 0) remove the files of an earlier run, the latest checkpoint first.

        So an interrupted start leaves no run that seems complete. A resume restores a lost `latest.pt` or `best.pt`.
        """
        if step == 0:
            for path in [*self.folder.made_checkpoints(self.task.prefix), *self.folder.made_pictures]:
                if is_main():
                    path.unlink()
            return
        if is_main() and self.path != self.folder.latest:
            link_checkpoint(self.path, self.folder.latest.name)
        if self.task.has_best:
            self._find_best()

    def _find_best(self) -> None:
        numbered = sorted(self.folder.numbered_checkpoints(self.task.prefix).items())
        for path in (self.folder.best, *(path for _, path in numbered)):
            try:
                fingerprint = load_checkpoint(path, self.task.kind, memory_map=True)["fingerprint"]
            except UserError as error:
                if path.exists():
                    self.changes.append(f"{error}: not considered as the best checkpoint")
                continue
            validation = measured(path, fingerprint)
            if path == self.folder.best:
                self.best = validation_loss(validation)
                if not validation and len(self.task.validation):
                    self.changes.append(f"{path}: how good it is was lost, so the next checkpoint replaces it")
                return
            self._offer(path, validation)

    def save(self, step: int, *, latest_only: bool = False, **rest: object) -> str | None:
        """Write the checkpoint of a step with whatever `rest` holds; return its fingerprint, in the first process.

        It becomes `latest.pt`. With `latest_only` it is nothing else: an uninterrupted run has none at that step.
        """
        rest |= {"step": step, "total_steps": self.total_steps, "settings": self.settings, "parts": self.division}
        rest |= {"threads": torch.get_num_threads(), "data": self.key["data"], "bounds": tuple(self.bounds)}
        rest |= self.task.traits | self.task.learner.checkpoint()
        if not is_main():
            return None
        path = self.folder.latest if latest_only else self.folder.checkpoints / f"{self.task.prefix}_{step}.pt"
        fingerprint = save_checkpoint(path, self.task.kind, self.task.config, trained_from=self.task.origin, **rest)
        if not latest_only:
            link_checkpoint(path, self.folder.latest.name)
        return fingerprint

    def keep(self, step: int, fingerprint: str | None, validation: dict[str, float]) -> None:
        """Save the validation numbers of a checkpoint, which becomes `best.pt` unless an earlier one was better.

        Then checkpoints beyond `--keep-checkpoint` are removed: `latest.pt` and `best.pt` do not depend on them.
        """
        if is_main() and measured(self.folder.latest, fingerprint) != validation:
            numbers = read_measured(self.folder.measured) | {fingerprint: validation}
            write_file(self.folder.measured, json.dumps(numbers, indent=1) + "\n")
        if self.task.has_best:
            self._offer(self.folder.checkpoints / f"{self.task.prefix}_{step}.pt", validation)
        if is_main() and (number := self.options.keep_checkpoint) is not None:
            others = self.folder.numbered_checkpoints(self.task.prefix)
            others.pop(step, None)
            for old in sorted(others, reverse=True)[number - 1 :]:
                others[old].unlink()

    def _offer(self, path: Path, validation: dict[str, float]) -> None:
        if (loss := validation_loss(validation)) <= self.best:
            self.best = loss
            if is_main() and path.is_file():
                link_checkpoint(path, self.folder.best.name)


def validation_loss(validation: dict[str, float]) -> float:
    """The validation loss, infinite if there is none or it is not finite."""
    loss = validation.get("val_loss", math.inf)
    return loss if math.isfinite(loss) else math.inf


def _flat(config: dict) -> dict:
    """A config whose nested configs stand among its own keys."""
    flat: dict = {}
    for key, value in config.items():
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return flat
