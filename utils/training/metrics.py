"""The numbers of a training: means since the last line, written to the log, to `metrics.jsonl` and to TensorBoard."""

import json
import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from statistics import median

import numpy as np
import torch

from utils.core.files import UserError, file_at, flush, write_file
from utils.data.batches import Batch, steps_per_epoch, to_device
from utils.data.images import open_rgb
from utils.runs.folders import OutputFolder
from utils.runtime import distributed
from utils.runtime.device import wait_for
from utils.training.task import TrainingOptions

log = logging.getLogger(__name__)

WARM, TIMED = 5, 20  # the time of a step is the median of training steps 6 to 19
MOST_WAIT = 0.05  # largest share of the time that a GPU may wait for data without a warning


class Metrics:
    """Gathers the numbers of steps and writes them, a line an interval.

    `num_items` is the number of training items; each holds `per_item` units of the rate, images or tokens (`unit`).
    """

    def __init__(self, options: TrainingOptions, num_items: int, unit: str = "images", per_item: int = 1) -> None:
        self.folder = OutputFolder(options.out_dir)
        self.per_epoch = steps_per_epoch(num_items, options.step_size)
        self.unit, self.per_item = unit, per_item
        self.durations: list[float] = []  # of the first training steps
        self.may_starve = False  # whether to warn once if the device waits for data
        self.board, self.make_board = None, None
        if options.tensorboard:  # here, before anything is written
            try:
                self.make_board = import_module("torch.utils.tensorboard").SummaryWriter
            except ImportError:
                raise UserError("--tensorboard needs a package: pip install tensorboard, or leave it out") from None

    def open(self, step: int, state: dict | None = None) -> None:
        """Go on after `step`: drop rows that a crashed run wrote later, or all of an earlier run; open TensorBoard.

        `state` is what `state()` returned for the checkpoint of `step`. If the rows of that step are incomplete, they
        are dropped, since the row in `state` is written again.
        """
        rows = read_rows(self.folder.metrics) if step else []
        self.is_complete = any(row["step"] == step and is_checkpoint(row) for row in rows)
        distributed.barrier()  # until all have read them
        if distributed.is_main():
            last = step - 1 if state is not None and state["row"] and not self.is_complete else step
            write_rows(self.folder.metrics, [row for row in rows if row["step"] <= last])
            if self.make_board is not None:
                self.board = self.make_board(str(self.folder.tensorboard), purge_step=last + 1)  # hides later entries
        self.sums, self.steps, self.items = {}, 0, 0
        self.restart_clock()
        if state is not None:
            self.sums, self.steps = dict(state["sums"]), state["steps"]

    def state(self, row: dict[str, float] | None = None) -> dict:
        """The state for a checkpoint: sums since the last row, and the row to write once the checkpoint is complete.

        Earlier rows are on disk when this returns.
        """
        with suppress(FileNotFoundError):  # a person has removed it, but the weights must be saved
            flush(self.folder.metrics)
        return {"row": row, "sums": self.sums, "steps": self.steps}

    @property
    def seconds_per_step(self) -> float:
        return median(self.durations[WARM:])

    def timed(self, batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
        """The batches, on the device; the time spent waiting for them becomes `data_wait` of each row.

        A warning is logged once if a GPU waits long; on a CPU more loading processes would not help.
        """
        self.may_starve = device.type != "cpu"
        batches, end = iter(batches), object()
        while True:
            since = time.perf_counter()
            if (batch := next(batches, end)) is end:
                return
            batch = to_device(batch, device)
            self.waited += time.perf_counter() - since
            yield batch
            if len(self.durations) < TIMED:
                wait_for(device)
                self.durations.append(time.perf_counter() - since)

    def restart_clock(self) -> None:
        self.clock, self.waited = time.perf_counter(), 0.0

    def add(self, numbers: dict[str, torch.Tensor | float], items: int) -> None:
        """Add the numbers of one step of all processes; tensors stay on their device, so that nothing waits for it."""
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1
        self.items += items

    def means(self, step: int) -> dict[str, float]:
        """The means since `close`, none if there were no steps. Raises `UserError` if one is no longer finite."""
        names = {name: f"train_{name}" for name in ("loss", "bits", "accuracy")}
        means = {names.get(name, name): float(value) / self.steps for name, value in self.sums.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{name} is {value} at step {step}: lower 'model_lr' and start anew with --overwrite, or in "
                    f"another --out-dir with --model-path from the last checkpoint in {self.folder.checkpoints}"
                )
        return means

    def close(self, step: int) -> dict[str, float]:
        """The means since the last call and the rates, none if there were no steps."""
        if self.steps == 0:
            return {}
        means = self.means(step)
        seconds = max(time.perf_counter() - self.clock, 1e-9)
        if self.items:  # none where another process has done these steps
            means[f"{self.unit}_per_second"] = self.per_item * self.items / seconds
            means["data_wait"] = max(distributed.gather(self.waited / seconds))
            if self.may_starve and means["data_wait"] > MOST_WAIT:
                share = 100 * means["data_wait"]
                log.warning("waiting for data takes %.0f %% of training time: raise --num-workers", share)
                self.may_starve = False
        self.sums, self.steps, self.items = {}, 0, 0
        self.restart_clock()
        return means

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self.write_row({"step": step, "epoch": (step - 1) // self.per_epoch, **numbers})

    def write_row(self, row: dict[str, object]) -> None:
        if not distributed.is_main():
            return
        with self.folder.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self.board.add_scalar(name, value, row["step"])
            self.board.flush()
        words = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        log.info(" ".join(words))

    def show_pictures(self, step: int) -> None:
        """Write the pictures of a step, `images/name_<step>.png`, to TensorBoard, if it is used."""
        if self.board is not None:
            for path in sorted(self.folder.images.glob(f"*_{step}.png")):
                picture = np.asarray(open_rgb(path))
                self.board.add_image(path.stem.removesuffix(f"_{step}"), picture, step, dataformats="HWC")
            self.board.flush()


def read_rows(path: Path) -> list[dict]:
    """The rows of a `metrics.jsonl`, but for lines that are damaged or cut short; none if there is no file."""
    rows = []
    for line in file_at(path).read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def write_rows(path: Path, rows: list[dict]) -> None:
    write_file(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def is_checkpoint(row: dict) -> bool:
    return "epoch" in row and "train_loss" not in row
