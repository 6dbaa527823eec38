"""The checkpoints of one training: their names, the latest and the best, how many stay, and how to resume."""

import dataclasses
import logging
import math
from pathlib import Path

import torch

from utils.attempt import read_attempts
from utils.checkpoint import Origin, check_origins, link_checkpoint, load_checkpoint, save_checkpoint
from utils.dataset import FileDataset
from utils.distributed import is_main, num_processes
from utils.files import UserError
from utils.index import check_same
from utils.learner import Learner, TrainingOptions
from utils.options import fixed_options
from utils.run_folder import StepFolder
from utils.split import Bounds

log = logging.getLogger(__name__)


class CheckpointFolder:
    """Writes the checkpoints of a training and restores it from them.

    `config` is the dataclass that travels with the weights, `num_items` counts the items of `dataset` that are trained
    on. Without `has_best` there is no `best.pt`. Raises `UserError` if the folder holds a run that would be lost, or
    that cannot be resumed, naming the setting that is not as it was.
    """

    def __init__(
        self,
        options: TrainingOptions,
        kind: str,
        config: object,
        trained_from: Origin,
        dataset: FileDataset,
        num_items: int,
        *,
        prefix: str = "model",
        has_best: bool = True,
    ) -> None:
        self.options, self.folder, self.dataset = options, StepFolder(options.out_dir), dataset
        self.kind, self.config, self.trained_from = kind, config, trained_from
        self.prefix, self.has_best = prefix, has_best
        self.total_steps = options.planned_steps(num_items)
        fixed = {flag: getattr(options, name) for name, flag in fixed_options(options).items()}
        self.settings = {**fixed, "images of a step": options.step_size, "training items": num_items}
        self.settings |= _flat(dataclasses.asdict(config))
        # Of equal steps, how they are computed: it changes results by rounding alone.
        self.parts = [num_processes(), options.batches_per_step, options.batch_size]
        if num_items < num_processes():
            raise UserError(
                f"{dataset.index}: {num_items} training images are too few for {num_processes()} processes: start "
                "fewer, or add images"
            )
        self.bounds = options.bounds  # of the images that the weights have learned from, here or before
        self.best = math.inf  # validation loss of best.pt
        self.changes: list[str] = []  # differences between the resumed run and this one that are allowed
        self.path = self.folder.latest  # of the checkpoint to go on from
        self.found = self._find()  # what that holds, once it is restored only its small parts; or nothing

    def _find(self) -> dict:
        options, made = self.options, self.folder.made_checkpoints(self.prefix)
        paths = self.folder.resumable_checkpoints(self.prefix) if options.resume else []
        if made and not paths and not options.overwrite:
            way = "nothing of it can be resumed: add" if options.resume else "add --resume to go on with it,"
            raise UserError(
                f"{self.folder.path}: holds a run ({made[0].name}); {way} --overwrite to replace it, or give another "
                "--out-dir"
            )
        if not paths:
            self._check_source(made)
            return {}
        try:
            self.path, content = self._read(paths)
            self._check(content)
        except UserError as error:
            if not options.overwrite:
                raise
            log.warning("%s: starting anew, as --overwrite says", error)
            return {}
        return content

    def _check_source(self, made: list[Path]) -> None:
        """Raise `UserError` if a start from other weights would remove them, or a start anew would do without them."""
        sources = ("model_path", "codebook_path")
        for source in (getattr(self.options, name, None) for name in (*sources, "encoder_path")):
            if source is not None and source.resolve() in [path.resolve() for path in made]:
                raise UserError(f"{source}: --overwrite would remove it; give another --out-dir")
        attempts = read_attempts(self.folder) if self.options.resume and not self.options.overwrite else []
        for before in attempts[-1:]:
            for flag in sources:
                if (earlier := before.arguments.get(flag)) is not None:
                    raise UserError(
                        f"{self.folder.path}: a run that began from {earlier} has saved nothing yet; give its command "
                        "once more, without --resume"
                    )

    def _read(self, paths: list[Path]) -> tuple[Path, dict]:
        """The first checkpoint that is not damaged."""
        errors = []
        for path in paths:
            try:
                content = load_checkpoint(path, self.kind)
            except UserError as error:
                errors.append(error)
                continue
            self.changes += [f"{error}: going on from {path.name}" for error in errors]
            return path, content
        raise errors[0]

    def _check(self, content: dict) -> None:
        """Raise `UserError` naming what keeps this run from going on from a checkpoint."""
        path = self.path
        if missing := {"settings", "total_steps", "step"} - content.keys():
            raise UserError(f"{path}: is no checkpoint of a training, without {', '.join(sorted(missing))}; remove it")
        before = {"--test-fraction": 0.0, **content["settings"]}  # of a run from before there were test images
        if "--batch-size" in before:  # and from before there were several processes
            before["images of a step"] = before.pop("--batch-size") * before.pop("--grad-accum-step", 1)
        for key, value in before.items():
            if (now := self.settings.get(key)) != value:
                keep = "keep it"
                if key == "images of a step" and value * self.options.batch_size % now == 0:
                    keep += f" with --batch-size {value * self.options.batch_size // now}"
                raise UserError(
                    f"{path}: cannot resume, {key!r} was {value}, now {now}; {keep}, or start anew with --overwrite"
                )
        check_origins(path, content["trained_from"], self.trained_from)
        if data := content.get("data"):
            verify = self.options.verify or self.options.overwrite  # nothing is replaced for its times alone
            check_same(path, data, self.dataset.fingerprint, self.dataset.index, verify=verify)
        else:
            self.changes.append(f"{path} does not say which data it was trained on, so a change would go unnoticed")

    def begin_from(self, path: Path, bounds: Bounds) -> None:
        """Keep in mind, and say in the log, which images the weights that this training begins from know already."""
        self.bounds = Bounds.common((bounds, self.bounds))
        if self.bounds != self.options.bounds:
            self.changes.append(
                f"{path}: held out other images, so test images are now those with hashes from "
                f"{self.bounds.validation:g} to {self.bounds.test:g}"
            )

    def restore(self, learner: Learner) -> int:
        """Restore the learner from the checkpoint that was found, if one was; return its step."""
        if not self.found:
            return 0
        content = self.found
        self.bounds = Bounds.saved(content)
        if (before := content["total_steps"]) != self.total_steps:
            self.changes.append(
                f"planned were {before} steps, now {self.total_steps}: a cosine and a map's radius follow the new plan"
            )
        if (before := content.get("threads", torch.get_num_threads())) != torch.get_num_threads():
            self.changes.append(
                f"this run began with {before} threads, now there are {torch.get_num_threads()}: results differ by "
                f"rounding; for equal results set OMP_NUM_THREADS={before}"
            )
        if (before := content.get("parts", self.parts)) != self.parts:
            self.changes.append(
                "this run began with {} processes × {} batches × {} images a step, now {} × {} × {}: results differ by "
                "rounding".format(*before, *self.parts)
            )
        try:
            learner.restore(content, self.path)
        except UserError as error:
            hint = f"; --overwrite cannot replace it, so remove {self.folder.checkpoints}"
            raise UserError(f"{error}{hint if self.options.overwrite else ''}") from None
        if self.has_best:
            self._find_best()
        small = ("step", "metrics", "validation", "statistics")
        self.found = {key: content.get(key) for key in small}  # not the weights
        return content["step"]

    def _find_best(self) -> None:
        """Read the loss of `best.pt`; if that is gone, take the best of the checkpoints that are there."""
        numbered = sorted(self.folder.numbered_checkpoints(self.prefix).items())
        for path in (self.folder.best, *(path for _, path in numbered)):
            try:
                validation = load_checkpoint(path, self.kind, memory_map=True).get("validation")
            except UserError as error:
                if path.exists():
                    self.changes.append(f"{error}: not considered as the best checkpoint")
                continue
            if path == self.folder.best:
                self.best = validation_loss(validation or {})
                return
            if validation is not None:
                self._offer(path, validation)

    def begin(self, step: int) -> None:
        """Start after `step`; a start anew removes what an earlier run left, the latest checkpoint first.

        So a folder whose start was cut short holds no run that seems whole.
        """
        if step == 0 and is_main():
            for path in [*self.folder.made_checkpoints(self.prefix), *self.folder.made_pictures]:
                path.unlink()

    def save(self, learner: Learner, step: int, validation: dict[str, float] | None = None, **rest: object) -> None:
        """Write the checkpoint of a step with what was measured and whatever else `rest` holds.

        `latest.pt` becomes this one, and once it is measured `best.pt` too, unless an earlier one was better.
        """
        path = self.folder.checkpoints / f"{self.prefix}_{step}.pt"
        self._write(path, learner, step, validation=validation, **rest)
        if not is_main():
            return
        link_checkpoint(path, self.folder.latest.name)
        if self.has_best and validation is not None:
            self._offer(path, validation)
        if (keep := self.options.keep_checkpoint) is not None:
            others = self.folder.numbered_checkpoints(self.prefix)
            del others[step]
            for old in sorted(others, reverse=True)[keep - 1 :]:
                others[old].unlink()

    def save_stop(self, learner: Learner, step: int, **rest: object) -> None:
        """Write `latest.pt` alone: a stop is not a checkpoint that an uninterrupted run would have."""
        self._write(self.folder.latest, learner, step, **rest)

    def _write(self, path: Path, learner: Learner, step: int, **rest: object) -> None:
        plan = {"step": step, "total_steps": self.total_steps, "settings": self.settings}
        rest |= plan | {"threads": torch.get_num_threads(), "parts": self.parts, "data": self.dataset.fingerprint}
        rest |= {"bounds": tuple(self.bounds), **learner.checkpoint()}
        if step == self.found.get("step") and self.found["statistics"] is not None:
            rest = {"statistics": self.found["statistics"]} | rest  # what is made good here must not lose them
        if is_main():
            save_checkpoint(path, self.kind, self.config, trained_from=self.trained_from, **rest)

    def _offer(self, path: Path, validation: dict[str, float]) -> None:
        """Make a measured checkpoint `best.pt` if none was better."""
        if (loss := validation_loss(validation)) <= self.best:
            self.best = loss
            if is_main():
                link_checkpoint(path, self.folder.best.name)


def validation_loss(validation: dict[str, float]) -> float:
    """The loss among what was measured, infinite if there is none or it is no number."""
    loss = validation.get("val_loss", math.inf)
    return loss if math.isfinite(loss) else math.inf


def _flat(config: dict) -> dict:
    """A config whose nested configs stand among its own keys."""
    flat: dict = {}
    for key, value in config.items():
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return flat
