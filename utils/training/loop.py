"""The one training loop, and how it stops."""

import dataclasses
import itertools
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset
from tqdm.contrib.logging import logging_redirect_tqdm

from utils.core.files import UserError
from utils.data.batches import Batch, BatchLoader, EpochSampler, chunks
from utils.runs.checkpoint import measured
from utils.runs.manifest import attempt, note, printed
from utils.runtime import distributed
from utils.runtime.cli import stop_signals
from utils.runtime.device import choose_device, choose_workers
from utils.runtime.progress import duration, progress, readable
from utils.training.checkpoint_folder import CheckpointFolder
from utils.training.metrics import TIMED, Metrics, read_rows
from utils.training.task import Task, TrainingOptions

log = logging.getLogger(__name__)

SAME_STOP = 3.0  # a second SIGTERM or SIGHUP within so many seconds is a repeat of the first


def run(script: str, options: TrainingOptions, build: Callable[[TrainingOptions, torch.device], Task]) -> None:
    """Train a task as its options ask, and keep the attempt in `manifest.json`.

    Inputs and options are checked before the attempt begins. Then it trains to the planned step. Every
    `--checkpoint-step` steps and at the end it saves, validates and draws. A resume first completes the last checkpoint
    if an earlier process could not. Ctrl-C, SIGTERM and SIGHUP finish the step, save, and exit with status 130, 143 or
    129; `--resume` then continues.
    """
    with attempt(script, options) as attempted:
        device = choose_device(options.device)
        task = build(options, device)
        checkpoints = CheckpointFolder(options, task)
        torch.manual_seed(options.seed)
        task.build(checkpoints.saved)
        first = checkpoints.load()
        metrics = Metrics(options, len(task.training), task.unit, task.per_item)
        inputs = {**task.origin, "data": task.dataset.fingerprint}
        attempted.begin(device, task.config, inputs, goes_on=first > 0)
        batches = task.prepare()
        checkpoints.make_room(first)
        log.info("config %s", json.dumps(asdict(task.config)))
        for change in checkpoints.changes:
            log.warning("%s", change)
        if (number := distributed.num_processes()) > 1:
            log.info("a step learns from %d × %d images", number, options.step_size // number)
        loop = Loop(task, checkpoints, metrics, first)
        loop.run(batches)
        loop.finish()


class Loop:
    def __init__(self, task: Task, checkpoints: CheckpointFolder, metrics: Metrics, first: int) -> None:
        self.task, self.checkpoints, self.metrics, self.options = task, checkpoints, metrics, checkpoints.options
        self.first, self.total = first, checkpoints.total_steps
        self.done = self.saved_step = first  # the training steps that are done, and those that latest.pt has
        self.saved_at = time.monotonic()
        self.plan: Plan | None = None
        self.stop: list[signal.Signals] = []  # the signals to stop that came to this process

    def run(self, batches: Dataset) -> None:
        options, task, metrics, saved = self.options, self.task, self.metrics, self.checkpoints.resumed
        metrics.open(self.first, saved["metrics"])
        device = task.learner.device
        sampler = EpochSampler(task.training, options.step_size, options.seed, self.first, max(self.first, self.total))
        workers = choose_workers(task.num_workers if options.num_workers is None else options.num_workers, device)
        loader = BatchLoader(batches, sampler, workers, device.type == "cuda")
        bar = progress(
            loader, initial=self.first, total=self.total, unit="step", desc=options.out_dir.name, mininterval=0.5
        )
        # It would print all levels.
        lines = logging_redirect_tqdm() if printed.get() == logging.INFO else nullcontext()
        with catch_stop() as self.stop, lines, bar:
            if not metrics.is_complete and saved["metrics"] is not None and saved["metrics"]["row"] is not None:
                # Process 0 may have validated it before it died.
                validation = distributed.gather(measured(self.checkpoints.path, saved["fingerprint"]))[0]
                self.measure(self.first, saved["metrics"]["row"], saved["fingerprint"], validation)
            elif not metrics.is_complete and self.first >= self.total and saved["statistics"] is None:
                self.save(self.first)
            elif self.first >= self.total:
                log.info("already at step %d of %d: no training step is left", self.first, self.total)
            for step, batch in enumerate(self.batches(bar, device), self.first):
                if step == self.first:
                    metrics.restart_clock()  # the start of the loading processes does not count
                share = sampler.share(step)
                metrics.add(task.update(batch, step, share), share.total)
                self.after(step + 1)
            if asked := self.requests()[0]:  # after the last step
                leave(asked, self.checkpoints)

    def batches(self, loader: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
        """The batches, on the device. A data error of a single process saves first, as a stop does."""
        try:
            yield from self.metrics.timed(loader, device)
        except (UserError, OSError):
            if self.done > self.saved_step and distributed.num_processes() == 1:
                self.save_state(self.done, latest_only=True)
            raise

    def save_state(self, step: int, row: dict[str, float] | None = None, **options: object) -> str | None:
        """Save a checkpoint, with `latest_only` as `latest.pt` alone, which changes no results; its fingerprint."""
        self.metrics.means(step)  # numbers that are no longer finite must not replace the last checkpoint
        fingerprint = self.checkpoints.save(step, metrics=self.metrics.state(row), **options)
        self.saved_step, self.saved_at = step, time.monotonic()
        return fingerprint

    def finish(self) -> None:
        """Add the task's final statistics to `latest.pt`, unless an earlier process has done so."""
        step, metrics = max(self.first, self.total), self.metrics
        statistics = self.checkpoints.resumed["statistics"] if self.first == step else None
        if statistics is None:
            if (statistics := self.task.finish(step)) is None:
                return
            self.save_state(step, latest_only=True, statistics=statistics)
        rows = read_rows(metrics.folder.metrics)
        if not any(row["step"] == step and statistics.keys() <= row.keys() for row in rows):
            metrics.write_row({"step": step, **statistics})
            metrics.show_pictures(step)

    def after(self, done: int) -> None:
        """After each step: save, validate and draw; write a log line; stop; as far as it is due."""
        self.done = done
        metrics, is_due = self.metrics, time.monotonic() - self.saved_at > 60 * self.options.save_minutes
        asked, is_due = self.requests(is_due)
        if done - self.first == TIMED:
            self.make_plan(done)
        if done % self.options.checkpoint_step == 0 or done == self.total:
            self.save(done)
            return
        if done % self.options.log_step == 0:
            metrics.write(done, metrics.close(done) | self.task.watch())
            metrics.restart_clock()
        if asked or is_due:
            self.save_state(done, latest_only=True)
            note(self.checkpoints.folder)
        if asked:
            leave(asked, self.checkpoints)

    def save(self, step: int) -> None:
        """Save the weights first, since validation and pictures may fail or take long."""
        row = self.metrics.close(step)
        fingerprint = self.save_state(step, row)
        if asked := self.requests()[0]:
            leave(asked, self.checkpoints)
        self.measure(step, row, fingerprint)

    def measure(
        self, step: int, row: dict[str, float], fingerprint: str | None, validation: dict[str, float] | None = None
    ) -> None:
        """Validate, draw, and only then write the rows, which mark the checkpoint as complete."""
        since, metrics, folder = time.monotonic(), self.metrics, self.checkpoints.folder
        validation = validation or self.task.validate()
        self.checkpoints.keep(step, fingerprint, validation)
        note(folder)
        if distributed.is_main():
            self.task.preview(step)
        if row:
            metrics.write(step, row)
        metrics.write(step, validation)
        metrics.show_pictures(step)
        if self.plan is not None and self.plan.seconds_per_checkpoint is None:
            self.plan = dataclasses.replace(self.plan, seconds_per_checkpoint=time.monotonic() - since)
            note(folder, plan=asdict(self.plan))
        metrics.restart_clock()
        if asked := self.requests()[0]:
            leave(asked, self.checkpoints)

    def requests(self, is_due: bool = False) -> tuple[int, int]:
        """The signal that asks any process of the job to stop, or 0, and whether a save of any of them is due.

        Both travel as one number, so that the processes exchange it once.
        """
        return divmod(distributed.all_reduce_max(2 * (self.stop[0] if self.stop else 0) + is_due), 2)

    def make_plan(self, done: int) -> None:
        leaves = tree_leaves(self.task.learner.checkpoint())
        size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        self.plan = plan = Plan(self.metrics.seconds_per_step, size)
        number = most_checkpoints(self.total, self.options.checkpoint_step, self.options.keep_checkpoint)
        left = self.total - done
        words = f"{left} more training steps in {duration(left * plan.seconds_per_step)}, checkpoints come on top"
        log.info("plan: %s; disk for checkpoints %s", words, readable(number * size))
        note(self.checkpoints.folder, plan=asdict(plan))


@dataclass(frozen=True)
class Plan:
    """Time and disk of a training, measured in its first steps and kept in `manifest.json`."""

    seconds_per_step: float
    checkpoint: int  # bytes of one
    seconds_per_checkpoint: float | None = None  # to measure and to draw, once the first was


def most_checkpoints(steps: int, checkpoint_step: int, keep: int | None) -> int:
    """The most checkpoints on disk in so many training steps: those that are kept, best.pt, and a new one."""
    number = math.ceil(steps / checkpoint_step)
    return number if keep is None else min(number, keep + 2)


def leave(stop: int, checkpoints: CheckpointFolder) -> None:
    saved = f"saved {checkpoints.folder.latest}; go on with --resume, or end here with --resume --max-step 1"
    log.info("stopped by %s: %s", signal.Signals(stop).name, saved)
    sys.exit(128 + stop)


@torch.no_grad()
def mean_over(dataset: Dataset, indices: np.ndarray, batch_size: int, function: Callable) -> dict[str, float]:
    """The means of `function(batch)`, a dictionary of scalars, over the items `indices`.

    Each process measures some of the batches, and all have the means of all.
    """
    sums: dict[str, float] = {}
    parts = [(len(batch), function(dataset[batch])) for batch in distributed.my_items(chunks(indices, batch_size))]
    parts = [(number, {name: float(value) for name, value in values.items()}) for number, values in parts]
    for number, values in itertools.chain.from_iterable(distributed.gather(parts)):
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value * number
    return {name: value / len(indices) for name, value in sums.items()}


def preview_indices(train: np.ndarray, validation: np.ndarray, number: int) -> np.ndarray:
    """Indices for previews: the first validation items, or training items where there are none."""
    if len(validation) == 0:
        log.warning("no image is a validation image: previews show training images; raise --val-fraction or add images")
    return (validation if len(validation) else train)[:number]


@contextmanager
def catch_stop() -> Iterator[list[signal.Signals]]:
    """Yield a list that receives the signals to stop instead of the process; a second one of a kind acts as usual.

    A second SIGTERM or SIGHUP within `SAME_STOP` counts as the first: a service manager, or the kernel when a terminal
    is lost, signals every process of a job, and the parent process passes its own signal on.
    """
    received: list[signal.Signals] = []
    times: dict[int, float] = {}
    before = {number: signal.getsignal(number) for number in stop_signals()}

    def receive(number: int, _: object) -> None:
        received.append(signal.Signals(number))
        since = time.monotonic() - times.setdefault(number, time.monotonic())
        if received.count(number) > 1 and (since > SAME_STOP or number == signal.SIGINT):
            signal.signal(number, before[number])
            signal.raise_signal(number)

    try:
        for number in before:
            signal.signal(number, receive)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
