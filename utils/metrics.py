"""The numbers of a training: means since the last line, written to the log, to `metrics.jsonl` and to TensorBoard."""

import json
import logging
import math
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from utils.dataset import Batch, num_items, steps_per_epoch
from utils.files import UserError, replace_file
from utils.images import open_rgb
from utils.learner import Learner, TrainingOptions
from utils.run_folder import StepFolder

log = logging.getLogger(__name__)


class Metrics:
    """Gathers the numbers of steps and writes them, a line an interval.

    `num_items` counts the items that are trained on; each holds `per_item` of what is counted a second, the `unit`.
    """

    def __init__(self, options: TrainingOptions, num_items: int, unit: str = "images", per_item: int = 1) -> None:
        self.folder = StepFolder(options.out_dir)
        self.per_epoch = steps_per_epoch(num_items, options.step_size)
        self.unit, self.per_item = unit, per_item
        self.flops_per_item: float | None = None  # of a training step
        self.board, self.make_board = None, None
        if options.tensorboard:  # here, before anything is written
            try:
                self.make_board = import_module("torch.utils.tensorboard").SummaryWriter
            except ImportError:
                raise UserError("--tensorboard needs a package: pip install tensorboard, or leave it out") from None

    def begin(self, step: int) -> None:
        """Start after `step`: drop what a crashed run wrote later, or all of an earlier run; open TensorBoard."""
        path = self.folder.metrics
        lines = path.read_text().splitlines() if path.exists() and step else []
        with replace_file(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= step))
        if self.make_board is not None:
            self.board = self.make_board(str(self.folder.tensorboard), purge_step=step + 1)  # hides later entries
        self._clear()

    def count_flops(self, learner: Learner, batch: Batch) -> None:
        """Count the operations of a step on a batch, for the rate in each line."""
        if (flops := learner.flops(batch)) is not None:
            self.flops_per_item = flops / num_items(batch)
        self.restart_clock()

    def _clear(self) -> None:
        self.sums: dict[str, torch.Tensor | float] = {}
        self.steps = self.items = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out of the rate what was not training."""
        self.clock = time.perf_counter()

    def add(self, numbers: dict[str, torch.Tensor | float], batch: Batch) -> None:
        """Add the numbers of one step; tensors stay on their device, so that nothing waits for it."""
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1
        self.items += num_items(batch)

    def write_training(self, step: int, watch: Callable[[], dict[str, float]] = dict) -> None:
        """Write the means since the last call, and what `watch` measures.

        Raises `UserError` if one of the means is no longer a finite number.
        """
        if self.steps == 0:
            return
        names = {name: f"train_{name}" for name in ("loss", "bits", "accuracy")}
        means = {names.get(name, name): float(value) / self.steps for name, value in self.sums.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{name} is {value} at step {step}: lower 'model_lr' and start anew, or with --model-path from "
                    f"the last checkpoint in {self.folder.checkpoints}"
                )
        items_per_second = self.items / max(time.perf_counter() - self.clock, 1e-9)
        means[f"{self.unit}_per_second"] = self.per_item * items_per_second
        if self.flops_per_item is not None:
            means["tflops_per_second"] = self.flops_per_item * items_per_second / 1e12
        self.write(step, {**means, **watch()})
        self._clear()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Write numbers of a step, with its epoch."""
        self.write_row({"step": step, "epoch": (step - 1) // self.per_epoch, **numbers})

    def write_row(self, row: dict[str, object]) -> None:
        """Write a line as it is."""
        append_row(self.folder.metrics, row)
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


def append_row(path: Path, row: dict[str, object]) -> None:
    """Append one JSON object, a line, to a `metrics.jsonl`."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _step_of(line: str) -> float:
    """The step of a line of `metrics.jsonl`; of one that a crash cut short, one that is never reached."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return math.inf
