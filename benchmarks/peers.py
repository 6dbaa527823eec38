"""What people would pick instead, on the same pictures in the same time: diffusion and flows beside a trained run.

    python -m benchmarks.peers data/photos/dataset.json out/photos --minutes 15
    python -m benchmarks.peers data/photos/dataset.json out/photos --rivals torchcfm --rates 1 2 --seeds 0 1 2

Needs requirements-dev.txt. Each rival is first trained for a share of its time, with the first seed, at several
multiples of its usual learning rate. With the rate of the lowest loss on validation images each seed is then trained
for the whole time, by the clock and on all threads, and as many samples as there are test images are measured as
scripts.evaluate does.

- denoising-diffusion-pytorch: diffusion on pixels by its UNet, 32 wide; samples by DDIM in 50 steps
- torchcfm: flow matching on pixels, with optimal transport in each batch, by its UNet, 32 wide; 100 steps of Euler
- flow: a rectified flow (Liu et al. 2022) on the run's own feature maps by a transformer as wide and as deep as the
  run's finest stage, decoded by the run's decoder; what these and the maps have cost the run is part of its time

All have averaged weights, a warm-up, a rate that falls to 0, clipped gradients and the run's precision, and learn from
mirror images if the run has. Prints a table in Markdown; the same command skips what --out-dir holds already.
"""

import utils.runtime.threads  # noqa: F401

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from benchmarks.ablation import train_for
from benchmarks.common import CPU, best_of, machine, options, print_head, print_row
from evaluation.distances import kernel_interval, precision_and_recall
from evaluation.features import EfficientNetFeatures, features_of
from evaluation.run import TrainedRun
from models.patches import patchify, unpatchify
from models.requests import Request
from models.transformer import Block, TransformerConfig, attend, norm
from reporting.run import read_run
from utils.core.config import read_json
from utils.core.files import UserError, write_file
from utils.core.options import option, parse_options
from utils.data.batches import chunks
from utils.data.images import save_grid
from utils.runs.folders import RunFolder
from utils.runtime import cli
from utils.training.gradient import GradientLearner, GradientOptions
from utils.training.loop import mean_over

LEARNED, BATCH = 16, 64  # pictures that a training step learns from, and that are sampled at once
WIDTH = 32  # of a UNet on its finest level; three halvings
OURS = "this project"
SHARED = ("autoencoder", "decoder", "feature_maps")  # the steps of the run whose results the flow uses
MEASURES = ("kernel", "low", "high", "precision", "recall")


class Shared:
    """What all that are compared have in common: the run, its pictures and their split, features of test images."""

    def __init__(self, dataset: Path, folder: Path, minutes: float) -> None:
        self.run, self.minutes = TrainedRun(RunFolder(folder), CPU), minutes
        self.cascade, self.dataset = self.run.cascade(BATCH), self.run.images(dataset)
        self.split, steps = self.dataset.split(self.run.bounds), read_run(self.run.folder).steps
        self.spent = {name: sum(job.seconds for job in step.jobs.values()) for name, step in steps.items()}
        self.extractor, tests = EfficientNetFeatures(), self.split.test
        self.real = features_of(
            self.extractor, (self.dataset[part] for part in chunks(tests, BATCH)), len(tests), "test"
        )

    def seconds(self, name: str) -> float:
        """The seconds that a rival is trained; raises `UserError` if there are none."""
        used = sum(self.spent.get(step, 0) for step in SHARED) / 60 if name == "flow" else 0
        if used >= self.minutes:
            raise UserError(f"--minutes {self.minutes:g}: too short for {name}, since the run has spent {used:.1f}")
        return 60 * (self.minutes - used)

    def measure(self, sample: Callable[[range], torch.Tensor], folder: Path) -> dict:
        """Measure the samples that `sample(range)` gives."""
        number, start = len(self.split.test), time.perf_counter()
        batches = [sample(range(first, min(number, first + BATCH))) for first in range(0, number, BATCH)]
        batches = [batch.float().nan_to_num().clamp(-1, 1) for batch in batches]  # of a training that failed, grey
        seconds = (time.perf_counter() - start) / number
        save_grid(torch.cat(batches)[:50], folder / "grid.png", 10)
        own = torch.cat([self.extractor(batch) for batch in batches])
        numbers = (*kernel_interval(own, self.real), *precision_and_recall(own, self.real))
        return dict(zip(MEASURES, numbers, strict=True)) | {"seconds_per_picture": seconds}


def follow(velocity: Callable, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Go from noise (N, …) at time 0 along `velocity(t, x)`, where t is (N,), to time 1, by Euler's method."""
    x = noise
    for step in range(steps):
        x = x + velocity(torch.full((len(x),), step / steps), x) / steps
    return x


class TimedBlock(Block):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.modulation = nn.Linear(config.in_dim, 6 * config.in_dim)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """(B, T, dim) and the vectors of the times (B, 1, dim) → (B, T, dim)."""
        shift, scale, gate, *others = self.modulation(time).chunk(6, dim=-1)
        attention, normed = self.self_attention, self.self_norm(x) * (1 + scale) + shift
        y = attend(attention.queries(normed), *attention.keys_values(normed))
        x = x + (1 + gate) * self.dropout(attention.merge(y))
        shift, scale, gate = others
        return x + (1 + gate) * self.dropout(self.mlp(self.mlp_norm(x) * (1 + scale) + shift))


class Flow(nn.Module):
    """A rectified flow on the run's feature maps (C, H, W), with the settings of its finest stage, and its decoder.

    A network learns the velocity x₁ − x₀ at points (1 − t)·x₀ + t·x₁ between noise x₀ and data x₁; a sample follows it
    from noise. Blocks are those of the stages without a causal mask, modulated by the time as in DiT (Peebles and Xie
    2023); times are drawn as by Esser et al. 2024, most near the middle.
    """

    package, rates = None, (0.25, 0.5, 1.0, 2.0)

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        config, (training, _, data) = shared.cascade.stages[-1].config.transformer, self.data(shared)
        self.rate, self.decay, maps = config.model_lr, config.weight_decay, data[training[:1024]]
        self.shape, dim = tuple(maps.shape[1:]), config.in_dim
        self.register_buffer("mean", maps.mean((0, 2, 3), keepdim=True))
        self.register_buffer("deviation", maps.std((0, 2, 3), keepdim=True))
        self.patch = 1 if any(side % 2 for side in self.shape[1:]) else 2  # cells a side of a token
        tokens, numbers = patchify(maps[:1], self.patch, self.patch).shape[1:]
        self.embed, self.head = nn.Linear(numbers, dim), nn.Linear(dim, numbers)
        self.place = nn.Parameter(0.5 * torch.randn(tokens, dim))
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU())
        self.blocks = nn.ModuleList(TimedBlock(config) for _ in range(config.num_enc_layers + config.num_dec_layers))
        self.norm = norm(dim)
        self.decoder = shared.run.decoder.decoder.requires_grad_(False)
        for name, parameter in self.named_parameters():
            if name.startswith("head.") or name.endswith((".out.weight", ".down.weight")) or ".modulation." in name:
                nn.init.zeros_(parameter)  # as in the stages, blocks start as the identity

    def data(self, shared: Shared) -> tuple[np.ndarray, np.ndarray, Dataset]:
        """The indices of what it learns from and of what validates it, and the data that they are of."""
        split = shared.run.maps.split(shared.run.bounds)
        return split.training, split.measured, shared.run.maps

    def learner(self, rate: float, given: GradientOptions) -> GradientLearner:
        config = SimpleNamespace(model_lr=rate, weight_decay=self.decay)
        return GradientLearner(self, loss_of, config, given, 1, CPU, self.by_muon, len(self.place))

    @property
    def by_muon(self) -> list[nn.Parameter]:
        return [weight for name, weight in self.blocks.named_parameters() if weight.ndim == 2 and "modul" not in name]

    def velocity(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """At times (B,) and points (B, C, H, W) → (B, C, H, W)."""
        half = self.place.shape[1] // 2
        angles = 1000 * t[:, None] * 1e4 ** (-torch.arange(half) / half)
        time = self.time(torch.cat((angles.sin(), angles.cos()), dim=1))[:, None]
        y = self.embed(patchify(x, self.patch, self.patch)) + self.place
        for block in self.blocks:
            y = block(y, time)
        return unpatchify(self.head(self.norm(y)), *self.shape, self.patch)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, H, W) → the loss, a scalar."""
        x = (maps - self.mean) / self.deviation
        noise, t = torch.randn_like(x), torch.randn(len(x)).sigmoid()
        share = t[:, None, None, None]
        return (self.velocity(t, (1 - share) * noise + share * x) - (x - noise)).square().mean()

    def sample(self, number: int) -> torch.Tensor:
        """Images (N, 3, H, W), from the default generator."""
        x = follow(self.velocity, torch.randn(number, *self.shape), 50)
        return self.decoder(x.float() * self.deviation + self.mean)


class PixelRival(nn.Module):
    """A rival that learns from pixels, by its authors' optimizer, Adam, and rate."""

    package: str
    rate: float
    rates: tuple[float, ...]  # large ones, since the usual ones are for trainings of days
    betas = (0.9, 0.999)

    def data(self, shared: Shared) -> tuple[np.ndarray, np.ndarray, Dataset]:
        """The indices of what it learns from and of what validates it, and the data that they are of."""
        return shared.split.training, shared.split.measured, shared.dataset

    def mirrored(self, images: torch.Tensor) -> torch.Tensor:
        """Half of the images mirrored, in training and if the run learns from mirror images."""
        chosen = torch.rand(len(images), 1, 1, 1) < (0.5 if self.training and self.flip else 0)
        return torch.where(chosen, images.flip(-1), images)

    def learner(self, rate: float, given: GradientOptions) -> GradientLearner:
        """With the shared warm-up, schedule, clipping and averaged weights."""
        config = SimpleNamespace(model_lr=rate, weight_decay=0.0)
        learner = GradientLearner(self, loss_of, config, given, 1, CPU)
        groups, learner.peak = [{"params": list(self.parameters()), "scale": 1.0}], rate
        learner.optimizers = {"optimizer": torch.optim.Adam(groups, rate, betas=self.betas, fused=True)}
        return learner


class Diffusion(PixelRival):
    """The rival of denoising-diffusion-pytorch, with the settings of its README and of its Trainer."""

    package, rate, rates, betas = "denoising_diffusion_pytorch", 8e-5, (8.0, 16.0, 32.0, 64.0), (0.9, 0.99)

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet

        self.flip, size = len(shared.run.sides) > 1, tuple(shared.dataset.shape[1:])
        self.model = GaussianDiffusion(Unet(WIDTH), image_size=size, sampling_timesteps=50)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model((self.mirrored(images) + 1) / 2)

    def sample(self, number: int) -> torch.Tensor:
        return 2 * self.model.sample(number) - 1


class Matching(PixelRival):
    """The rival of torchcfm, with the settings of its example for CIFAR-10, dropout against few images among them."""

    package, rate, rates = "torchcfm", 2e-4, (4.0, 8.0, 16.0, 32.0)

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        from torchcfm import ExactOptimalTransportConditionalFlowMatcher
        from torchcfm.models.unet import UNetModel

        self.flip, self.shape = len(shared.run.sides) > 1, tuple(shared.dataset.shape)
        usual = {"num_res_blocks": 2, "num_heads": 4, "attention_resolutions": "16", "dropout": 0.1}
        self.model = UNetModel(self.shape, WIDTH, channel_mult=(1, 2, 3, 4), **usual)
        self.matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = self.mirrored(images)
        t, x, velocity = self.matcher.sample_location_and_conditional_flow(torch.randn_like(images), images)
        return (self.model(t, x) - velocity).square().mean()

    def sample(self, number: int) -> torch.Tensor:
        return follow(self.model, torch.randn(number, *self.shape), 100)


def loss_of(model: Callable, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss of a batch, as a `GradientLearner` takes it."""
    return {"loss": model(batch)}


RIVALS = {"denoising-diffusion-pytorch": Diffusion, "torchcfm": Matching, "flow": Flow}
Options = options(
    dataset=(Path, option("dataset.json of the images of the run", positional=True)),
    run=(Path, option("folder that scripts.train_cascade wrote", positional=True)),
    out_dir=(Path, option("folder to write to", Path("out/peers"))),
    minutes=(float, option("training time of a rival, by the clock", 15.0, above=0)),
    rivals=(tuple[str, ...], option("what to compare with", tuple(RIVALS), choices=tuple(RIVALS))),
    rates=(tuple[float, ...], option("multiples of the usual learning rates; if none is given, four", (), above=0)),
    search=(float, option("share of the time in which each rate is tried", 0.2, above=0, below=1)),
    seeds=(tuple[int, ...], option("seeds; the rate is chosen with the first", (0,))),
)


def fix_draws(seed: int) -> None:
    """Seed the default generators; torchcfm draws from numpy's."""
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


def train(name: str, rate: float, seed: int, share: float, shared: Shared, folder: Path) -> dict:
    """Train a rival at a multiple of its usual rate: for all of its time, and measure it; for a share, its loss."""
    fix_draws(seed)
    rival = RIVALS[name](shared).to(memory_format=torch.channels_last)
    paths = {"dataset_path": folder, "config_path": folder, "out_dir": folder}
    plan = {"batch_size": LEARNED, "seed": seed, "warmup_step": 50, "lr_schedule": "cosine"}
    given, (training, validation, data) = GradientOptions(**paths, **plan), rival.data(shared)
    learner = rival.learner(rate * rival.rate, given)

    def update(batch: torch.Tensor, step: int) -> None:
        learner.update(batch.contiguous(memory_format=torch.channels_last), step)

    task = SimpleNamespace(training=training, options=given, learner=learner, update=update)
    steps, model = train_for(share * shared.seconds(name), task, data, time.perf_counter), learner.best_model
    if share < 1:
        fix_draws(0)  # the same noise and times for every rate
        with learner.autocast:
            return {"steps": steps, "loss": mean_over(data, validation, LEARNED, partial(loss_of, model))["loss"]}

    @torch.no_grad()
    def sample(batch: range) -> torch.Tensor:
        fix_draws(int(np.random.SeedSequence([seed & 0xFFFFFFFF, batch.start]).generate_state(1)[0]))
        with learner.autocast:
            return model.sample(len(batch))

    return {"minutes": shared.minutes, "steps": steps} | shared.measure(sample, folder)


def measure_run(shared: Shared, folder: Path) -> dict:

    @torch.no_grad()
    def sample(batch: range) -> torch.Tensor:
        tokens, _ = shared.cascade.generate(Request(0), batch)
        return shared.cascade.decode(tokens[-1])

    minutes = sum(seconds for step, seconds in shared.spent.items() if step != "generated") / 60
    return {"minutes": minutes, "steps": ""} | shared.measure(sample, folder)


def kept(out: Path, name: str, measure: Callable[[Path], dict]) -> dict:
    """What `measure` returns of a folder of --out-dir, from its file if that is there."""
    path = out / name / "result.json"
    if not path.is_file():
        print(name, file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(measure(path.parent), indent=1) + "\n")
    return read_json(path)


def print_means(name: str, rate: str, results: list[dict]) -> None:
    """Print a row: means over seeds."""
    means = {key: float(np.mean([result[key] for result in results])) for key in (*MEASURES, "seconds_per_picture")}
    kernel, low, high, precision, recall, seconds = means.values()
    each = ", ".join(f"{result['kernel']:.3f}" for result in results)
    quality = f"{kernel:.3f}", f"{low:.3f} to {high:.3f}", each, f"{precision:.2f}", f"{recall:.2f}", f"{seconds:.2f}"
    print_row(name, rate, f"{results[0]['minutes']:.1f}", results[0]["steps"], *quality)


def main(argv: list[str] | None = None) -> None:
    args = parse_options(Options, __doc__, argv)
    cli.need("requirements-dev.txt", *(RIVALS[name].package for name in args.rivals if RIVALS[name].package))
    shared = Shared(args.dataset, args.run, args.minutes)
    print(f"{len(shared.split.test)} test images; {machine()}, {torch.get_num_threads()} threads\n")
    print_head(
        "", "rate", "minutes", "steps", "kernel distance", "95 %", "seeds", "precision", "recall", "s per picture"
    )
    print_means(OURS, "", [kept(args.out_dir, "run", partial(measure_run, shared))])
    for name in args.rivals:

        def result(rate: float, seed: int, share: float, name: str = name) -> dict:
            folder = f"{name}-{args.minutes:g}-minutes-rate-{rate:g}-seed-{seed}-share-{share:g}"
            return kept(args.out_dir, folder, partial(train, name, rate, seed, share, shared))

        rates = args.rates or RIVALS[name].rates
        rate, is_end = best_of({rate: result(rate, args.seeds[0], args.search)["loss"] for rate in rates})
        print_means(name, f"{rate:g}", [result(rate, seed, 1.0) for seed in args.seeds])
        if is_end:
            print(f"{name}: its best rate is at an end of the grid: add --rates beyond it", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
