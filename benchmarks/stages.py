"""The trainings of the demo, with changes, on the data of its folder: a stage or the autoencoder."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from benchmarks.common import CPU
from scripts.recipe import options_of
from train_autoencoder import AutoencoderTask
from train_quantized_transformer import StageTask
from utils.runs.chain import Recipe, steps_of
from utils.runs.folders import RunFolder
from utils.training.gradient import GradientTask

RECIPE = Recipe.find("demo-64")


def demo_task(
    folder: Path, name: str, config: dict | None = None, rate: float = 1.0, **options: object
) -> tuple[GradientTask, Dataset]:
    """The task of a step of the demo, ready to train on the CPU, and what it learns from.

    `config` and `options` replace those of the recipe; the learning rate is `rate` times the recipe's.
    """
    run = RunFolder(folder)
    step = next(step for step in steps_of(run, RECIPE, run.images) if step.name == name)
    given = replace(options_of(RECIPE, step), resume=False, **options)
    task = (AutoencoderTask if step.script == "train_autoencoder" else StageTask)(given, CPU)
    usual = getattr(task.config, "transformer", task.config)
    changed = replace(usual, model_lr=usual.model_lr * rate, **config or {})
    task.config = changed if usual is task.config else replace(task.config, transformer=changed)
    torch.manual_seed(given.seed)
    task.build({})
    return task, task.prepare()


def num_parameters(model: nn.Module) -> int:
    """The parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())
