"""Which settings of sampling generate the best images: their distance to validation images, and near copies.

    python -m benchmarks.sampling out/demo-avatars
    python -m benchmarks.sampling out/guided --guided    # a run with condition_dropout in its first two stages

To choose the temperatures of a run, use scripts.temperatures.

Reads a folder that scripts.train_cascade has written. Each setting generates as many images as there are validation
images, from the same seed; scripts.evaluate then measures what was chosen here on the test images. Prints a table in
Markdown: the kernel distance (Bińkowski et al. 2018; cubic kernel) of the 1,280 features of EfficientNet-Lite0, and its
95 % interval; the share of near copies, images that are nearer to a training image than the 1st percentile of the
validation images; and the time. The table by levels of scripts.evaluate shows which stage to improve. Settings for
another number of stages are left out.
"""

import numpy as np
import torch

from benchmarks.common import CPU, IMAGES, RUN, options, print_head, print_row, timed
from evaluation.distances import kernel_interval
from evaluation.features import EfficientNetFeatures, features_of
from evaluation.novelty import Nearest
from evaluation.run import TrainedRun
from models.cascade import Cascade
from models.requests import Request, change_sampling
from utils.core.options import option, parse_options
from utils.data.batches import chunks
from utils.runs.folders import RunFolder
from utils.runtime import cli

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
    only=(tuple[str, ...], option("settings to compare; all if none is given", (), choices=(*SETTINGS, *GUIDED))),
)


def sample(cascade: Cascade, setting: dict | tuple, number: int) -> torch.Tensor:
    """Generate `number` images with a setting."""
    each = setting if isinstance(setting, tuple) else (setting,) * len(cascade.configs)
    pairs = zip(cascade.configs, each, strict=True)
    request = Request(sampling=tuple(change_sampling([config], **changes)[0] for config, changes in pairs))
    cascade.check(request)
    return torch.cat([cascade.decode(tokens[-1]) for _, tokens, _ in cascade.batches(request, number, "samples")])


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = parse_options(Options, __doc__, argv)
    run, extractor = TrainedRun(RunFolder.open(args.folder), CPU), EfficientNetFeatures()
    cascade, dataset = run.whole_cascade(BATCH), run.images(args.dataset_path)
    split = dataset.split(run.bounds)
    training, validation = (
        features_of(extractor, (dataset[part] for part in chunks(indices, BATCH)), len(indices), "images")
        for indices in (split.training, split.validation)
    )
    real, number = Nearest.among(training, validation), len(validation)

    def distance(features: torch.Tensor) -> str:
        return "{:.3f} ({:.3f} to {:.3f})".format(*kernel_interval(features, validation))

    def nearness(near: Nearest) -> list[str]:
        return [f"{near.nearness(real.threshold).share:.1%}", f"{near.distance.mean():.1f}"]

    print(f"{number} images in each set.\n")
    print_head("", "kernel distance", "near copies", "distance to the nearest training image", "seconds")
    print_row("validation images", "", *nearness(real), "")
    order = np.random.default_rng(0).permutation(len(training))[:number]
    print_row("training images", distance(training[order]), "", "", "")
    for name, setting in (GUIDED if args.guided else SETTINGS).items():
        is_possible = isinstance(setting, dict) or len(setting) == len(cascade.stages)
        if is_possible and (not args.only or name in args.only):
            images, seconds = timed(sample, cascade, setting, number)
            features = extractor(images)
            print_row(name, distance(features), *nearness(Nearest.among(training, features)), f"{seconds:.0f}")


if __name__ == "__main__":
    cli.run(main)
