"""This map compared with k-means of scikit-learn and with minisom: same patches, same number of units, same threads.

    python -m benchmarks.codebook out/demo-avatars/feature_maps/dataset.json

Needs requirements-bench.txt. Prints tables in Markdown. Errors are measured on held-out patches and divided by the
error of k-means (k-means++, one start, run to convergence). The units of k-means are placed on a map by their first two
principal components; "arranged" means that the last step of this map, `arrange`, then improves their places. Times are
wall-clock: for this map from feature maps in memory to the arranged map, for the others the fit alone. Rows of this map
and of MiniBatchKMeans are means over three seeds.
"""

import argparse
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from minisom import MiniSom
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from tqdm import tqdm

from models.codebook import Codebook, CodebookConfig
from models.map_learner import MapLearner, draw_sample, sample_size
from models.map_order import arrange
from models.map_statistics import take_census
from models.patches import patchify
from utils import cli
from utils.dataset import VAL_FRACTION, EpochSampler, FeatureMapDataset, steps_per_epoch
from utils.files import UserError

# Patch size, units, steps, and feature maps to train on, chosen so that there are at most 275,000 patches.
SIZES = ((16, 64, 250, None), (4, 512, 800, None), (2, 512, 256, 4096), (1, 512, 96, 1024))
OTHERS = ((4, 512), (8, 512))  # patch size and units of the runs in batches of 8; `trade_off` takes the first
BATCH = 64  # feature maps per step, as in the demo
SEEDS = (0, 1, 2)
MINISOM_PASSES = 10
RADII = (0, 0.5, 0.7, 1, 1.5, 2)  # final radii that `trade_off` compares


@dataclass
class Row:
    """What was measured of one method."""

    name: str
    seconds: float
    error: float  # mean squared error on held-out feature maps
    topographic_error: float
    used: float  # share of units that are used on the training data


@dataclass
class Data:
    """Feature maps to train on and to measure on, (N, C, H, W), and how they are cut into patches."""

    config: CodebookConfig
    training: torch.Tensor
    held_out: torch.Tensor

    @property
    def patches(self) -> np.ndarray:
        return patchify(self.training, self.config.patch_H, self.config.patch_W).flatten(0, 1).numpy()

    def measure(self, name: str, seconds: float, codebook: Codebook) -> Row:
        used = (take_census(codebook, self.training.split(256)).counts > 0).double().mean().item()
        numbers = take_census(codebook, self.held_out.split(256)).statistics(codebook)
        return Row(name, seconds, numbers["quantization_error"], numbers["topographic_error"], used)


def timed(function: Callable[[], object]) -> tuple[object, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def train_map(data: Data, total_steps: int, batch_size: int, seed: int) -> Codebook:
    """Train as train_codebook.py does, with all feature maps in memory."""
    torch.manual_seed(seed)
    codebook, number = Codebook(data.config), len(data.training)
    wanted = sample_size(data.config, total_steps * batch_size * math.prod(data.config.grid))
    sample = draw_sample(codebook, data.training, np.arange(number), wanted, seed)
    codebook.lay_out(sample)
    learner = MapLearner(codebook, steps_per_epoch(number, batch_size), total_steps, sample=sample)
    for step, batch in enumerate(EpochSampler(np.arange(number), batch_size, seed, 0, total_steps)):
        learner.update(data.training[torch.from_numpy(batch)], step)
    pairs = take_census(codebook, data.training.split(256)).pairs
    codebook.coordinates.copy_(arrange(codebook.coordinates, pairs))
    return codebook


def map_row(name: str, data: Data, total_steps: int, batch_size: int = BATCH) -> Row:
    rows = []
    for seed in SEEDS:
        codebook, seconds = timed(lambda seed=seed: train_map(data, total_steps, batch_size, seed))
        rows.append(data.measure(name, seconds, codebook))
    return mean_row(rows)


def mean_row(rows: list[Row]) -> Row:
    means = {key: statistics.mean(getattr(row, key) for row in rows) for key in vars(rows[0]) if key != "name"}
    return Row(rows[0].name, **means)


def placed(config: CodebookConfig, units: np.ndarray) -> Codebook:
    """A codebook of the units of another method, placed on the map by their first two principal components."""
    torch.manual_seed(0)
    codebook = Codebook(config)
    codebook.lay_out(torch.from_numpy(units).float())
    return codebook


def kmeans(data: Data, cls: type, seed: int = 0) -> tuple[Codebook, float]:
    """The codebook that scikit-learn's `cls` finds, and the seconds of its fit."""
    patches = data.patches
    model = cls(data.config.num_embeddings, n_init=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        _, seconds = timed(lambda: model.fit(patches))
    if model.n_iter_ == model.max_iter:
        raise SystemExit(f"{cls.__name__} has not converged in {model.max_iter} iterations")
    return placed(data.config, model.cluster_centers_), seconds


def kmeans_rows(data: Data) -> list[Row]:
    """K-means, and k-means with its units arranged."""
    codebook, seconds = kmeans(data, KMeans)
    rows = [data.measure("k-means, converged", seconds, codebook)]
    pairs = take_census(codebook, data.training.split(256)).pairs
    places, more = timed(lambda: arrange(codebook.coordinates, pairs))
    codebook.coordinates.copy_(places)
    return [*rows, data.measure("k-means, arranged", seconds + more, codebook)]


def minisom_row(data: Data) -> Row:
    """Batch training as in Kohonen 2013: each pass moves units all the way, and the neighbourhood shrinks to one."""
    number = data.config.num_embeddings
    rows = max(rows for rows in range(1, math.isqrt(number) + 1) if number % rows == 0)
    patches = data.patches
    shape = (rows, number // rows)
    settings = {"learning_rate": 1.0, "decay_function": lambda rate, *_: rate}
    settings |= {"sigma": max(shape) / 2, "sigma_decay_function": "linear_decay_to_one"}
    som = MiniSom(*shape, data.config.dim, **settings, random_seed=0)

    def fit() -> None:
        som.pca_weights_init(patches)
        som.train_batch_offline(patches, MINISOM_PASSES)

    _, seconds = timed(fit)
    codebook = Codebook(data.config)
    codebook.units.copy_(torch.from_numpy(som.get_weights().reshape(number, -1)))
    codebook.coordinates.copy_(torch.from_numpy(np.indices(shape).reshape(2, number).T))
    return data.measure(f"minisom, {MINISOM_PASSES} passes", seconds, codebook)


def compare(data: Data, steps: int, with_minisom: bool) -> list[Row]:
    converged, arranged = kmeans_rows(data)
    found = [kmeans(data, MiniBatchKMeans, seed) for seed in SEEDS]
    mini = mean_row([data.measure("MiniBatchKMeans", seconds, codebook) for codebook, seconds in found])
    ours = map_row(f"this map, {steps} steps", data, steps)
    rows = [converged, arranged, mini, ours]
    # As many steps as fit into the time of MiniBatchKMeans: time grows linearly with steps, so two runs predict it.
    least = max(2, steps // 20)
    short = timed(lambda: train_map(data, least, BATCH, 0))[1]
    per_step = max(1e-6, (ours.seconds - short) / (steps - least))
    fitting = int(np.clip(least + (mini.seconds - short) / per_step, 2, steps))
    rows.append(map_row(f"this map, {fitting} steps", data, fitting))
    if with_minisom:
        rows.append(minisom_row(data))
    return rows


def print_table(rows: list[Row], reference: Row) -> None:
    print("| | seconds | error | topographic error | units used |\n|---|---|---|---|---|")
    for row in rows:
        error, used = row.error / reference.error, f"{row.used:.1%}"
        print(f"| {row.name} | {row.seconds:.2f} | {error:.3f} | {row.topographic_error:.2f} | {used} |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="+", metavar="DATASET", help="dataset.json of feature maps")
    parser.add_argument("--patch", type=int, action="append", help="measure this patch size only")
    parser.add_argument("--without-minisom", action="store_true", help="leave out minisom, which takes longest")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    for path in args.datasets:
        benchmark(path, args.patch, not args.without_minisom)


def benchmark(path: Path, patches: list[int] | None, with_minisom: bool) -> None:
    dataset = FeatureMapDataset(path)
    indices, held_out = dataset.split(VAL_FRACTION)
    indices = np.random.default_rng(0).permutation(indices)
    maps, held_out = dataset[tqdm(indices, desc="reading", leave=False)], dataset[held_out]
    channels, height, width = dataset.shape
    if any(side % patch for patch, *_ in SIZES for side in (height, width)):
        raise UserError(f"{path}: holds feature maps of {height}×{width}; give those of the demo, 16×16")

    def cut(patch: int, number: int, most: int | None = None) -> Data:
        config = CodebookConfig(1e-4, height, width, channels, patch, patch, number, 200)
        return Data(config, maps[:most], held_out)

    for patch, number, steps, most in SIZES:
        if patches and patch not in patches:
            continue
        data = cut(patch, number, most)
        print(f"{path}: patch {patch}, {number} units, {len(data.patches):,} patches of {data.config.dim} numbers\n")
        rows = compare(data, steps, with_minisom)
        print_table(rows, rows[0])
    if patches:
        return
    patch, number = OTHERS[0]
    trade_off(cut(patch, number))
    for patch, number in OTHERS:
        untuned(cut(patch, number))


def trade_off(data: Data) -> None:
    """Print order and precision by the final radius."""
    print(f"patch {data.config.patch_H}, by final radius; errors divided by that at radius 0\n")
    steps = 3 * steps_per_epoch(len(data.training), BATCH)
    rows = [map_row(f"{radius:g}", replace(data, config=replace(data.config, final_radius=radius)), steps)
            for radius in RADII]  # fmt: skip
    print_table(rows, rows[0])


def untuned(data: Data) -> None:
    """Print one epoch in batches of 8, as the example of the README trains."""
    print(f"patch {data.config.patch_H}, one epoch in batches of 8 feature maps\n")
    converged, _ = kmeans_rows(data)
    ours = map_row("this map", data, steps_per_epoch(len(data.training), 8), 8)
    print_table([converged, ours], converged)


if __name__ == "__main__":
    cli.run(main)
