"""The models of the demo, ready for training: a stage or the autoencoder, with changes."""

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import CPU
from evaluation.run import TrainedRun
from models.autoencoder import Autoencoder, AutoencoderConfig
from models.codebook import Codebook
from models.stage import Stage, StageConfig
from models.tokens import load_tokens
from models.transformer import TransformerConfig
from train_autoencoder import reconstruction_loss
from utils.core.config import load_config
from utils.data.batches import EpochSampler, chunks
from utils.data.dataset import Dataset, ImageDataset, TokenDataset
from utils.runs.chain import Recipe
from utils.runs.folders import RunFolder
from utils.training.gradient import GradientLearner, GradientOptions

DEMO = Recipe.find("demo-64")
CONFIGS, STAGES = DEMO.folder, [DEMO.settings[stage] for stage in DEMO.stages]
RECIPE = {key: STAGES[-1][key] for key in ("lr_schedule", "warmup_step", "ema_decay")}  # of all stages


def demo_options(folder: Path, **changes: object) -> GradientOptions:
    """The options of the demo's transformers, with these changes."""
    unread = dict.fromkeys(("dataset_path", "config_path", "out_dir"), folder)
    return GradientOptions(**unread, **RECIPE | changes)


def num_parameters(learner: GradientLearner) -> int:
    """The parameters of the model that is trained."""
    return sum(parameter.numel() for parameter in learner.model.parameters())


def autoencoder_learner(
    folder: Path, images: ImageDataset, config: dict, training: dict, rate: float = 1.0
) -> GradientLearner:
    """The autoencoder, with changes to its config and its training, at `rate` times its learning rate."""
    training = {"batch_size": 8, "ema_decay": 0.0, "warmup_step": 100, "use_muon": True} | training
    usual = load_config(CONFIGS / "autoencoder.json", AutoencoderConfig)
    config = replace(usual, model_lr=usual.model_lr * rate, **config)
    model = Autoencoder(config).to(memory_format=torch.channels_last)
    kernels = model.kernels if training.pop("use_muon") else ()
    cells, compute = math.prod(model.fmap_shape(images.shape)[1:]), partial(reconstruction_loss, measure=model.loss)
    return GradientLearner(model, compute, config, demo_options(folder, **training), 1, CPU, kernels, cells)


def train_for(seconds: float, learner: GradientLearner, data: Dataset, indices: np.ndarray, seed: int) -> int:
    """Train for a fixed time, in which the learning rate falls to 0; return the training steps."""
    batches = iter(EpochSampler(indices, learner.options.batch_size, seed, 0, 10**9))
    start, step = time.perf_counter(), 0
    while (share := (time.perf_counter() - start) / seconds) < 1:
        learner.total_steps = max(step + 1, round(step / max(share, 1e-9)))  # the schedule follows the time
        learner.update(data[next(batches)], step)
        step += 1
    return step


@torch.no_grad()
def loss_of(learner: GradientLearner, data: Dataset, indices: np.ndarray) -> float:
    """The mean loss of items of a data set; of a stage in nats per token."""
    with learner.autocast:
        losses = [learner.compute(learner.best_model, data[part])["loss"].item() for part in chunks(indices, 64)]
    return float(np.average(losses, weights=[len(part) for part in chunks(indices, 64)]))


@dataclass(frozen=True)
class DemoStage:
    """The data of one stage, from the folder of scripts/demo.py."""

    run: RunFolder
    number: int
    coarse: Codebook
    fine: Codebook
    tokens: TokenDataset
    training: np.ndarray  # indices
    validation: np.ndarray
    test: np.ndarray

    @classmethod
    def read(cls, folder: Path, number: int) -> "DemoStage":
        """Read the codebooks and tokens of a stage."""
        run = RunFolder(folder)
        trained = TrainedRun(run, CPU)
        books = [trained.codebooks[book.name] for book in run.codebooks[number : number + 2]]
        split, tokens = trained.maps.split(trained.bounds), load_tokens(trained.maps, *books, CPU)
        return cls(run, number, *books, tokens, split.training, split.validation, split.test)

    @property
    def batch_size(self) -> int:
        return STAGES[self.number]["batch_size"]

    def build(self, **changes: object) -> Stage:
        """A new stage with the config of the demo and these changes."""
        config = replace(load_config(CONFIGS / f"transformer_{self.number}.json", TransformerConfig), **changes)
        stage = Stage(StageConfig.between(config, self.coarse, self.fine, self.run.path, self.number == 0))
        stage.init_embeddings(self.coarse, self.fine)
        return stage

    def learner(self, stage: Stage, use_muon: bool = True, rate: float = 1.0, **changes: object) -> GradientLearner:
        """The learner of a stage, with the options of the demo and these changes, at `rate` times its learning rate."""
        options = demo_options(self.run.path, **{"batch_size": self.batch_size} | changes)
        config, weights = stage.config.transformer, stage.transformer.block_weights if use_muon else ()
        config = replace(config, model_lr=config.model_lr * rate)
        tokens = stage.config.fine.length
        return GradientLearner(stage, lambda stage, batch: stage(*batch), config, options, 1000, CPU, weights, tokens)
