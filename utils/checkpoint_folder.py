"""The checkpoints of one training: their names, the latest and the best, how many stay, and how to resume."""

import dataclasses
import logging
import math
from pathlib import Path

import torch

from utils.checkpoint import Origin, check_origins, link_checkpoint, load_checkpoint, save_checkpoint
from utils.dataset import FileDataset
from utils.files import UserError
from utils.index import check_same
from utils.learner import Learner, TrainingOptions
from utils.options import fixed_options
from utils.run_folder import StepFolder

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
        self.settings = {**fixed, "training items": num_items, **_flat(dataclasses.asdict(config))}
        self.best = math.inf  # validation loss of best.pt
        self.changes: list[str] = []  # differences between the resumed run and this one that are allowed
        self.found = self._find()  # the checkpoint to go on from, once restored its small parts; or nothing

    def _find(self) -> dict:
        options, made = self.options, self.folder.made_checkpoints(self.prefix)
        path = self.folder.newest_checkpoint(self.prefix) if options.resume else None
        if made and path is None and not options.overwrite:
            way = "nothing of it can be resumed: add" if options.resume else "add --resume to go on with it,"
            raise UserError(
                f"{self.folder.path}: holds a run ({made[0].name}); {way} --overwrite to replace it, or give another "
                "--out-dir"
            )
        if path is None:
            return {}
        try:
            return self._load(path)
        except UserError as error:
            if not options.overwrite:
                raise
            log.warning("%s: starting anew, as --overwrite says", error)
            return {}

    def _load(self, path: Path) -> dict:
        """The content of a checkpoint that this run can go on from."""
        content = load_checkpoint(path, self.kind)
        for key, value in content["settings"].items():
            if (now := self.settings.get(key)) != value:
                raise UserError(
                    f"{path}: cannot resume, {key!r} was {value}, now {now}; keep it, or start anew with --overwrite"
                )
        check_origins(path, content["trained_from"], self.trained_from)
        if data := content.get("data"):
            check_same(path, data, self.dataset.fingerprint, self.dataset.index, verify=self.options.verify)
        else:
            self.changes.append(f"{path} does not say which data it was trained on, so a change would go unnoticed")
        return content

    def restore(self, learner: Learner) -> int:
        """Restore the learner from the checkpoint that was found, if one was; return its step."""
        if not self.found:
            return 0
        content, path = self.found, self.folder.newest_checkpoint(self.prefix)
        if (before := content["total_steps"]) != self.total_steps:
            self.changes.append(
                f"planned were {before} steps, now {self.total_steps}: a cosine and a map's radius follow the new plan"
            )
        if (before := content.get("threads", torch.get_num_threads())) != torch.get_num_threads():
            self.changes.append(
                f"this run began with {before} threads, now there are {torch.get_num_threads()}: results differ by "
                f"rounding; for equal results set OMP_NUM_THREADS={before}"
            )
        learner.restore(content, path)
        if self.has_best:
            self._find_best()
        self.found = {key: content.get(key) for key in ("metrics", "validation", "statistics")}  # not the weights
        return content["step"]

    def _find_best(self) -> None:
        """Read the loss of `best.pt`; if that is gone, take the best of the checkpoints that are there."""
        if self.folder.best.exists():
            validation = load_checkpoint(self.folder.best, self.kind, memory_map=True).get("validation")
            self.best = validation_loss(validation or {})
            return
        for _, path in sorted(self.folder.numbered_checkpoints(self.prefix).items()):
            validation = load_checkpoint(path, self.kind, memory_map=True).get("validation")
            if validation is not None:
                self._offer(path, validation)

    def begin(self, step: int) -> None:
        """Start after `step`; a start anew removes what an earlier run left, the latest checkpoint first.

        So a folder whose start was cut short holds no run that seems whole.
        """
        if step == 0:
            for path in [*self.folder.made_checkpoints(self.prefix), *self.folder.made_pictures]:
                path.unlink()

    def save(self, learner: Learner, step: int, validation: dict[str, float] | None = None, **rest: object) -> None:
        """Write the checkpoint of a step with what was measured and whatever else `rest` holds.

        `latest.pt` becomes this one, and once it is measured `best.pt` too, unless an earlier one was better.
        """
        path = self.folder.checkpoints / f"{self.prefix}_{step}.pt"
        self._write(path, learner, step, validation=validation, **rest)
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
        rest |= plan | {"threads": torch.get_num_threads(), "data": self.dataset.fingerprint}
        save_checkpoint(path, self.kind, self.config, **learner.checkpoint(), trained_from=self.trained_from, **rest)

    def _offer(self, path: Path, validation: dict[str, float]) -> None:
        """Make a measured checkpoint `best.pt` if none was better."""
        if (loss := validation_loss(validation)) <= self.best:
            self.best = loss
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
