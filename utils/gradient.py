"""Learning from a gradient: the optimizers, their schedule (a function of the step), precision, averaged weights."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from utils.checkpoint import check_origins, load_checkpoint, load_weights
from utils.dataset import Batch, num_items, split_batch
from utils.files import UserError
from utils.muon import Muon
from utils.precision import autocast, choose_dtype
from utils.utilization import bare_seconds


def learning_rate(step: int, total_steps: int, base: float, args: argparse.Namespace) -> float:
    """The rate of a step: linear warm-up, then halved every `lr_step` steps, or a cosine down to 0 at the last step."""
    warm = min(1.0, (step + 1) / (args.warmup_step + 1))
    if args.lr_schedule == "cosine":
        return base * warm * 0.5 * (1 + math.cos(math.pi * step / total_steps))
    return base * warm * 0.5 ** (step // args.lr_step)


class OptimizationConfig(Protocol):
    """The keys of a model's config that the optimizers read."""

    model_lr: float
    weight_decay: float


class GradientLearner:
    """AdamW on a loss, with clipping, accumulation, a schedule and a moving average of the weights.

    Muon moves the weights `by_muon` instead of AdamW. `measure(model, batch)` returns scalars, `loss` among them,
    that are means over the items of the batch. Weight decay acts on matrices only. Random choices inside the model are
    drawn from the default generator, which the loop seeds at each step.
    """

    def __init__(
        self,
        model: nn.Module,
        measure: Callable[[nn.Module, Batch], dict[str, torch.Tensor]],
        config: OptimizationConfig,
        args: argparse.Namespace,
        total_steps: int,
        device: torch.device,
        by_muon: Sequence[nn.Parameter] = (),
    ) -> None:
        self.model, self.measure, self.args, self.total_steps = model, measure, args, total_steps
        self.base_lr = config.model_lr
        taken = set(by_muon)
        others = [parameter for parameter in model.parameters() if parameter not in taken]
        groups = [
            {"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ]
        fused = device.type in ("cpu", "cuda")
        adamw = torch.optim.AdamW(groups, lr=self.base_lr, betas=(0.9, 0.99), fused=fused)
        self.optimizers: dict[str, torch.optim.Optimizer] = {"optimizer": adamw}  # by their keys in a checkpoint
        if by_muon:
            dtype = choose_dtype(device, args.precision)
            self.optimizers["muon"] = Muon(by_muon, self.base_lr, config.weight_decay, dtype)
        self.compiled = torch.compile(model) if args.compile else model
        self.autocast = autocast(device, args.precision)
        self.average = AveragedModel(model, multi_avg_fn=self._average) if args.ema_decay > 0 else None

    @property
    def best_model(self) -> nn.Module:
        """The model to look at and to measure: the averaged one if there is one, ready for evaluation."""
        return (self.model if self.average is None else self.average.module).eval()

    def update(self, batch: Batch, step: int) -> dict[str, torch.Tensor | float]:
        """One step down the gradient."""
        rate = learning_rate(step, self.total_steps, self.base_lr, self.args)
        for group in self._groups():
            group["lr"] = rate
        self.model.train()
        self.model.zero_grad()
        numbers = self.backward(self.compiled, batch)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.args.grad_clip)
        for optimizer in self.optimizers.values():
            optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return {**numbers, "gradient_norm": norm.detach(), "learning_rate": rate}

    def backward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Add up the gradients of a batch, `--batch-size` items at a time; return what was measured, detached."""
        numbers: dict[str, torch.Tensor] = {}
        for part in split_batch(batch, self.args.batch_size):
            share = num_items(part) / num_items(batch)
            with self.autocast:
                found = self.measure(model, part)
            (found["loss"] * share).backward()
            for name, value in found.items():
                numbers[name] = numbers.get(name, 0) + value.detach() * share
        return numbers

    @torch.no_grad()
    def _average(self, averaged: list[torch.Tensor], current: list[torch.Tensor], number: torch.Tensor) -> None:
        # Early on a long memory would hold on to the random start.
        decay = min(self.args.ema_decay, (1 + int(number)) / (10 + int(number)))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def bare_seconds(self, batch: Batch) -> float:
        """Seconds that the matrix products of a step with this batch take by themselves, in this precision."""
        self.model.train()
        return bare_seconds(lambda: self.backward(self.model, batch))

    def checkpoint(self) -> dict:
        """Weights, averaged weights and optimizer state."""
        content = {"model": self.model.state_dict()}
        content |= {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        if self.average is not None:
            content["ema"] = self.average.module.state_dict()
        return content

    def restore(self, content: dict, path: Path) -> None:
        """Take up weights, averaged weights and optimizer state."""
        load_weights(self.model, content, path, averaged=False)
        self._restore_optimizers(content, path)
        if self.average is not None:
            load_weights(self.average.module, content, path)
            self.average.n_averaged.fill_(content["step"])

    def start_from(self, path: Path, kind: str, trained_from: dict[str, str | None]) -> None:
        """Begin at the weights of a checkpoint, with `--load-optim` also at its optimizer state."""
        content = load_checkpoint(path, kind)
        check_origins(path, content["trained_from"], trained_from)
        load_weights(self.model, content, path, averaged=not self.args.load_optim)
        if self.args.load_optim:
            decays = [group["weight_decay"] for group in self._groups()]
            self._restore_optimizers(content, path)
            for group, decay in zip(self._groups(), decays, strict=True):
                group["weight_decay"] = decay  # this config's, not that of the checkpoint
        if self.average is not None:
            self.average.module.load_state_dict(self.model.state_dict())

    def _groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]

    def _restore_optimizers(self, content: dict, path: Path) -> None:
        if not content.keys() >= self.optimizers.keys():
            raise UserError(
                f"{path}: was written before Muon was used; go on from its weights alone: --model-path with another "
                "--out-dir, and without --load-optim"
            )
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(content[name])
