"""The one training loop: a run, what it writes, and how it stops and goes on."""

import argparse
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from utils.board import Board
from utils.checkpoint import check_origins, link_checkpoint, load_checkpoint, save_checkpoint
from utils.cli import choose_workers, log
from utils.dataset import Batch, BatchLoader, EpochSampler, chunks, num_items, steps_per_epoch, to_device
from utils.files import UserError, replace_file

MAX_VALIDATION = 1024  # items that a validation loss is measured on, so that it stays a small share of training


def step_size(args: argparse.Namespace) -> int:
    """Items that a step learns from."""
    return args.batch_size * getattr(args, "grad_accum_step", 1)


def planned_steps(num_items: int, args: argparse.Namespace) -> int:
    """Steps until the last epoch or `--max-step`, whichever comes first."""
    steps = args.max_epoch * steps_per_epoch(num_items, step_size(args))
    return steps if args.max_step is None else min(steps, args.max_step)


class Learner(Protocol):
    """What the loop trains."""

    def update(self, batch: Batch, step: int) -> dict[str, torch.Tensor | float]:
        """Learn from one batch; return numbers to log, `loss` among them, tensors or plain."""

    def checkpoint(self) -> dict:
        """What to save: `model`, a state dict, and whatever else an exact resume needs."""

    def restore(self, content: dict, path: Path) -> None:
        """Take up what `checkpoint` gave."""


@dataclass
class Run:
    """One training run: what it writes, where, and what must be the same when it is resumed."""

    args: argparse.Namespace
    kind: str
    config: object  # the dataclass that travels with the weights
    trained_from: dict[str, str | None]  # fingerprints
    num_items: int  # that it trains on
    rate: tuple[str, int] = ("images", 1)  # what is counted a second, and how many of it an item is
    bare_seconds: float | None = None  # of the matrix products for an item, to tell how much of the time they are
    best: float = math.inf  # validation loss of best.pt
    is_measured: bool = True  # whether what was resumed holds what was measured: a crash may have come before
    board: Board | None = None  # with --tensorboard

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return planned_steps(self.num_items, self.args)

    @property
    def folder(self) -> Path:
        """Where the checkpoints go."""
        return self.args.out_dir / "models_checkpoint"

    def image_path(self, name: str, step: int) -> Path:
        """Where the picture `name` of a step goes."""
        return self.args.out_dir / "images" / f"{name}_{step}.png"

    def open_board(self, start: int) -> None:
        """Write to TensorBoard too, if `--tensorboard` was given, from the step `start` on."""
        if self.args.tensorboard:
            self.board = Board(self.args.out_dir / "tensorboard", start)

    def show(self, step: int) -> None:
        """Put the pictures of a step on the board, if there is one."""
        if self.board is not None:
            self.board.show(self.args.out_dir / "images", step)

    def settings(self) -> dict:
        """What an exact resume needs to be as it was: the arguments that decide what a step does, and the config."""
        names = ("seed", "batch_size", "grad_accum_step", "val_fraction", "precision", "grad_clip", "ema_decay")
        names += ("lr_schedule", "lr_step", "warmup_step")
        arguments = {f"--{name.replace('_', '-')}": getattr(self.args, name) for name in names if name in self.args}
        return {**arguments, "training items": self.num_items, **_flat(dataclasses.asdict(self.config))}

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line."""
        return self.args.out_dir / "metrics.jsonl"

    def write_metrics(self, row: dict[str, object]) -> None:
        """Append one line to `metrics.jsonl` and one to the log."""
        append_metrics(self.metrics_path, row)
        if self.board is not None:
            self.board.write(row)
        log.info(
            " ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )

    def save(self, learner: Learner, step: int, validation: dict[str, float] | None = None, **rest: object) -> Path:
        """Write the checkpoint of a step with what was measured and whatever else `rest` holds.

        `latest.pt` becomes this one, and so does `best.pt` unless an earlier one was measured and no worse. A codebook
        has no best: the last one is balanced and put in order.
        """
        name = "codebook" if self.kind == "codebook" else "model"
        path = self.folder / f"{name}_{step}.pt"
        rest |= {"step": step, "total_steps": self.total_steps, "validation": validation}
        rest |= {"settings": self.settings(), "trained_from": self.trained_from}
        save_checkpoint(path, self.kind, self.config, **learner.checkpoint(), **rest)
        link_checkpoint(path, "latest.pt")
        loss = validation_loss(validation)
        if self.kind != "codebook" and loss <= self.best:
            link_checkpoint(path, "best.pt")
            self.best = loss
        if self.args.keep_checkpoint is not None:
            others = set(self.folder.glob(f"{name}_*.pt")) - {path}
            newest_first = sorted(others, key=lambda other: other.stat().st_mtime_ns, reverse=True)
            for old in newest_first[self.args.keep_checkpoint - 1 :]:
                old.unlink()
        return path

    def resume(self, learner: Learner) -> int:
        """Restore `latest.pt` if `--resume` was given and there is one; return the step to go on from."""
        path = self.folder / "latest.pt"
        if not self.args.resume or not path.exists():
            return 0
        content = load_checkpoint(path, self.kind)
        asked = self.settings()
        for key, value in content["settings"].items():
            if asked.get(key) != value:
                raise UserError(
                    f"{path}: cannot resume, {key!r} was {value}, now {asked.get(key)}; keep it or start anew"
                )
        check_origins(path, content["trained_from"], self.trained_from)
        if content["total_steps"] != self.total_steps:
            before, now = content["total_steps"], self.total_steps
            log.warning("planned were %d steps, now %d: a cosine and a map's radius follow the new plan", before, now)
        learner.restore(content, path)
        if (best := self.folder / "best.pt").exists():
            self.best = validation_loss(load_checkpoint(best, self.kind, memory_map=True).get("validation"))
        self.is_measured = self.kind == "codebook" or content.get("validation") is not None
        return content["step"]


def validation_loss(validation: dict[str, float] | None) -> float:
    """The loss among what was measured, infinite if there is none or it is no number."""
    loss = (validation or {}).get("val_loss", math.inf)
    return loss if math.isfinite(loss) else math.inf


def append_metrics(path: Path, row: dict[str, object]) -> None:
    """Append one JSON object, a line, to a `metrics.jsonl`."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _flat(config: dict) -> dict:
    """A config whose nested configs stand among its own keys."""
    flat: dict = {}
    for key, value in config.items():
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def train(
    run: Run,
    learner: Learner,
    dataset: Dataset,
    indices: np.ndarray,
    device: torch.device,
    validate: Callable[[], dict[str, float]],
    preview: Callable[[int], None],
    watch: Callable[[], dict[str, float]] = dict,
) -> int:
    """Train until the planned step, saving, measuring and drawing at every `--checkpoint-step` and at the end.

    `watch()` measures what stands in each log line beside the training numbers, so it should be quick.

    Returns the step that was reached. Ctrl-C and SIGTERM finish the step, save, measure and exit with status 130 or
    143; `--resume` then goes on from there.
    """
    args = run.args
    log.info("config %s", json.dumps(dataclasses.asdict(run.config)))
    total, start = run.total_steps, run.resume(learner)
    run.open_board(start)
    if start >= total and run.is_measured:
        log.info("already at step %d of %d: nothing to do", start, total)
        return start
    metrics = Metrics(run, start)

    def measure(step: int) -> Path:
        validation = validate()
        path = run.save(learner, step, validation)
        metrics.write(step, validation)
        return path

    if start >= total:
        measure(start)
        return start
    sampler = EpochSampler(indices, step_size(args), args.seed, start, total)
    loader = BatchLoader(dataset, sampler, choose_workers(args.num_workers, device), device.type == "cuda")
    bar = tqdm(loader, initial=start, total=total, unit="step", desc=args.out_dir.name, mininterval=0.5)
    with catch_stop() as stop, logging_redirect_tqdm(), bar:
        for step, batch in enumerate(bar, start):
            torch.manual_seed(int(np.random.SeedSequence([args.seed & 0xFFFFFFFF, step]).generate_state(1)[0]))
            metrics.add(learner.update(to_device(batch, device), step), batch)
            done = step + 1
            is_checkpoint = done % args.checkpoint_step == 0 or done == total
            is_saved = is_checkpoint or bool(stop)
            if is_saved:
                metrics.write_training(done)
                run.save(learner, done)  # before anything that may fail or take long
                path = measure(done)
                if is_checkpoint:
                    preview(done)
                    run.show(done)
                metrics.restart_clock()
            elif done % args.log_step == 0:
                metrics.write_training(done, watch)
            if is_saved and stop:
                log.info("stopped by %s: saved %s, go on with --resume", stop[0].name, path)
                sys.exit(128 + stop[0])
    return total


class Metrics:
    """Training numbers, averaged since the last line, to the log and to `metrics.jsonl`."""

    def __init__(self, run: Run, start: int) -> None:
        self.run = run
        self.per_epoch = steps_per_epoch(run.num_items, step_size(run.args))
        self.unit, self.scale = run.rate
        self._forget_after(start)
        self._clear()

    def _forget_after(self, start: int) -> None:
        """Drop what a crashed run wrote after its last checkpoint, or a whole earlier run."""
        path = self.run.metrics_path
        lines = path.read_text().splitlines() if path.exists() and start else []
        with replace_file(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= start))

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
                    f"the last checkpoint in {self.run.folder}"
                )
        seconds = max(time.perf_counter() - self.clock, 1e-9)
        means[f"{self.unit}_per_second"] = self.items * self.scale / seconds
        if self.run.bare_seconds is not None:
            means["flop_utilization"] = self.items * self.run.bare_seconds / seconds
        self.write(step, {**means, **watch()})
        self._clear()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Write numbers of a step."""
        self.run.write_metrics({"step": step, "epoch": (step - 1) // self.per_epoch, **numbers})


def _step_of(line: str) -> float:
    """The step of a line of `metrics.jsonl`; of one that a crash cut short, one that is never reached."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return math.inf


@torch.no_grad()
def mean_over(dataset: Dataset, indices: np.ndarray, args: argparse.Namespace, function: Callable) -> dict[str, float]:
    """The means of `function(batch)`, a dictionary of scalars, over the first `MAX_VALIDATION` of `indices`."""
    sums: dict[str, float] = {}
    indices = indices[:MAX_VALIDATION]
    for batch in chunks(indices, args.batch_size):
        for name, value in function(dataset[batch]).items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(batch)
    return {name: value / len(indices) for name, value in sums.items()}


def preview_indices(train: np.ndarray, held_out: np.ndarray, number: int) -> np.ndarray:
    """What previews show: the first held-out items, or training items where nothing was held out."""
    if len(held_out) == 0:
        log.warning("no image is held out: previews show training images; raise --val-fraction or add images")
    return (held_out if len(held_out) else train)[:number]


@contextmanager
def catch_stop() -> Iterator[list[signal.Signals]]:
    """Yield a list that receives SIGINT or SIGTERM instead of the process; a second one acts as usual."""
    received: list[signal.Signals] = []
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.getsignal(name) for name in names}

    def receive(number: int, _: object) -> None:
        received.append(signal.Signals(number))
        signal.signal(number, before[signal.Signals(number)])

    try:
        for name in names:
            signal.signal(name, receive)
        yield received
    finally:
        for name in names:
            signal.signal(name, before[name])
