"""Which settings of sampling generate the best images: their distance to held-out images, and the share of near copies.

    python -m benchmarks.sampling out/demo-avatars
    python -m benchmarks.sampling out/guided --guided    # a run with condition_dropout in its first two stages

Reads a folder that scripts/train_cascade.sh has written. Each setting generates as many images as are held out, from
the same seed. Prints a table in Markdown: the kernel distance (Bińkowski et al. 2018; cubic kernel) of the 1,280
features of EfficientNet-Lite0, and its standard error from random halves of the images; the share of images that are
nearer to a training image than the 1st percentile of the held-out images; and the time.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.stages import CPU
from evaluation.distances import deviation, kernel_distance
from evaluation.features import EfficientNetFeatures, features_of
from evaluation.novelty import Nearest
from models.autoencoder import Autoencoder
from models.generation import Cascade, Request, load_generation_config
from utils.dataset import VAL_FRACTION, ImageDataset, chunks
from utils.device import choose_dtype, keep_memory
from utils.run_folder import RunFolder

BATCH = 64
SUBSETS = 50
# A setting applies to all stages, or is a tuple with one for each stage; the config decides the rest.
SETTINGS = {
    "as the config says": {},
    **{f"temperature {value}": {"temperature": value} for value in (1.0, 0.8, 0.7, 0.5, 0.4, 0.3)},
    **{
        f"temperatures {', '.join(map(str, values))}": tuple({"temperature": value} for value in values)
        for values in ((1.0, 0.8, 0.6), (1.0, 0.6, 0.3), (0.9, 0.6, 0.3), (0.8, 0.5, 0.5), (0.6, 0.8, 1.0))
    },
    **{f"top-p {value}": {"temperature": 1.0, "top_p": value} for value in (0.9, 0.8, 0.6, 0.5)},
    "temperature 0.8, top-p 0.8": {"temperature": 0.8, "top_p": 0.8},
    "2 beams, compared at each 4 tokens": {"temperature": 1.0, "num_beam": 2, "beam_width": 4},
    "4 beams, compared at each 4 tokens": {"temperature": 1.0, "num_beam": 4, "beam_width": 4},
    "4 beams, compared at each 16 tokens": {"temperature": 1.0, "num_beam": 4, "beam_width": 16},
    "temperature 0.8, 4 beams, at each 4": {"temperature": 0.8, "num_beam": 4, "beam_width": 4},
    "16 beams, compared at each 4 tokens": {"temperature": 1.0, "num_beam": 16, "beam_width": 4},
    "classic search, 4 beams": {"num_beam": 4, "beam_width": 1, "keep_beam": 4},
}
# The finest stage is not guided: its coarse tokens determine nearly everything, and it would cost most.
GUIDED = {
    "guidance 1": {},
    "guidance 1.5 and 1": ({"guidance_scale": 1.5}, {}, {}),
    "guidance 1.5": ({"guidance_scale": 1.5}, {"guidance_scale": 1.5}, {}),
    "guidance 2": ({"guidance_scale": 2.0}, {"guidance_scale": 2.0}, {}),
    "guidance 3": ({"guidance_scale": 3.0}, {"guidance_scale": 3.0}, {}),
    "temperature 1, guidance 1": ({"temperature": 1.0}, {"temperature": 1.0}, {}),
    "temperature 1, guidance 1.5": (*[{"temperature": 1.0, "guidance_scale": 1.5}] * 2, {}),
    "temperature 1, guidance 2": (*[{"temperature": 1.0, "guidance_scale": 2.0}] * 2, {}),
}


class Judge:
    """Measures the distances of images to the held-out images and the training images of a data set."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.extractor = EfficientNetFeatures()
        training, held_out = dataset.split(VAL_FRACTION)
        self.held_out = self.read(dataset, held_out)
        self.training = self.read(dataset, training)
        self.near = Nearest.among(self.training, self.held_out).threshold

    def read(self, dataset: ImageDataset, indices: np.ndarray) -> torch.Tensor:
        """The features of these images of a data set."""
        return features_of(self.extractor, (dataset[part] for part in chunks(indices, BATCH)), len(indices), "images")

    def distance(self, features: torch.Tensor, others: torch.Tensor) -> tuple[float, float]:
        """The kernel distance between two sets of images, and its standard error."""
        return kernel_distance(features, others), deviation(kernel_distance, features, others, 0, SUBSETS)

    def row(self, name: str, features: torch.Tensor, seconds: float | None = None) -> str:
        """A row of the table."""
        value, error = self.distance(features, self.held_out)
        nearest = Nearest.among(self.training, features)
        near = nearest.share_below(self.near)
        took = "" if seconds is None else f"{seconds:.0f}"
        return f"| {name} | {value:.3f} | {error:.3f} | {near:.1%} | {nearest.distance.mean():.1f} | {took} |"


def sample(run: RunFolder, setting: dict | tuple, decoder: Autoencoder, number: int) -> torch.Tensor:
    """So many images generated with a setting."""
    whole = setting if isinstance(setting, dict) else {}
    searches = load_generation_config(run.generation, **whole)
    if isinstance(setting, tuple):
        searches = [load_generation_config(run.generation, **changes)[i] for i, changes in enumerate(setting)]
    cascade = Cascade(searches, run.path, decoder, CPU, choose_dtype(CPU, "auto"), BATCH)
    return torch.cat([cascade.decode(tokens[-1], -1) for _, tokens, _ in cascade.batches(Request(), number, "samples")])


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, help="folder that scripts/train_cascade.sh wrote, such as out/demo-avatars"
    )
    parser.add_argument("--dataset-path", type=Path, help="dataset.json of its images [FOLDER/data/dataset.json]")
    parser.add_argument("--guided", action="store_true", help="compare scales of guidance instead")
    parser.add_argument("--only", nargs="+", help="settings to compare [all]")
    args = parser.parse_args()
    keep_memory()
    run = RunFolder.open(args.folder)
    dataset = ImageDataset(args.dataset_path or run.images)
    decoder = Autoencoder.load(run.autoencoder.latest)
    judge = Judge(dataset)
    number = len(judge.held_out)
    floor = judge.distance(judge.training[torch.randperm(len(judge.training))[:number]], judge.held_out)
    print(f"{number} images; the distance of training images to held-out ones is {floor[0]:.4f} ± {floor[1]:.4f}.\n")
    print("| | kernel distance | ± | near copies | distance to the nearest training image | seconds |")
    print("|---|---|---|---|---|---|")
    print(judge.row("held-out images", judge.held_out), flush=True)
    cascade = Cascade(load_generation_config(run.generation), run.path, decoder, CPU)
    _, held_out = dataset.split(VAL_FRACTION)
    images = torch.cat([dataset[part] for part in chunks(held_out, BATCH)])
    print(judge.row("their reconstructions", judge.extractor(decoder(images))), flush=True)
    for level in (3, 2, 1, 0):
        name = f"by the tokens of stage {level - 1}" if level else "by the condition"
        print(judge.row(name, judge.extractor(cascade.decode(cascade.tokenize(images)[level], level))), flush=True)
    for name, setting in (GUIDED if args.guided else SETTINGS).items():
        if args.only and name not in args.only:
            continue
        start = time.perf_counter()
        images = sample(run, setting, decoder, number)
        seconds = time.perf_counter() - start
        print(judge.row(name, judge.extractor(images), seconds), flush=True)


if __name__ == "__main__":
    main()
