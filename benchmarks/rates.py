"""At which learning rate each width learns best: whether one `model_lr` is right for all of them.

    python -m benchmarks.rates out/demo-avatars autoencoder
    python -m benchmarks.rates out/demo-avatars stage --widths 128 --batch-sizes 4 16
    python -m benchmarks.rates out/demo-avatars stage --widths 128 --depths 2 8

Reads a folder that scripts/demo.sh has written. Trains its autoencoder or its finest stage with the demo's recipe but a
fixed number of steps, at several sizes or batch sizes, each at several multiples of the demo's rate, which falls to 0.
Prints a table in Markdown: the loss on validation images, a mean over seeds; and the best rate as a multiple of the
demo's, from a parabola through the logarithms of the best three.
"""

import argparse
import math
import sys
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import stages
from benchmarks.autoencoder import autoencoder_learner
from benchmarks.stages import DemoStage
from models.autoencoder import AutoencoderConfig
from utils.config import load_config
from utils.dataset import EpochSampler, ImageDataset
from utils.device import keep_memory
from utils.run_folder import RunFolder
from utils.training import mean_over

HEAD_DIM = 64  # channels of a head
Job = tuple[int, int, int, float, int]  # width, depth, batch size, multiple of the demo's rate, seed


def stage(folder: Path, width: int, depth: int, batch_size: int, rate: float) -> tuple:
    """The demo's finest stage with `depth` layers in its decoder, one less in its encoder; its tokens; their split."""
    demo = DemoStage.read(folder, RunFolder(folder).num_stages - 1)
    heads = max(1, width // HEAD_DIM)
    size = {"in_dim": width, "hidden_dim": 2 * width, "num_enc_layers": max(1, depth - 1), "num_dec_layers": depth}
    model = demo.build(**size, self_attn_heads=heads, cross_attn_heads=heads)
    return demo.learner(model, rate=rate, batch_size=batch_size), demo.tokens, demo


def autoencoder(folder: Path, width: int, depth: int, batch_size: int, rate: float) -> tuple:
    """The same for the autoencoder, `width` wide at its narrowest resolution, with `depth` blocks a resolution."""
    dataset = ImageDataset(RunFolder(folder).images)
    peak = load_config(stages.CONFIGS / "autoencoder.json", AutoencoderConfig).model_lr * rate
    size = {"min_channel": width // 2, "max_channel": width, "num_dec_res_blocks": depth}
    learner = autoencoder_learner(folder, dataset, batch_size=batch_size, model_lr=peak, **size)
    return learner, dataset, dataset.split(learner.options.bounds)


MODELS = {"stage": stage, "autoencoder": autoencoder}
DEPTHS = {"stage": 4, "autoencoder": 2}  # of the demo


def run(job: Job, model: str, folder: Path, steps: int) -> tuple[Job, float]:
    """Train a model; return the job and its loss on validation images."""
    *size, rate, seed = job
    torch.set_num_threads(1)
    keep_memory()
    torch.manual_seed(seed)
    learner, data, split = MODELS[model](folder, *size, rate)
    learner.total_steps = steps
    batches = iter(EpochSampler(split.training, learner.options.batch_size, seed, 0, 10**9))
    for step in range(steps):
        learner.update(data[next(batches)], step)

    @torch.no_grad()
    def losses(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        with learner.autocast:
            return {"loss": learner.compute(learner.best_model, batch)["loss"]}

    return job, mean_over(data, split.validation, 64, losses)["loss"]


def best_rate(losses: dict[float, float]) -> float:
    """The multiple at which a parabola through the logarithms of the best one and its neighbours is least."""
    rates = sorted(losses)
    middle = min(rates, key=losses.get)
    index = rates.index(middle)
    if index in (0, len(rates) - 1):
        return math.nan  # at an end of the grid
    x, y = np.log2(rates[index - 1 : index + 2]), np.log([losses[rate] for rate in rates[index - 1 : index + 2]])
    square, slope, _ = np.polyfit(x, y, 2)
    return float(2 ** (-slope / (2 * square)))


def main() -> None:
    """Train at all widths and rates, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of scripts/demo.sh, such as out/demo-avatars")
    parser.add_argument("model", choices=MODELS, help="what to train")
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 128, 256], help="widths [64 128 256]")
    parser.add_argument("--depths", nargs="+", type=int, help="layers of the decoder, or blocks a resolution [4, or 2]")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[8], help="images in a training step [8]")
    rates = [0.25, 0.5, 1.0, 2.0, 4.0]
    parser.add_argument("--rates", nargs="+", type=float, default=rates, help="multiples of the rate [0.25 0.5 1 2 4]")
    parser.add_argument("--steps", type=int, default=200, help="training steps of a run [200]")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each width and rate [2]")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one thread each [2]")
    args = parser.parse_args()
    widths, depths = sorted(args.widths, reverse=True), args.depths or [DEPTHS[args.model]]
    jobs = list(product(widths, depths, args.batch_sizes, args.rates, range(args.seeds)))
    found: dict[tuple[int, ...], dict[float, dict[int, float]]] = {}  # losses of all seeds
    train = partial(run, model=args.model, folder=args.folder, steps=args.steps)
    with get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
        for job, loss in tqdm(pool.imap_unordered(train, jobs), total=len(jobs), unit="run"):
            found.setdefault(job[:3], {}).setdefault(job[3], {})[job[4]] = loss
            tqdm.write(f"width, depth, batch size, rate, seed {job}: loss {loss:.4f}", file=sys.stderr)
    rates = " | ".join(f"rate {rate:g}" for rate in args.rates)
    print(f"| width | depth | batch size | {rates} | best rate | of each seed |")
    print("|---" * (len(args.rates) + 5) + "|")
    for size, losses in sorted(found.items()):
        means = {rate: float(np.mean([*losses[rate].values()])) for rate in args.rates}
        numbers = " | ".join(f"{means[rate]:.4f}" for rate in args.rates)
        seeds = [best_rate({rate: losses[rate][seed] for rate in args.rates}) for seed in range(args.seeds)]
        best = ", ".join(f"{rate:.2f}" for rate in seeds)
        print(f"| {' | '.join(map(str, size))} | {numbers} | {best_rate(means):.2f} | {best} |")


if __name__ == "__main__":
    main()
