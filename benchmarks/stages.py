"""A stage of the demo, ready for training: what the benchmarks of transformers share."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from evaluation.run import TrainedRun
from models.cascade import Stage, StageConfig
from models.codebook import Codebook
from models.tokens import load_tokens
from models.transformer import TransformerConfig
from utils.chain import Recipe
from utils.config import load_config
from utils.dataset import Dataset, EpochSampler, TokenDataset
from utils.gradient import GradientLearner, GradientOptions
from utils.run_folder import RunFolder

CPU = torch.device("cpu")
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


def train_for(seconds: float, learner: GradientLearner, data: Dataset, indices: np.ndarray, seed: int) -> int:
    """Train for a fixed time, in which the learning rate falls to 0; return the training steps."""
    batches = iter(EpochSampler(indices, learner.options.batch_size, seed, 0, 10**9))
    start, step = time.perf_counter(), 0
    while (share := (time.perf_counter() - start) / seconds) < 1:
        learner.total_steps = max(step + 1, round(step / max(share, 1e-9)))  # the schedule follows the time
        learner.update(data[next(batches)], step)
        step += 1
    return step


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
