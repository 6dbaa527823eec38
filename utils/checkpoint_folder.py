"""The checkpoints of one training: their names, the latest and the best, how many stay, and how to resume."""

import dataclasses
import math
from pathlib import Path

import torch

from utils.checkpoint import Origin, check_origins, link_checkpoint, load_checkpoint, save_checkpoint
from utils.files import UserError
from utils.learner import Learner, TrainingOptions
from utils.options import fixed_options
from utils.run_folder import StepFolder


class CheckpointFolder:
    """Writes the checkpoints of a training and restores it from them.

    `config` is the dataclass that travels with the weights, `num_items` counts the items that are trained on. Without
    `has_best` there is no `best.pt`.
    """

    def __init__(
        self,
        options: TrainingOptions,
        kind: str,
        config: object,
        trained_from: Origin,
        num_items: int,
        *,
        prefix: str = "model",
        has_best: bool = True,
    ) -> None:
        self.folder, self.keep = StepFolder(options.out_dir), options.keep_checkpoint
        self.kind, self.config, self.trained_from = kind, config, trained_from
        self.prefix, self.has_best = prefix, has_best
        self.total_steps = options.planned_steps(num_items)
        fixed = {flag: getattr(options, name) for name, flag in fixed_options(options).items()}
        self.settings = {**fixed, "training items": num_items, **_flat(dataclasses.asdict(config))}
        self.best = math.inf  # validation loss of best.pt
        self.is_measured = True  # whether the checkpoint that was resumed holds its validation: a crash may come before
        self.changes: list[str] = []  # differences between the resumed run and this one that are allowed

    def save(self, learner: Learner, step: int, validation: dict[str, float] | None = None, **rest: object) -> Path:
        """Write the checkpoint of a step with what was measured and whatever else `rest` holds.

        `latest.pt` becomes this one, and so does `best.pt` unless an earlier checkpoint was measured and no worse.
        """
        path = self.folder.checkpoints / f"{self.prefix}_{step}.pt"
        rest |= {"step": step, "total_steps": self.total_steps, "validation": validation, "settings": self.settings}
        rest |= {"threads": torch.get_num_threads(), "trained_from": self.trained_from}
        save_checkpoint(path, self.kind, self.config, **learner.checkpoint(), **rest)
        link_checkpoint(path, self.folder.latest.name)
        loss = validation_loss(validation)
        if self.has_best and loss <= self.best:
            link_checkpoint(path, self.folder.best.name)
            self.best = loss
        if self.keep is not None:
            others = set(self.folder.checkpoints.glob(f"{self.prefix}_*.pt")) - {path}
            for old in sorted(others, key=lambda other: other.stat().st_mtime_ns, reverse=True)[self.keep - 1 :]:
                old.unlink()
        return path

    def resume(self, learner: Learner) -> int:
        """Restore the learner from `latest.pt`, if there is one, and return its step.

        Raises `UserError` naming the setting that is not as it was.
        """
        path = self.folder.latest
        if not path.exists():
            return 0
        content = load_checkpoint(path, self.kind)
        for key, value in content["settings"].items():
            if (now := self.settings.get(key)) != value:
                raise UserError(f"{path}: cannot resume, {key!r} was {value}, now {now}; keep it or start anew")
        check_origins(path, content["trained_from"], self.trained_from)
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
        if self.folder.best.exists():
            best = load_checkpoint(self.folder.best, self.kind, memory_map=True)
            self.best = validation_loss(best.get("validation"))
        self.is_measured = not self.has_best or content.get("validation") is not None
        return content["step"]


def validation_loss(validation: dict[str, float] | None) -> float:
    """The loss among what was measured, infinite if there is none or it is no number."""
    loss = (validation or {}).get("val_loss", math.inf)
    return loss if math.isfinite(loss) else math.inf


def _flat(config: dict) -> dict:
    """A config whose nested configs stand among its own keys."""
    flat: dict = {}
    for key, value in config.items():
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return flat
