"""What makes a good autoencoder in a given time: the demo's compared with variants of it.

    python -m benchmarks.autoencoder out/demo-avatars --seconds 240
    python -m benchmarks.autoencoder out/demo-avatars --only full "AdamW alone" --seeds 1

Reads a folder that scripts/demo.sh has written. Each run trains one autoencoder on one thread for a fixed time, while
its learning rate falls to 0. Prints a table in Markdown, means over seeds: PSNR of validation images; the kernel
distance between reconstructions of training images and other training images, which is 0 for a perfect autoencoder; and
the sharpness, the mean square of the differences between neighbouring pixels as a share of that of the originals.
"""

import argparse
import math
import sys
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import stages
from benchmarks.stages import CPU, demo_options, num_parameters, train_for
from evaluation.distances import kernel_distance
from evaluation.features import EfficientNetFeatures, features_of
from models.autoencoder import Autoencoder, AutoencoderConfig, psnr
from train_autoencoder import reconstruction_loss
from utils.config import load_config
from utils.dataset import ImageDataset, chunks
from utils.device import keep_memory
from utils.gradient import GradientLearner
from utils.run_folder import RunFolder

# What a variant changes in the config, and in the options of the training.
VARIANTS: dict[str, tuple[dict, dict]] = {
    "full": ({}, {}),
    "AdamW alone": ({}, {}),
    **{f"edge weight {weight:g}": ({"edge_weight": weight}, {}) for weight in (0.0, 0.5, 1.0, 4.0)},
    "squared error": ({"loss": "mse"}, {}),
    "batch size 4": ({}, {"batch_size": 4}),
    "batch size 16": ({}, {"batch_size": 16}),
    "moving average": ({}, {"ema_decay": 0.99}),
    "32 and 64 wide": ({"min_channel": 32, "max_channel": 64}, {}),
    "48 and 96 wide": ({"min_channel": 48, "max_channel": 96}, {}),
    "1 block a resolution": ({"num_dec_res_blocks": 1}, {}),
    "3 blocks a resolution": ({"num_dec_res_blocks": 3}, {}),
    "latent noise 0.1": ({"latent_noise": 0.1}, {}),
}
COMPARED = 1000  # reconstructions, and as many other images


def autoencoder_learner(
    folder: Path,
    dataset: ImageDataset,
    use_muon: bool = True,
    batch_size: int = 8,
    ema_decay: float = 0,
    **changes: object,
) -> GradientLearner:
    """The demo's autoencoder with changes to its config, ready to train."""
    config = replace(load_config(stages.CONFIGS / "autoencoder.json", AutoencoderConfig), **changes)
    model = Autoencoder(config).to(memory_format=torch.channels_last)
    options = demo_options(folder, batch_size=batch_size, ema_decay=ema_decay, warmup_step=100)
    cells = math.prod(model.fmap_shape(dataset.shape)[1:])
    kernels = model.kernels if use_muon else ()
    return GradientLearner(
        model, partial(reconstruction_loss, measure=model.loss), config, options, 1, CPU, kernels, cells
    )


def run(job: tuple[str, int], folder: Path, seconds: float) -> tuple[str, tuple[float, ...]]:
    """Train a variant with a seed; return its name, and its training steps, parameters and qualities."""
    name, seed = job
    torch.set_num_threads(1)
    keep_memory()
    dataset = ImageDataset(RunFolder(folder).images)
    split = dataset.split(demo_options(folder).bounds)
    torch.manual_seed(seed)
    config, training = VARIANTS[name]
    learner = autoencoder_learner(folder, dataset, name != "AdamW alone", **training, **config)
    step = train_for(seconds, learner, dataset, split.training, seed)
    return name, (step, num_parameters(learner), *qualities(learner, dataset, split.training, split.validation))


@torch.no_grad()
def qualities(
    learner: GradientLearner, dataset: ImageDataset, training: np.ndarray, validation: np.ndarray
) -> tuple[float, ...]:
    """PSNR, kernel distance and sharpness."""

    def reconstructions(indices: np.ndarray) -> torch.Tensor:
        parts = []
        for part in chunks(indices, 64):
            with learner.autocast:
                parts.append(
                    learner.best_model(dataset[part].to(memory_format=torch.channels_last)).float().clamp(-1, 1)
                )
        return torch.cat(parts)

    images, made = dataset[validation], reconstructions(validation)
    sharpness = made.diff(dim=-1).square().mean() / images.diff(dim=-1).square().mean()
    number = min(COMPARED, len(training) // 2)
    first, second = training[:number], training[number : 2 * number]
    extractor = EfficientNetFeatures()
    sets = ((reconstructions(first).split(64), "made"), ((dataset[part] for part in chunks(second, 64)), "real"))
    distance = kernel_distance(*(features_of(extractor, batches, number, name) for batches, name in sets))
    return psnr(float((made - images).square().mean())), distance, float(sharpness)


def main() -> None:
    """Train the variants and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of scripts/demo.sh, such as out/demo-avatars")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="VARIANT", default=list(VARIANTS),
                        help=f"variants to train [all]: {'; '.join(VARIANTS)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=2, help="runs of each variant [2]")
    parser.add_argument("--seconds", type=float, default=120.0, help="training time of a run [120]")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one thread each [2]")
    args = parser.parse_args()
    jobs = [(name, seed) for seed in range(args.seeds) for name in args.only]
    results: dict[str, list[tuple[float, ...]]] = {name: [] for name in args.only}
    train = partial(run, folder=args.folder, seconds=args.seconds)
    with get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
        for name, numbers in tqdm(pool.imap_unordered(train, jobs), total=len(jobs), unit="run"):
            results[name].append(numbers)
            tqdm.write(f"{name}: steps, parameters, PSNR, distance, sharpness {numbers}", file=sys.stderr)
    print(
        "| | steps | parameters | PSNR (dB) | ± | kernel distance | ± | sharpness |\n|---|---|---|---|---|---|---|---|"
    )
    for name, numbers in results.items():
        steps, parameters, decibels, distance, sharpness = np.mean(numbers, axis=0)
        _, _, decibel_spread, distance_spread, _ = np.ptp(numbers, axis=0) / 2
        print(f"| {name} | {steps:.0f} | {parameters / 1e6:.2f} M | {decibels:.2f} | {decibel_spread:.2f} "
              f"| {distance:.4f} | {distance_spread:.4f} | {sharpness:.3f} |")  # fmt: skip


if __name__ == "__main__":
    main()
