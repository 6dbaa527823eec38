"""The one training loop, and how it stops."""

import dataclasses
import itertools
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.contrib.logging import logging_redirect_tqdm

from utils import distributed
from utils.attempt import note
from utils.checkpoint_folder import CheckpointFolder
from utils.cli import stop_signals
from utils.dataset import BatchLoader, EpochSampler, chunks
from utils.device import choose_workers
from utils.draws import drawing
from utils.learner import Learner, TrainingOptions
from utils.memory import Footprint
from utils.metrics import Metrics
from utils.plan import Planner
from utils.progress import progress

log = logging.getLogger(__name__)

SAME_STOP = 3.0  # seconds within which a second SIGTERM or SIGHUP is the first one's echo
MAX_VALIDATION = 1024  # items that a validation loss is measured on, so that it stays a small share of training


def train(
    options: TrainingOptions,
    learner: Learner,
    dataset: Dataset,
    indices: np.ndarray,
    checkpoints: CheckpointFolder,
    metrics: Metrics,
    start: int,
    validate: Callable[[], dict[str, float]],
    preview: Callable[[int], None],
    watch: Callable[[], dict[str, float]] = dict,
    footprint: Footprint | None = None,
) -> int:
    """Train on `indices` of a data set from step `start` to the planned step; return the step that was reached.

    Every `--checkpoint-step` steps and at the end it saves, measures (`validate`) and draws (`preview`). `watch`
    measures what stands in each log line beside the training numbers, so it should be quick. What an earlier process
    has left unfinished of its last checkpoint is finished first. After some steps it says what all of them will take,
    in memory by their `footprint`, where that was counted.

    Ctrl-C, SIGTERM and SIGHUP finish the step, save, and exit with status 130, 143 or 129; `--resume` then goes on.
    """
    log.info("config %s", json.dumps(dataclasses.asdict(checkpoints.config)))
    for change in checkpoints.changes:
        log.warning("%s", change)
    if (number := distributed.num_processes()) > 1:
        log.info("a step learns from %d × %d images", number, options.step_size // number)
    total, state = checkpoints.total_steps, checkpoints.found.get("metrics")
    planner = Planner(checkpoints, learner, start, footprint)
    checkpoints.begin(start)
    metrics.begin(start, state)

    def save(step: int) -> None:
        """Before anything that may fail or take long."""
        row = metrics.close(step)
        checkpoints.save(learner, step, metrics=metrics.state(row))
        leave_if_asked(stops.now(*stop[:1]), checkpoints)
        finish(step, row, None)

    def finish(step: int, row: dict[str, float], validation: dict[str, float] | None) -> None:
        """Measure, draw, and only then write the rows: they say that nothing is missing."""
        since = time.monotonic()
        validation = validate() if validation is None else validation
        checkpoints.save(learner, step, validation, metrics=metrics.state(row))
        note(checkpoints.folder)
        if distributed.is_main():
            preview(step)
        if row:
            metrics.write(step, row)
        metrics.write(step, validation)
        metrics.show_pictures(step)
        planner.add_checkpoint(time.monotonic() - since)
        metrics.restart_clock()
        leave_if_asked(stops.now(*stop[:1]), checkpoints)

    sampler = EpochSampler(indices, options.step_size, options.seed, start, max(start, total))
    is_cuda = learner.device.type == "cuda"
    loader = BatchLoader(dataset, sampler, choose_workers(options.num_workers, learner.device), is_cuda)
    bar = progress(loader, initial=start, total=total, unit="step", desc=options.out_dir.name, mininterval=0.5)
    stops = distributed.Largest()
    with catch_stop() as stop, logging_redirect_tqdm(), bar:
        if not metrics.is_complete and state is not None and state["row"] is not None:
            finish(start, state["row"], checkpoints.found.get("validation"))
        elif not metrics.is_complete and start >= total:
            save(start)
        elif start >= total:
            log.info("already at step %d of %d: nothing to do", start, total)
        for step, batch in enumerate(metrics.timed(bar, learner.device), start):
            if step == start:
                metrics.count_flops(learner, batch)
            share = sampler.share(step)
            with drawing(options.seed, step, share, learner.device):
                metrics.add(learner.update(batch, step, share), share.total)
            done, asked = step + 1, stops.of_step_before(*stop[:1])
            planner.add_step(done)
            if done % options.checkpoint_step == 0 or done == total:
                save(done)
                continue
            if done % options.log_step == 0:
                metrics.write(done, metrics.close(done) | watch())
                metrics.restart_clock()
            if asked:
                checkpoints.save_stop(learner, done, metrics=metrics.state())
                leave_if_asked(asked, checkpoints)
    return max(start, total)


def leave_if_asked(stop: int, checkpoints: CheckpointFolder) -> None:
    """Once all is saved, end the process if a signal, 0 for none, has asked for it."""
    if stop:
        saved = f"saved {checkpoints.folder.latest}; go on with --resume, or end here with --resume --max-step 1"
        log.info("stopped by %s: %s", signal.Signals(stop).name, saved)
        sys.exit(128 + stop)


@torch.no_grad()
def mean_over(dataset: Dataset, indices: np.ndarray, batch_size: int, function: Callable) -> dict[str, float]:
    """The means of `function(batch)`, a dictionary of scalars, over the first `MAX_VALIDATION` of `indices`.

    Each process measures some of the batches, and all have the means of all.
    """
    sums: dict[str, float] = {}
    indices = indices[:MAX_VALIDATION]
    found = [(len(batch), function(dataset[batch])) for batch in distributed.own(chunks(indices, batch_size))]
    found = [(number, {name: float(value) for name, value in values.items()}) for number, values in found]
    for number, values in itertools.chain.from_iterable(distributed.gather(found)):
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value * number
    return {name: value / len(indices) for name, value in sums.items()}


def preview_indices(train: np.ndarray, validation: np.ndarray, number: int) -> np.ndarray:
    """What previews show: the first validation items, or training items where there are none."""
    if len(validation) == 0:
        log.warning("no image is a validation image: previews show training images; raise --val-fraction or add images")
    return (validation if len(validation) else train)[:number]


@contextmanager
def catch_stop() -> Iterator[list[signal.Signals]]:
    """Yield a list that receives the signals to stop instead of the process; a second one of a kind acts as usual.

    A second SIGTERM or SIGHUP of the next moment is taken for the first: a service manager signals every process of a
    job, as the kernel does where a terminal is lost, and the shell script above this process passes its own on.
    """
    received: list[signal.Signals] = []
    times: dict[int, float] = {}
    before = {number: signal.getsignal(number) for number in stop_signals()}

    def receive(number: int, _: object) -> None:
        received.append(signal.Signals(number))
        since = time.monotonic() - times.setdefault(number, time.monotonic())
        if len(received) > 1 and (since > SAME_STOP or number == signal.SIGINT):
            signal.signal(number, before[number])
            signal.raise_signal(number)

    try:
        for number in before:
            signal.signal(number, receive)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
