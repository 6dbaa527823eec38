"""What people would pick instead, on the same pictures in the same time: diffusion and flows beside a trained run.

    python -m benchmarks.peers data/photos/dataset.json --run out/photos --minutes 15
    python -m benchmarks.peers data/photos/dataset.json --rivals torchcfm --rates 1 2 --seeds 0 1 2

Each rival is first trained for a share of its time, with the first seed, at several multiples of its usual learning
rate. The rate with the lowest loss on validation images is its best one, with which each seed is then trained for the
whole time, by the clock and on all threads. As many samples of that as there are test images are measured as
scripts.evaluate measures them.

- denoising-diffusion-pytorch: diffusion on pixels by its UNet, 32 wide; samples by DDIM in 50 steps
- torchcfm: flow matching on pixels, with optimal transport in each batch, by its UNet, 32 wide; 100 steps of Euler
- flow: a rectified flow on the run's own feature maps by a transformer as wide and as deep as the run's finest stage,
  decoded by the run's decoder; what the run has spent on these and on its feature maps is part of the time

All have averaged weights, a warm-up, a rate that falls to 0, clipped gradients and the run's precision. They learn from
mirror images if the run has, or with --flip. The first two need `pip install -r requirements-dev.txt`.

Writes to --out-dir a folder for each training (result.json, model.safetensors, grid.png), results.json, table.md with
what is also printed, and rows.png, a row of pictures of each. The same command skips the trainings that are finished.
"""

import utils.runtime.threads  # noqa: F401

import json
import sys
import time
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.ablation import train_for
from benchmarks.common import CPU, best_of, commit, machine, options
from benchmarks.rivals import Diffusion, MapFlow, Matching, loss_of
from evaluation.distances import kernel_interval, precision_and_recall
from evaluation.evaluator import FEWEST
from evaluation.features import EfficientNetFeatures, features_of
from evaluation.run import TrainedRun
from models.requests import Request
from reporting.run import read_run
from utils.core import provenance
from utils.core.config import read_json
from utils.core.files import UserError, write_file
from utils.core.options import option, parse_options
from utils.core.size import Size
from utils.core.tables import table
from utils.data.batches import chunks
from utils.data.dataset import ImageDataset
from utils.data.images import grid, read_image, save_grid, save_image
from utils.data.split import Bounds
from utils.runs.folders import RunFolder
from utils.runtime import cli
from utils.runtime.progress import progress
from utils.training.gradient import GradientOptions
from utils.training.loop import mean_over

LEARNED, BATCH = 16, 64  # pictures that a training step learns from, and that are sampled at once
COLUMNS, ROWS = 10, 5  # of a grid of pictures
OURS = "this project"
SHARED = ("autoencoder", "decoder", "feature_maps")  # the steps of the run whose results its flow uses
MEASURES = ("kernel", "low", "high", "precision", "recall")


RIVALS = {"denoising-diffusion-pytorch": Diffusion, "torchcfm": Matching, "flow": MapFlow}
Options = options(
    dataset=(Path, option("dataset.json of images, such as that of scripts.make_dataset", positional=True)),
    run=(Path | None, option("folder that scripts.train_cascade wrote, which is measured too", None, unset="none")),
    out_dir=(Path, option("folder to write to", Path("out/peers"))),
    minutes=(float, option("training time of a rival, by the clock", 15.0, above=0)),
    rivals=(tuple[str, ...], option("what to compare with", tuple(RIVALS), choices=tuple(RIVALS))),
    rates=(tuple[float, ...], option("multiples of the usual learning rates; if none is given, four", (), above=0)),
    search=(float, option("share of the time in which each rate is tried", 0.2, above=0, below=1)),
    seeds=(tuple[int, ...], option("seeds; the rate is chosen with the first", (0,))),
    images=(int | None, option("most samples in a set", None, unset="as many as there are test images", low=FEWEST)),
    flip=(bool, option("learn from mirror images too; with --run as that has", False)),
)


class Shared:
    """What all that are compared have in common: pictures, their split, features of real ones, and the run."""

    def __init__(self, args: Options) -> None:
        self.args, run = args, None if args.run is None else TrainedRun(RunFolder(args.run), CPU)
        self.run, self.cascade = run, None if run is None else run.whole_cascade(BATCH)
        self.bounds = Bounds() if run is None else run.bounds
        self.dataset = ImageDataset(args.dataset) if run is None else run.images(args.dataset)
        self.sides = (False, True)[: 1 + args.flip] if run is None else run.sides
        self.split = self.dataset.split(self.bounds)
        self.tests = self.split.test[: args.images]
        steps = {} if run is None else read_run(run.folder).steps
        self.spent = {name: sum(job.seconds for job in step.jobs.values()) for name, step in steps.items()}
        self.check()
        self.extractor = EfficientNetFeatures()

    def check(self) -> None:
        """Raise `UserError` naming what cannot be compared."""
        args, path, run = self.args, self.args.dataset, self.run
        sides = {"training": self.split.training, "validation": self.split.validation, "test": self.tests}
        for side, indices in sides.items():
            least = LEARNED if side == "training" else FEWEST
            if len(indices) < least:
                raise UserError(f"{path}: {len(indices)} {side} images are too few, {least} are needed; add images")
        for name in args.rivals:
            if (package := RIVALS[name].package) is not None:
                cli.need("requirements-dev.txt", package)
                if any(side % 8 for side in self.dataset.shape[1:]):
                    shown = Size.of(self.dataset.shape).shown
                    raise UserError(f"{path}: images of {shown} cannot be halved three times for {name}; scale them")
            elif run is None or run.maps is None:
                others = " ".join(other for other in RIVALS if other != name)
                advice = f"give --run a folder that scripts.train_cascade wrote, or --rivals {others}"
                raise UserError(f"--rivals {name} learns from the feature maps of a run: {advice}")
            self.seconds(name)  # raises if none are left

    def key(self, name: str) -> dict:
        """What the result of a rival, or of the run, depends on, but for the rate and the seed."""
        key = {"data": self.dataset.fingerprint, "--images": self.args.images, "bounds": self.bounds}
        if name != OURS:
            key |= {"--minutes": self.args.minutes, "use of mirror images": len(self.sides) > 1}
        if name in (OURS, "flow"):
            models = (self.run.autoencoder, self.run.decoder, *self.cascade.codebooks, *self.cascade.stages)
            key["run"] = provenance.digest([self.run.settings, *(model.fingerprint for model in models)])
        return key

    def seconds(self, name: str) -> float:
        """The seconds that a rival is trained; raises `UserError` if there are none."""
        minutes = self.args.minutes
        used = sum(self.spent.get(step, 0) for step in SHARED) / 60 if name == "flow" else 0
        if used >= minutes:
            problem = f"the run's autoencoder, decoder and feature maps have taken {used:.1f} minutes already"
            raise UserError(f"--minutes {minutes:g} is too short for {name}: {problem}; give more")
        return 60 * (minutes - used)

    @cached_property
    def real(self) -> torch.Tensor:
        """The features of test images."""
        parts = (self.dataset[part] for part in chunks(self.tests, BATCH))
        return features_of(self.extractor, parts, len(self.tests), "test")

    def measure(self, sample: Callable[[range], torch.Tensor], models: Iterable[nn.Module], folder: Path) -> dict:
        """Measure the samples that `sample(range)` gives, and the models that make them."""
        number = max(COLUMNS, len(self.tests))
        images, start = [], time.perf_counter()
        for first in progress(range(0, number, BATCH), unit="batch", desc="samples"):
            batch = sample(range(first, min(number, first + BATCH)))
            images.append(batch.float().nan_to_num().clamp(-1, 1))  # of a training that failed, grey
        seconds = (time.perf_counter() - start) / number
        save_grid(torch.cat(images)[: ROWS * COLUMNS], folder / "grid.png", COLUMNS)
        own = torch.cat([self.extractor(batch) for batch in images])[: len(self.tests)]
        numbers = (*kernel_interval(own, self.real), *precision_and_recall(own, self.real))
        size = sum(tensor.numel() for model in models for tensor in model.state_dict().values())
        cost = {"seconds_per_picture": seconds, "megabytes": 4 * size / 1e6}  # in float32
        return dict(zip(MEASURES, numbers, strict=True)) | cost


def fix_draws(seed: int) -> None:
    """Seed the default generators; torchcfm draws from numpy's."""
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


def train(name: str, rate: float, seed: int, share: float, shared: Shared, folder: Path) -> dict:
    """Train a rival at a multiple of its usual rate: for all of its time, and measure it; for a share, its loss."""
    fix_draws(seed)
    rival, losses = RIVALS[name](shared).to(memory_format=torch.channels_last), []
    paths = {"dataset_path": shared.args.dataset, "config_path": folder, "out_dir": folder}
    plan = {"batch_size": LEARNED, "seed": seed, "warmup_step": 50, "lr_schedule": "cosine"}
    given, (training, validation, data) = GradientOptions(**paths, **plan), rival.data(shared)
    seconds = share * shared.seconds(name)
    learner = rival.learner(rate * rival.rate, given)

    def update(batch: torch.Tensor, step: int) -> None:
        batch = batch.contiguous(memory_format=torch.channels_last)
        losses.append(float(learner.update(batch, step)["loss"]))

    task = SimpleNamespace(training=training, options=given, learner=learner, update=update)
    start = time.perf_counter()
    steps = train_for(seconds, task, data, time.perf_counter)
    if steps < 2 and (took := time.perf_counter() - start) > seconds:
        problem = f"too short for a training step of {name}, which takes {took:.1f} of its {seconds:.1f} seconds"
        raise UserError(f"--minutes {shared.args.minutes:g} is {problem}; give more")
    model = learner.best_model
    tenths = [float(np.mean(part)) for part in np.array_split(losses, min(10, steps))]
    trained = {"minutes": shared.args.minutes, "steps": steps, "learning_rate": learner.peak, "losses": tenths}
    if share < 1:
        fix_draws(0)  # the same noise and times for every rate
        with learner.autocast:
            means = mean_over(data, validation, LEARNED, partial(loss_of, model))
        return trained | {"validation_loss": means["loss"]}
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")

    @torch.no_grad()
    def sample(batch: range) -> torch.Tensor:
        fix_draws(int(np.random.SeedSequence([seed & 0xFFFFFFFF, batch.start]).generate_state(1)[0]))
        with learner.autocast:
            return model.sample(len(batch))

    return trained | shared.measure(sample, [model], folder)


def measure_run(shared: Shared, folder: Path) -> dict:
    """Measure the run."""
    cascade = shared.cascade

    @torch.no_grad()
    def sample(batch: range) -> torch.Tensor:
        tokens, _ = cascade.generate(Request(shared.args.seeds[0]), batch)
        return cascade.decode(tokens[-1])

    minutes = sum(seconds for step, seconds in shared.spent.items() if step != "generated") / 60
    models = (cascade.decoder.decoder, *cascade.codebooks, *cascade.stages)
    return {"minutes": minutes, "steps": ""} | shared.measure(sample, models, folder)


def result_of(name: str, rate: float, seed: int, shared: Shared, share: float = 1.0) -> dict:
    """The result of a training for a share of its time, or of the run: from its folder if it is finished."""
    tried = f"-share-{share:g}" if share < 1 else ""
    folder = shared.args.out_dir / f"{name.replace(' ', '-')}-rate-{rate:g}-seed-{seed}{tried}"
    path, key = folder / "result.json", provenance.plain(shared.key(name))
    if path.is_file():
        result = read_json(path)
        provenance.check(path, result["key"], key, "give another --out-dir", shared.dataset.verify)
        return result
    print(f"{name}, rate {rate:g}, seed {seed}", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    measured = measure_run(shared, folder) if name == OURS else train(name, rate, seed, share, shared, folder)
    setting = {"machine": machine(), "threads": torch.get_num_threads(), "commit": commit()}
    training = {"name": name, "rate": rate, "seed": seed, "share": share, "grid": f"{folder.name}/grid.png"}
    result = training | measured | setting
    write_file(path, json.dumps(result | {"key": key}, indent=1) + "\n")
    return result


HEADS = ("", "rate", "minutes", "steps", "kernel distance", "95 % interval", "of each seed", "precision", "recall")
HEADS += ("seconds per picture", "MB")


def row_of(results: list[dict]) -> list[object]:
    """A row of the table: means over the seeds of a rival at its best rate."""
    first = results[0]

    def mean(key: str) -> float:
        return float(np.mean([result[key] for result in results]))

    kernel, low, high, precision, recall = map(mean, MEASURES)
    each = ", ".join(f"{result['kernel']:.3f}" for result in results)
    rate, steps = ("", "") if first["name"] == OURS else (f"{first['rate']:g}", round(mean("steps")))
    distance = f"{kernel:.3f}", f"{low:.3f} to {high:.3f}", each, f"{precision:.2f}", f"{recall:.2f}"
    cost = f"{mean('seconds_per_picture'):.2f}", f"{first['megabytes']:.0f}"
    return [first["name"], rate, f"{first['minutes']:.1f}", steps, *distance, *cost]


def main(argv: list[str] | None = None) -> None:
    """Train and measure what is not finished; write and print the table."""
    args = parse_options(Options, __doc__, argv)
    shared, first, everything, best = Shared(args), args.seeds[0], [], []
    if args.run is not None:
        best.append([result_of(OURS, 1.0, first, shared)])
        everything += best[0]
    for name in args.rivals:
        tried = [result_of(name, rate, first, shared, args.search) for rate in args.rates or RIVALS[name].rates]
        rate, is_end = best_of({result["rate"]: result["validation_loss"] for result in tried})
        best.append([result_of(name, rate, seed, shared) for seed in args.seeds])
        everything += [*tried, *best[-1]]
        if is_end:
            print(f"{name}: its best rate is at an end of the grid: add --rates beyond it", file=sys.stderr)
    numbers = f"{len(shared.tests)} test images and as many samples; seeds {', '.join(map(str, args.seeds))}"
    settings = (f"{each['machine']}, {each['threads']} threads, commit {each['commit']}" for each in everything)
    text = f"{numbers}; {', and '.join(dict.fromkeys(settings))}.\n\n{table(HEADS, map(row_of, best))}\n"
    write_file(args.out_dir / "table.md", text)
    write_file(args.out_dir / "results.json", json.dumps(everything, indent=1) + "\n")
    shown = np.resize(shared.tests, COLUMNS)  # of fewer, some again
    rows = [grid(shared.dataset[shown], COLUMNS)]
    rows += [read_image(args.out_dir / each[0]["grid"])[:, : rows[0].shape[1]] for each in best]
    save_image(torch.cat(rows, 1), args.out_dir / "rows.png")
    print(text, end="")


if __name__ == "__main__":
    cli.run(main)
