"""What a training will take, once its first steps have been timed: hours, disk and memory."""

import logging
import math
import time
from dataclasses import asdict, dataclass, replace
from statistics import median

from torch import Tensor
from torch.utils._pytree import tree_leaves

from utils.attempt import note
from utils.checkpoint_folder import CheckpointFolder
from utils.device import wait_for
from utils.learner import Learner
from utils.memory import Footprint, readable

log = logging.getLogger(__name__)

WARM, TIMED = 5, 20  # training steps before those that are timed, and with them


@dataclass(frozen=True)
class Plan:
    """What the first steps have shown, as `run.json` keeps it."""

    seconds_per_step: float
    checkpoint: int  # bytes of one
    batch: int | None = None  # images of the largest batch whose memory was counted, if one was
    memory: int | None = None  # bytes that it needs
    memory_per_image: float | None = None
    seconds_per_checkpoint: float | None = None  # to measure and to draw, once the first was


class Planner:
    """Times the steps of a training that begins after step `start`, and says what all of it will take."""

    def __init__(
        self, checkpoints: CheckpointFolder, learner: Learner, start: int, footprint: Footprint | None
    ) -> None:
        self.checkpoints, self.learner, self.start, self.footprint = checkpoints, learner, start, footprint
        self.times: list[float] = []  # when the steps that are timed have ended
        self.plan: Plan | None = None

    def add_step(self, done: int) -> None:
        """Take note that a step has ended, before anything is saved."""
        if WARM <= done - self.start <= TIMED:
            wait_for(self.learner.device)
            self.times.append(time.perf_counter())
        if done - self.start == TIMED:
            self.plan = self._make()
            log.info("plan: %s", self._words(self.plan, self.checkpoints.total_steps - done))
            note(self.checkpoints.folder, plan=asdict(self.plan))

    def add_checkpoint(self, seconds: float) -> None:
        """Take note of how long it took to measure and to draw."""
        if self.plan is not None and self.plan.seconds_per_checkpoint is None:
            self.plan = replace(self.plan, seconds_per_checkpoint=seconds)
            note(self.checkpoints.folder, plan=asdict(self.plan))

    def _make(self) -> Plan:
        tensors = [leaf for leaf in tree_leaves(self.learner.checkpoint()) if isinstance(leaf, Tensor)]
        size, found = sum(tensor.nbytes for tensor in tensors), self.footprint
        # The median, since checkpoints, log lines and short last batches may lie between.
        seconds = median(after - before for before, after in zip(self.times, self.times[1:], strict=False))
        if found is None:
            return Plan(seconds, size)
        return Plan(seconds, size, found.largest, found.of(found.largest), found.per_item)

    def _words(self, plan: Plan, left: int) -> str:
        options = self.checkpoints.options
        number = kept(self.checkpoints.total_steps, options.checkpoint_step, options.keep_checkpoint)
        words = [f"{left} more training steps in {duration(left * plan.seconds_per_step)}, checkpoints come on top"]
        words += [f"disk for checkpoints {readable(number * plan.checkpoint)}"]
        words += [] if plan.memory is None else [f"memory of a step {readable(plan.memory)}"]
        return "; ".join(words)


def kept(steps: int, checkpoint_step: int, keep: int | None) -> int:
    """How many checkpoints there are after so many training steps, at most: those that stay, and best.pt."""
    made = math.ceil(steps / checkpoint_step)
    return made if keep is None else min(made, keep + 1)


def duration(seconds: float) -> str:
    """Seconds to read, in hours, minutes and seconds: 26:03:04."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
