"""The options of all trainers, and what the training loop asks of a learner."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from utils.dataset import Batch, steps_per_epoch
from utils.distributed import Share, num_processes
from utils.options import StepOptions, option
from utils.split import SplitOptions


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(SplitOptions, StepOptions):
    """Options of all three trainers."""

    dataset_path: Path = option("dataset.json to train on")
    config_path: Path = option("JSON config of the model", short="-c")
    batch_size: int = option("images at once in a process; a training step may add up several batches", 8, low=1)
    checkpoint_step: int = option("training steps between checkpoints, pictures and validation", 1000, low=1)
    keep_checkpoint: int | None = option("newest checkpoints to keep, beside best.pt", None, unset="all", low=1)
    log_step: int = option("training steps between log lines", 50, low=1)
    lr_step: int = option("training steps after which the learning rate halves", 50_000, low=1, is_fixed=True)
    max_epoch: int = option("stop after this many epochs", 1000, low=1)
    max_step: int | None = option("training steps to stop after; schedules end there", None, unset="no limit", low=1)
    resume: bool = option("resume the training in --out-dir exactly, or start if there is none", False)
    seed: int = option("seed of every random choice", 0, is_fixed=True)
    num_workers: int | None = option("processes that load data", None, unset="0 on a CPU, else up to 4", low=0)
    tensorboard: bool = option("also write to tensorboard/ in --out-dir; needs requirements-eval.txt", False)

    @property
    def batches_per_step(self) -> int:
        """Batches of a process that a step adds up."""
        return 1

    @property
    def step_size(self) -> int:
        """Items that a step of all processes learns from."""
        return self.batch_size * self.batches_per_step * num_processes()

    def planned_steps(self, num_items: int) -> int:
        """Steps until the last epoch or `--max-step`, whichever comes first."""
        steps = self.max_epoch * steps_per_epoch(num_items, self.step_size)
        return steps if self.max_step is None else min(steps, self.max_step)


class Learner(Protocol):
    """What the loop trains."""

    device: torch.device

    def update(self, batch: Batch, step: int, share: Share | None = None) -> dict[str, torch.Tensor | float]:
        """Learn from one batch, which is all that the step learns from, or this process's `share` of that.

        Return numbers to log, `loss` among them, tensors or plain, the same in all processes.
        """

    def flops(self, batch: Batch) -> int | None:
        """Floating-point operations of the products of one step with this batch; None where nobody counts them."""

    def checkpoint(self) -> dict:
        """What to save: `model`, a state dict, and whatever else an exact resume needs.

        All processes are to ask at the same time, and the first one saves it.
        """

    def restore(self, content: dict, path: Path) -> None:
        """Take up what `checkpoint` gave."""
