"""Choose the temperature of each stage by validation images, and write them to the generate.json of a run.

    python -m scripts.temperatures out/photos

From the finest stage to the base stage it tries several temperatures. It keeps those whose samples are nearest to the
validation images by kernel distance, among those whose recall is at most 0.05 below the largest: colder samples are
often nearer, and more alike. Test images play no part, so scripts.evaluate can measure the choice.

Needs `pip install -r requirements-extra.txt`.
"""

import utils.runtime.threads  # noqa: F401

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from models.requests import Request, change_sampling
from scripts.evaluate import EXTRACTORS, PACKAGES
from utils.core.config import read_json
from utils.core.files import UserError, write_file
from utils.core.options import option, parse_options
from utils.core.tables import table
from utils.data.batches import chunks
from utils.runs.folders import RunFolder
from utils.runtime import cli
from utils.runtime.device import choose_device

FEWEST = 16  # validation images: with fewer, settings cannot be told apart
LOSS = 0.05  # of recall that a smaller distance may cost


@dataclass(frozen=True, kw_only=True)
class Options:
    run_dir: Path = option("folder that scripts.train_cascade wrote", positional=True)
    dataset_path: Path | None = option("dataset.json of its images", None, unset="RUN_DIR/data/dataset.json")
    temperatures: tuple[float, ...] = option("temperatures to try for each stage", (0.25, 0.4, 0.6, 0.8, 1.0), low=0.01)
    num_images: int = option("samples of each setting, in sets as large as the validation set", 400, low=1)
    extractor: str = option("network that computes the features", EXTRACTORS[0], choices=EXTRACTORS)
    batch_size: int = option("images at once", 64, low=1)
    seed: int = option("seed of the samples", 0)
    device: str = option("auto (cuda, mps or cpu), or a torch device", "auto")


@dataclass(frozen=True)
class Quality:
    distance: float
    recall: float


Setting = tuple[float, ...]  # a temperature for each stage


def choose(start: Setting, values: Setting, measure: Callable[[Setting], Quality]) -> Setting:
    """The nearest setting without a loss of recall: stage after stage from the finest one, each of `values` is tried.

    `measure` is asked once for each setting, and first for `start`.
    """
    best, tried = start, {}
    for stage in reversed(range(len(start))):
        for value in (best[stage], *values):
            setting = (*best[:stage], value, *best[stage + 1 :])
            if setting not in tried:
                tried[setting] = measure(setting)
        least = max(quality.recall for quality in tried.values()) - LOSS
        best = min((each for each in tried if tried[each].recall >= least), key=lambda each: tried[each].distance)
    return best


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    options = parse_options(Options, __doc__, argv)
    device = choose_device(options.device)
    cli.need("requirements-extra.txt", *PACKAGES)
    from evaluation.distances import kernel_distance, precision_and_recall  # these need the packages
    from evaluation.features import choose_extractor, features_of
    from evaluation.run import TrainedRun

    folder = RunFolder.open(options.run_dir)
    run = TrainedRun(folder, device)
    cascade, dataset = run.whole_cascade(options.batch_size), run.images(options.dataset_path)
    indices = dataset.split(run.bounds).validation
    if (number := len(indices)) < FEWEST:
        advice = "add images, or train with a larger --val-fraction"
        raise UserError(f"{dataset.index}: {number} validation images, expected at least {FEWEST}; {advice}")
    extractor = choose_extractor(options.extractor).to(device)
    parts = (dataset[part].to(device) for part in chunks(indices, options.batch_size))
    real, rows = features_of(extractor, parts, number, "validation images"), []
    total = number * -(-options.num_images // number)

    def measure(setting: Setting) -> Quality:
        """Of samples in sets as large as that of the validation images: the mean."""
        name = ", ".join(f"{value:g}" for value in setting)
        request = Request(options.seed, sampling=change_sampling(cascade.configs, temperature=setting))
        batches = cascade.batches(request, total, f"samples at {name}")
        images = (cascade.decode(tokens[-1]) for _, tokens, _ in batches)
        sets = features_of(extractor, images, total, f"samples at {name}").split(number)
        distance = sum(kernel_distance(each, real) for each in sets) / len(sets)
        precision, recall = torch.tensor([precision_and_recall(each, real) for each in sets]).mean(0).tolist()
        rows.append([name, f"{distance:.3f}", f"{precision:.2f}", f"{recall:.2f}"])
        return Quality(distance, recall)

    best = choose(tuple(config.temperature for config in cascade.configs), options.temperatures, measure)
    content = read_json(folder.generation)
    for number, value in enumerate(best):
        content[str(number)]["temperature"] = value
    write_file(folder.generation, json.dumps(content, indent=4) + "\n")
    print(f"\n{table(('temperatures', 'kernel distance', 'precision', 'recall'), rows)}\n")
    print(f"wrote {', '.join(f'{value:g}' for value in best)} to {folder.generation}")


if __name__ == "__main__":
    cli.run(main)
