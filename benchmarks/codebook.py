"""This map compared with k-means of scikit-learn and with minisom: same patches, same number of units, same threads.

    python -m benchmarks.codebook out/demo-avatars/feature_maps/dataset.json

Needs requirements-dev.txt. Prints a table in Markdown: all methods at four sizes of a patch. Each cell gives seconds,
the error, and the topographic error. Errors are measured on test patches and divided by that of k-means (k-means++, one
start, run to convergence). The units of k-means are placed on a map by their first two principal components. Times are
wall-clock: for this map from feature maps in memory to the arranged map, for the others the fit alone, of minisom ten
passes. This map and MiniBatchKMeans are means over three seeds.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from minisom import MiniSom
from sklearn.cluster import KMeans, MiniBatchKMeans
from tqdm import tqdm

from benchmarks.common import machine, options, print_head, print_row, timed
from models.codebook import Codebook, CodebookConfig
from models.patches import patchify
from models.som.learner import MapLearner, draw_sample, sample_size
from models.som.order import arrange
from models.som.statistics import take_census
from utils.core.files import UserError
from utils.core.options import option, parse_options
from utils.data.batches import EpochSampler, chunks, steps_per_epoch
from utils.data.dataset import FeatureMapDataset
from utils.data.split import Bounds
from utils.runtime import cli

# Patch size (None: the whole map), units, steps, and feature maps to train on, chosen so that there are at most 275,000
# patches.
SIZES = ((None, 64, 250, None), (4, 512, 800, None), (2, 512, 256, 4096), (1, 512, 96, 1024))
BATCH = 64  # feature maps per step, as in the demo
SEEDS = (0, 1, 2)
MINISOM_PASSES = 10
METHODS = "k-means", "MiniBatchKMeans", "minisom", "this map"
Options = options(dataset=(Path, option("dataset.json of feature maps", positional=True)))


class Measured(NamedTuple):
    seconds: float
    error: float  # mean squared error on test feature maps
    topographic_error: float
    used: float  # share of units that are used on the training data

    def cell(self, error: float) -> str:
        """For a table: seconds, the error divided by another one, the topographic error."""
        return f"{self.seconds:.2f} s, {self.error / error:.3f}, {self.topographic_error:.2f}"


@dataclass
class Data:
    """Feature maps to train on and to measure on, (N, C, H, W), and how they are cut into patches."""

    config: CodebookConfig
    training: torch.Tensor
    test: torch.Tensor

    @property
    def patches(self) -> np.ndarray:
        """The patches to train on (N·T, D)."""
        return patchify(self.training, self.config.patch_H, self.config.patch_W).flatten(0, 1).numpy()

    def measure(self, *runs: tuple[Codebook, float]) -> Measured:
        """The means over runs, each a codebook and the seconds that it took."""
        numbers = []
        for codebook, seconds in runs:
            used = (take_census(codebook, self.training.split(256)).counts > 0).double().mean().item()
            statistics = take_census(codebook, self.test.split(256)).statistics(codebook)
            numbers.append((seconds, statistics["quantization_error"], statistics["topographic_error"], used))
        return Measured(*np.mean(numbers, axis=0))


def train_map(data: Data, total_steps: int, seed: int) -> Codebook:
    torch.manual_seed(seed)
    codebook, number = Codebook(data.config), len(data.training)
    wanted = sample_size(data.config, total_steps * BATCH * math.prod(data.config.grid))
    sample = draw_sample(codebook, data.training, np.arange(number), wanted, seed)
    codebook.lay_out(sample)
    learner = MapLearner(codebook, steps_per_epoch(number, BATCH), total_steps, sample=sample)
    for step, batch in enumerate(EpochSampler(np.arange(number), BATCH, seed, 0, total_steps)):
        learner.update(data.training[torch.from_numpy(batch)], step)
    pairs = take_census(codebook, data.training.split(256)).pairs
    codebook.coordinates.copy_(arrange(codebook.coordinates, pairs))
    return codebook


def kmeans(data: Data, cls: type, seed: int = 0) -> tuple[Codebook, float]:
    """The codebook that scikit-learn's `cls` finds, placed by its principal components, and the seconds of its fit."""
    model = cls(data.config.num_embeddings, n_init=1, random_state=seed)
    _, seconds = timed(model.fit, data.patches)
    if model.n_iter_ == model.max_iter:
        raise SystemExit(f"{cls.__name__} has not converged in {model.max_iter} iterations")
    torch.manual_seed(0)
    codebook = Codebook(data.config)
    codebook.lay_out(torch.from_numpy(model.cluster_centers_).float())
    return codebook, seconds


def minisom(data: Data) -> tuple[Codebook, float]:
    """Batch training as in Kohonen 2013: each pass moves units all the way, and the neighbourhood shrinks to one."""
    number, patches = data.config.num_embeddings, data.patches
    rows = max(rows for rows in range(1, math.isqrt(number) + 1) if number % rows == 0)
    shape = (rows, number // rows)
    settings = {"learning_rate": 1.0, "decay_function": lambda rate, *_: rate, "random_seed": 0}
    settings |= {"sigma": max(shape) / 2, "sigma_decay_function": "linear_decay_to_one"}
    som = MiniSom(*shape, data.config.dim, **settings)
    _, start = timed(som.pca_weights_init, patches)
    _, seconds = timed(som.train_batch_offline, patches, MINISOM_PASSES)
    codebook = Codebook(data.config)
    codebook.units.copy_(torch.from_numpy(som.get_weights().reshape(number, -1)))
    codebook.coordinates.copy_(torch.from_numpy(np.indices(shape).reshape(2, number).T))
    return codebook, start + seconds


def compare(data: Data, steps: int) -> tuple[Measured, ...]:
    """All METHODS."""
    mini = data.measure(*(kmeans(data, MiniBatchKMeans, seed) for seed in SEEDS))
    ours = data.measure(*(timed(train_map, data, steps, seed) for seed in SEEDS))
    return data.measure(kmeans(data, KMeans)), mini, data.measure(minisom(data)), ours


def read(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The feature maps to train on and those to measure on, in memory."""
    dataset = FeatureMapDataset(path)
    _, height, width = dataset.shape
    largest = math.lcm(*(patch for patch, *_ in SIZES if patch))
    if height % largest or width % largest:
        raise UserError(f"{path}: holds feature maps of {width}×{height}; give some whose sides {largest} divides")
    split = dataset.split(Bounds())
    indices = np.random.default_rng(0).permutation(split.training)
    parts = tqdm(chunks(indices, 256), desc="reading", leave=False)
    return torch.cat([dataset[part] for part in parts]), dataset[split.test]


def main(argv: list[str] | None = None) -> None:
    training, test = read(parse_options(Options, __doc__, argv).dataset)
    channels, height, width = test.shape[1:]
    print(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print_head("patch", "units", *METHODS, "units used by this map")
    for patch, number, steps, most in SIZES:
        config = CodebookConfig(1e-4, height, width, channels, patch or height, patch or width, number, 200)
        measured = compare(Data(config, training[:most], test), steps)
        cells = (each.cell(measured[0].error) for each in measured)
        print_row(f"{config.patch_W}×{config.patch_H}", number, *cells, f"{measured[-1].used:.1%}")


if __name__ == "__main__":
    cli.run(main)
