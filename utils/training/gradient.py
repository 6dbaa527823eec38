"""Learning from a gradient: its options, the optimizers, their schedule, precision, averaged weights."""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.core.options import SpeedOptions, option
from utils.data.batches import Batch, num_items, split_batch
from utils.runs.checkpoint import load_weights
from utils.runtime import distributed
from utils.runtime.device import autocast, choose_dtype
from utils.runtime.distributed import Share
from utils.runtime.draws import drawing
from utils.training.optimizers import TOKENS, build_optimizers
from utils.training.task import Task, TrainingOptions


@dataclass(frozen=True, kw_only=True)
class GradientOptions(TrainingOptions, SpeedOptions):
    model_path: Path | None = option("start from the weights of this checkpoint", None)
    warmup_step: int = option("training steps of linear warm-up", 100, low=0, is_fixed=True)
    lr_step: int = option("training steps after which the learning rate halves", 50_000, low=1, is_fixed=True)
    lr_schedule: str = option(
        "halve at every --lr-step, or fall to 0 at the last step", "step", choices=("step", "cosine"), is_fixed=True
    )
    schedule_step: int | None = option(
        "training step at which the cosine reaches 0, for a training that stops earlier",
        None,
        unset="--max-step",
        low=1,
    )
    grad_accum_step: int = option("batches whose gradients are added up for one training step", 1, low=1)
    grad_clip: float = option("largest norm of the gradient", 1.0, above=0, is_fixed=True)
    ema_decay: float = option(
        "decay of the averaged weights, which later steps use; 0: no average", 0.999, low=0, below=1, is_fixed=True
    )

    @property
    def batches_per_step(self) -> int:
        return self.grad_accum_step


def learning_rate(step: int, total_steps: int, base: float, options: GradientOptions) -> float:
    """The rate of a step: linear warm-up, then halved every `lr_step` steps, or a cosine down to 0."""
    warm = min(1.0, (step + 1) / (options.warmup_step + 1))
    if options.lr_schedule == "cosine":
        return base * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / (options.schedule_step or total_steps))))
    return base * warm * 0.5 ** (step // options.lr_step)


class GradientTask(Task):
    def loss(self, model: Callable, batch: Batch) -> dict[str, torch.Tensor]:
        """The losses of the model on a batch: scalars, each a mean over its items. Training minimises `loss`."""
        raise NotImplementedError


class GradientLearner:
    """Muon and AdamW on a loss, with clipping, accumulation, a schedule and a moving average of the weights.

    `config` is that of the model: its `model_lr` is for steps of `TOKENS` tokens, of which an item has `per_item`, and
    grows with the root of their number. Muon moves the weights `by_muon`, AdamW all others. `compute(model, batch)` is
    the `loss` of the task. Random choices in the model come from the default generator.
    """

    def __init__(
        self,
        model: nn.Module,
        compute: Callable[[Callable, Batch], dict[str, torch.Tensor]],
        config: Any,
        options: GradientOptions,
        total_steps: int,
        device: torch.device,
        by_muon: Sequence[nn.Parameter] = (),
        per_item: int = 1,
    ) -> None:
        self.model, self.compute, self.options, self.total_steps = model, compute, options, total_steps
        self.device = device
        self.peak = config.model_lr * (options.step_size * per_item / TOKENS) ** 0.5
        dtype = choose_dtype(device, options.precision)
        self.optimizers = build_optimizers(model, by_muon, self.peak, config.weight_decay, dtype)
        self.autocast = autocast(device, options.precision)
        self.average = copy.deepcopy(model).requires_grad_(False) if options.ema_decay > 0 else None

    @property
    def best_model(self) -> nn.Module:
        """The model to look at and to measure: the averaged one if there is one, ready for evaluation."""
        return (self.model if self.average is None else self.average).eval()

    @cached_property
    def trained(self) -> nn.Module:
        """What a step calls: the model, which shares its gradients with the other processes, compiled if asked."""
        model = distributed.parallel(self.model)
        return torch.compile(model) if self.options.compile else model

    def update(self, batch: Batch, step: int, share: Share | None = None) -> dict[str, torch.Tensor | float]:
        """One step down the gradient of all that the step learns from, of which the batch is this process's `share`."""
        rate = learning_rate(step, self.total_steps, self.peak, self.options)
        self.model.train()
        self.model.zero_grad()
        numbers = self.backward(self.trained, batch, step, share)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.options.grad_clip)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.step()
        if self.average is not None:
            self._update_average(step)
        return {**numbers, "gradient_norm": norm.detach(), "learning_rate": rate}

    def backward(
        self, model: nn.Module, batch: Batch, step: int = 0, share: Share | None = None
    ) -> dict[str, torch.Tensor]:
        """Add up the gradients of a batch, `--batch-size` items at a time; return the losses, detached.

        Several processes add up theirs with the last part.
        """
        share, size = share or Share(0, num_items(batch), num_items(batch)), self.options.batch_size
        parts, numbers = split_batch(batch, size), {}
        for number, part in enumerate(parts):
            mine = Share(share.first + number * size, min(size, share.number - number * size), share.total)
            weight = mine.number / mine.total
            is_shared = number == len(parts) - 1 or distributed.num_processes() == 1
            alone = nullcontext() if is_shared else model.no_sync()
            with drawing(self.options.seed, step, mine, self.device), alone:
                with self.autocast:
                    losses = self.compute(model, part)
                # The gradients of the processes are averaged.
                (losses["loss"] * (weight * distributed.num_processes())).backward()
            for name, value in losses.items():
                numbers[name] = numbers.get(name, 0) + value.detach() * weight
        distributed.all_reduce(*numbers.values())
        return numbers

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        """Move the averaged weights towards the current ones; torch's `AveragedModel` would wait for the device."""
        # Early on a long memory would hold on to the random start.
        decay = min(self.options.ema_decay, (1 + step) / (10 + step))
        weight = 1 - decay if step else 1.0
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), weight)
        for averaged, current in zip(self.average.buffers(), self.model.buffers(), strict=True):
            averaged.copy_(current)

    def checkpoint(self) -> dict:
        states = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        averaged = {} if self.average is None else {"ema": self.average.state_dict()}
        return {"model": self.model.state_dict()} | states | averaged

    def restore(self, content: dict, path: Path) -> None:
        load_weights(self.model, content, path, averaged=False)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(content[name])
            if len({tuple(sorted(state)) for state in optimizer.state.values()}) > 1:
                raise ValueError(f"a part of the state of {name!r} is missing")
        if self.average is not None:
            load_weights(self.average, content, path)

    def begin_from(self, content: dict, path: Path) -> None:
        """Start from the weights of a checkpoint, the averaged ones if there are any.

        Buffers, such as the counts of label sets, stay those of this data set.
        """
        saved = self.model.state_dict()
        buffers = {name: value for name, value in self.model.named_buffers() if name in saved}
        content = content | {key: content[key] | buffers for key in ("model", "ema") if content.get(key)}
        load_weights(self.model, content, path)
        if self.average is not None:
            self.average.load_state_dict(self.model.state_dict())
