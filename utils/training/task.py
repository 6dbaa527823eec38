"""What a training is: its options, its task, and the learner that the task trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from utils.core.files import UserError
from utils.core.options import MOST_WORKERS, ScriptOptions, option, words_of
from utils.core.provenance import Origin
from utils.data.batches import steps_per_epoch
from utils.data.dataset import FileDataset
from utils.data.split import Learned, SplitOptions
from utils.runtime.distributed import num_processes

SOURCES = ("model_path", "codebook_path")  # options that name weights to start from


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(SplitOptions, ScriptOptions):
    dataset_path: Path = option("dataset.json to train on")
    config_path: Path = option("JSON config of the model", short="-c")
    batch_size: int = option("images at once in a process; a training step may add up several batches", 8, low=1)
    checkpoint_step: int = option("training steps between checkpoints, pictures and validation", 1000, low=1)
    keep_checkpoint: int | None = option("newest checkpoints to keep, beside best.pt", None, unset="all", low=1)
    save_minutes: float = option("minutes between extra saves of latest.pt, between checkpoints", 30.0, above=0)
    log_step: int = option("training steps between log lines", 50, low=1)
    max_epoch: int = option("stop after this many epochs", 1000, low=1)
    max_step: int | None = option("training steps to stop after; schedules end there", None, unset="no limit", low=1)
    resume: bool = option("resume the training in --out-dir exactly, or start if there is none", False)
    seed: int = option("seed of every random choice", 0, low=-(2**63), high=2**63 - 1, is_fixed=True)
    num_workers: int | None = option(
        "processes that load data", None, unset="0 on a CPU, else up to 4", low=0, high=MOST_WORKERS
    )
    tensorboard: bool = option("also write to tensorboard/ in --out-dir; needs requirements-extra.txt", False)

    def __post_init__(self) -> None:
        for name in SOURCES:
            if self.resume and (path := getattr(self, name, None)) is not None:
                flag = " ".join(words_of({name: path}))
                raise UserError(f"--resume goes on with what --out-dir holds: leave out {flag}, or --resume")

    @property
    def batches_per_step(self) -> int:
        return 1

    @property
    def step_size(self) -> int:
        return self.batch_size * self.batches_per_step * num_processes()

    def planned_steps(self, num_items: int) -> int:
        """Steps until the last epoch or `--max-step`, whichever comes first."""
        steps = self.max_epoch * steps_per_epoch(num_items, self.step_size)
        return steps if self.max_step is None else min(steps, self.max_step)


class Task:
    """A model, its data, loss, validation and pictures. `loop.run` calls the methods in this order.

    The constructor takes options and device, opens the data, and sets the attributes below. It and `build` raise
    `UserError` if inputs do not fit, before anything is written.
    """

    kind: str  # of its checkpoints
    prefix, has_best = "model", True  # how they are named, and whether there is a best.pt
    unit, per_item = "images", 1  # what is counted a second, and how many an item holds
    num_workers: int | None = None  # processes that load its data where the options do not say
    config: object  # the dataclass that travels with the weights
    origin: Origin  # fingerprints of the models that made the data
    traits: Mapping[str, object] = {}  # what its checkpoints also keep, as later steps must know it
    dataset: FileDataset
    training: np.ndarray  # the items of the data set that it learns from
    validation: np.ndarray  # those that it is measured on
    # The learner has a `device`, `checkpoint()`, which returns all that an exact resume needs and is called by all
    # processes together, and `restore(content, path)`. `update(batch, step, share)` is a training step with its random
    # draws: it learns from this process's `share` of the items, and returns numbers to log, `loss` among them, the same
    # in all processes.
    learner: Any
    update: Callable
    begun_from: Mapping[Path, Learned] = MappingProxyType({})  # weights that it begins from

    def build(self, saved: dict) -> None:
        """Build the learner; `saved` is the checkpoint to resume from, empty if there is none."""
        raise NotImplementedError

    def prepare(self) -> Dataset:
        """Do slow preparations, after all checks; return the data set to train on: `dataset[indices]` is a batch."""
        return self.dataset

    def validate(self) -> dict[str, float]:
        """The validation numbers of a checkpoint, `val_loss` among them, or nothing without validation images."""
        raise NotImplementedError

    def watch(self) -> dict[str, float]:
        """Numbers to add to each log line, so it should be quick."""
        return {}

    def preview(self, step: int) -> None:
        """Draw the pictures of a checkpoint, in the first process."""
        raise NotImplementedError

    def finish(self, step: int) -> dict | None:
        """Final work after the last training step; return statistics for `latest.pt`, or None."""
