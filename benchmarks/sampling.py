"""Which settings of sampling generate the best images: their distance to validation images, and how many nearly copy.

    python -m benchmarks.sampling out/demo-avatars
    python -m benchmarks.sampling out/guided --guided    # a run with condition_dropout in its first two stages

To choose the temperatures of a run, use scripts.temperatures.

Reads a folder that scripts.train_cascade has written. Each setting generates as many images as there are validation
images, from the same seed; scripts.evaluate then measures what was chosen here on the test images. Prints a table in
Markdown: the kernel distance (Bińkowski et al. 2018; cubic kernel) of the 1,280 features of EfficientNet-Lite0, and its
standard error; the share of images that are nearer to a training image than the 1st percentile of the validation
images; and the time. Above the settings are sets that limit samples: what the autoencoder and each codebook leave of
training images, and what each stage and the finer ones write after the true tokens of validation images, since training
images may be known by heart. An image that was written after one's tokens is not compared with that one. These
distances do not add up; the table by levels of scripts.evaluate shows which stage to improve.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torchmetrics.image.kid import poly_kernel

from benchmarks.common import CPU, IMAGES, RUN, options, print_head, print_row, timed
from evaluation.distances import Distance, deviation, kernel_distance
from evaluation.features import EfficientNetFeatures, features_of
from evaluation.novelty import Nearest
from evaluation.run import TrainedRun
from models.autoencoder import Autoencoder
from models.cascade import Cascade
from models.requests import Request, change_sampling, load_generation_config
from utils.core.options import option, parse_options
from utils.data.batches import chunks
from utils.runs.folders import RunFolder
from utils.runtime import cli
from utils.runtime.device import choose_dtype

BATCH = 64


def beams(number: int, width: int, temperature: float = 1.0) -> dict:
    return {"temperature": temperature, "num_beam": number, "beam_width": width}


def coarse(**changes: float) -> tuple[dict, ...]:
    """The finest stage stays as it is: its coarse tokens decide nearly everything, and guidance costs most there."""
    return changes, changes, {}


FALLING = ((1.0, 0.8, 0.6), (1.0, 0.6, 0.3), (0.9, 0.6, 0.3), (0.8, 0.5, 0.5), (0.6, 0.8, 1.0))
# A setting changes the config of all stages, or, as a tuple, that of each stage.
SETTINGS = {
    "settings of the config": {},
    **{f"temperature {value}": {"temperature": value} for value in (1.0, 0.8, 0.7, 0.5, 0.4, 0.3)},
    **{f"temperatures {', '.join(map(str, t))}": tuple({"temperature": value} for value in t) for t in FALLING},
    **{f"top-p {value}": {"temperature": 1.0, "top_p": value} for value in (0.9, 0.8, 0.6, 0.5)},
    "temperature 0.8, top-p 0.8": {"temperature": 0.8, "top_p": 0.8},
    **{f"{n} beams, compared at each {width} tokens": beams(n, width) for n, width in ((2, 4), (4, 4), (4, 16))},
    "temperature 0.8, 4 beams, at each 4": beams(4, 4, 0.8),
    "16 beams, compared at each 4 tokens": beams(16, 4),
    "classic search, 4 beams": {"num_beam": 4, "beam_width": 1, "keep_beam": 4},
}
GUIDED = {
    "guidance 1": {},
    "guidance 1.5 and 1": ({"guidance_scale": 1.5}, {}, {}),
    **{f"guidance {scale:g}": coarse(guidance_scale=scale) for scale in (1.5, 2.0, 3.0)},
    **{f"temperature 1, guidance {s:g}": coarse(temperature=1.0, guidance_scale=s) for s in (1.0, 1.5, 2.0)},
}
Options = options(
    folder=RUN,
    dataset_path=IMAGES,
    guided=(bool, option("compare scales of guidance", False)),
    only=(tuple[str, ...], option("settings to compare; all if none is given", ())),
)


def sample(
    run: RunFolder, setting: dict | tuple, decoder: Autoencoder, number: int, request: Request | None = None
) -> torch.Tensor:
    """Generate `number` images with a setting."""
    configs = load_generation_config(run.generation)
    each = setting if isinstance(setting, tuple) else (setting,) * len(configs)
    sampling = tuple(change_sampling([one], **changes)[0] for one, changes in zip(configs, each, strict=True))
    cascade = Cascade(configs, run.path, decoder, CPU, choose_dtype(CPU, "auto"), BATCH)
    batches = cascade.batches(dataclasses.replace(request or Request(), sampling=sampling), number, "samples")
    return torch.cat([cascade.decode(tokens[-1], -1) for _, tokens, _ in batches])


def limits(trained: TrainedRun, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """What samples could reach at best: what is made of images by fewer and fewer of the models, with its names."""
    cascade = Cascade(load_generation_config(trained.folder.generation), trained.folder.path, trained.decoder, CPU)
    yield "their reconstructions", trained.autoencoder(images)
    for level, tokens in reversed(list(enumerate(cascade.tokens(images)))):
        yield f"from the tokens of stage {level - 1}" if level else "from the condition", cascade.decode(tokens, level)


def written(trained: TrainedRun, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """What fewer and fewer stages write after the true tokens of images (N, 3, H, W), as many each, with its names."""
    run, decoder = trained.folder, trained.decoder
    cascade = Cascade(load_generation_config(run.generation), run.path, decoder, CPU)
    true = cascade.tokens(images)
    for stage in reversed(range(1, run.num_stages)):
        name = f"written from stage {stage} on, after the true tokens of stage {stage - 1}"
        yield name, sample(run, {}, decoder, len(images), Request(init_tokens=true, from_stage=stage))


def distance_to_others(features: torch.Tensor, originals: torch.Tensor) -> float:
    """The kernel distance of two sets (N, D) of which image i of one was made from image i of the other.

    These pairs are left out, since both are more alike than independent images are; so it stays unbiased.
    """
    between, number = poly_kernel(features.double(), originals.double()), len(features)
    others = (between.sum() - between.trace()) / (number * (number - 1))
    return kernel_distance(features, originals) + 2 * float(between.mean() - others)


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = parse_options(Options, __doc__, argv)
    run, extractor = RunFolder.open(args.folder), EfficientNetFeatures()
    trained = TrainedRun(run, CPU)
    dataset, decoder = trained.images(args.dataset_path), trained.decoder
    split = dataset.split(trained.bounds)
    training, validation = (
        features_of(extractor, (dataset[part] for part in chunks(indices, BATCH)), len(indices), "images")
        for indices in (split.training, split.validation)
    )
    real, number = Nearest.among(training, validation), len(validation)

    def quality(features: torch.Tensor, distance: Distance = kernel_distance) -> list[str]:
        error = deviation(kernel_distance, features, validation, 0)
        return [f"{distance(features, validation):.3f}", f"{error:.3f}"]

    def nearness(near: Nearest) -> list[str]:
        return [f"{near.nearness(real.threshold).share:.1%}", f"{near.distance.mean():.1f}"]

    print(f"{number} images in each set.\n")
    print_head("", "kernel distance", "±", "nearly copies", "distance to the nearest training image", "seconds")
    # No image is compared with the one that it is made from.
    print_row("validation images", "", "", *nearness(real), "")
    order = np.random.default_rng(0).permutation(len(training))[:number]
    print_row("training images", *quality(training[order]), "", "", "")
    for name, images in limits(trained, dataset[split.training[order]]):
        print_row(name, *quality(extractor(images)), "", "", "")
    for name, images in written(trained, dataset[split.validation]):
        print_row(name, *quality(extractor(images), distance_to_others), "", "", "")

    for name, setting in (GUIDED if args.guided else SETTINGS).items():
        if not args.only or name in args.only:
            images, seconds = timed(sample, run, setting, decoder, number)
            features = extractor(images)
            print_row(name, *quality(features), *nearness(Nearest.among(training, features)), f"{seconds:.0f}")


if __name__ == "__main__":
    cli.run(main)
