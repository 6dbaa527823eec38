"""What each part of a transformer is worth: the full model beside variants without that part, in the same time.

    python -m benchmarks.ablation out/demo-avatars --stage 1
    python -m benchmarks.ablation out/demo-avatars --stage 2 --seconds 120 --seeds 1 --only full "AdamW alone"

Reads a folder that scripts/demo.sh has written; a cascade stage also needs the trained stage before it. Each run trains
one stage on one thread for a fixed time, while its learning rate falls to 0. Prints a table in Markdown: nats per token
on held-out images, once from their true coarse tokens and once from coarse tokens drawn by the stage before, each after
the true ones before it (for the base stage both are the same). Values are means over seeds; ± is half of the range.
A variant without dropout or noise changes nothing where the config of the stage has none.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.stages import DemoStage
from models.activations import ACTIVATIONS
from models.cascade import Stage
from models.transformer import Attention, GatedMLP, GridEmbedding
from utils.dataset import EpochSampler, TokenDataset
from utils.device import keep_memory
from utils.gradient import GradientLearner


@dataclass(frozen=True)
class Variant:
    """How a variant differs from the full model."""

    config: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)  # arguments of `DemoStage.learner`
    alter: Callable[[Stage], object] = lambda stage: None
    rate: float = 1.0  # times the learning rate of the config

    def build(self, demo: DemoStage) -> GradientLearner:
        """A new stage of this variant, ready to be trained."""
        stage = demo.build(**self.config)
        self.alter(stage)
        learner = demo.learner(stage, **self.training)
        learner.base_lr *= self.rate
        return learner


def with_random_vectors(stage: Stage) -> None:
    for module in stage.modules():
        if isinstance(module, GridEmbedding):
            nn.init.normal_(module.token.weight, std=0.5)


def without_query_key_norm(stage: Stage) -> None:
    for module in stage.modules():
        if isinstance(module, Attention):
            module.query_norm = module.key_norm = nn.Identity()


def without_gate(stage: Stage) -> None:
    config = stage.config.transformer
    dim, hidden = config.in_dim, config.hidden_dim * 3 // 2  # as many parameters as with a gate
    for block in stage.modules():
        if isinstance(getattr(block, "mlp", None), GatedMLP):
            activation = ACTIVATIONS[config.hidden_activation]()
            block.mlp = nn.Sequential(nn.Linear(dim, hidden), activation, nn.Linear(hidden, dim))
            nn.init.zeros_(block.mlp[-1].weight)


NARROW = {"in_dim": 192, "hidden_dim": 384, "self_attn_heads": 3, "cross_attn_heads": 3}
WIDE = {"in_dim": 256, "hidden_dim": 512, "self_attn_heads": 4, "cross_attn_heads": 4}
VARIANTS = {
    "full": Variant(),
    "random vectors of tokens": Variant(alter=with_random_vectors),
    "AdamW alone": Variant(training={"use_muon": False}),
    "AdamW alone, half the rate": Variant(training={"use_muon": False}, rate=0.5),
    "half the rate": Variant(rate=0.5),
    "192 wide": Variant(NARROW),
    "256 wide": Variant(WIDE),
    "256 wide, half the rate": Variant(WIDE, rate=0.5),
    "4 heads": Variant({"self_attn_heads": 4, "cross_attn_heads": 4}),
    "2 + 3 layers": Variant({"num_enc_layers": 2, "num_dec_layers": 3}),
    "no query-key norm": Variant(alter=without_query_key_norm),
    "ungated MLP": Variant(alter=without_gate),
    "no condition noise": Variant({"condition_noise": 0.0}),
    "condition dropout 0.1": Variant({"condition_dropout": 0.1}),
    "moving average": Variant(training={"ema_decay": 0.999}),
    "no dropout": Variant({"dropout": 0.0}),
    "dropout 0.1": Variant({"dropout": 0.1}),
    "fp32": Variant(training={"precision": "fp32"}),
}


@dataclass(frozen=True)
class Job:
    """One run."""

    name: str
    seed: int
    folder: Path
    stage: int
    seconds: float


@dataclass(frozen=True)
class Result:
    """What was measured of a run."""

    steps: int
    parameters: int
    loss: float  # nats per token
    drawn_loss: float  # the same from coarse tokens that the stage before has drawn


def run(job: Job) -> tuple[Job, Result]:
    """Train one variant and measure it."""
    torch.set_num_threads(1)
    keep_memory()
    demo = DemoStage.read(job.folder, job.stage)
    coarse, fine = demo.tokens[demo.held_out]
    drawn = coarse if job.stage == 0 else draw_coarse(DemoStage.read(job.folder, job.stage - 1))
    torch.manual_seed(job.seed)
    learner = VARIANTS[job.name].build(demo)
    sampler = EpochSampler(demo.training, demo.batch_size, job.seed, 0, 10**9)
    steps = train(learner, demo.tokens, sampler, job.seconds)
    losses = [loss_of(learner.best_model, given, fine, learner) for given in (coarse, drawn)]
    return job, Result(steps, sum(p.numel() for p in learner.model.parameters()), *losses)


def train(learner: GradientLearner, tokens: TokenDataset, sampler: EpochSampler, seconds: float) -> int:
    """Train for a number of seconds, which the schedule follows; return the number of steps."""
    start = time.perf_counter()
    for step, indices in enumerate(sampler):
        share = (time.perf_counter() - start) / seconds
        if share >= 1:
            return step
        learner.total_steps = max(step + 1, round(step / max(share, 1e-9)))
        learner.update(tokens[indices], step)
    raise AssertionError("the sampler has no end")


@torch.no_grad()
def loss_of(stage: Stage, coarse: torch.Tensor, fine: torch.Tensor, learner: GradientLearner) -> float:
    """Nats per token."""
    total = 0.0
    for part in zip(coarse.split(64), fine.split(64), strict=True):
        with learner.autocast:
            total += stage(*part)["loss"].item() * len(part[0])
    return total / len(fine)


@torch.no_grad()
def draw_coarse(before: DemoStage) -> torch.Tensor:
    """Tokens of held-out images drawn by the stage before, each after the true tokens before it."""
    stage = Stage.load(before.run.transformers[before.number].best, before.coarse, before.fine)
    given, written = before.tokens[before.held_out]
    inputs, _ = stage.inputs_and_targets(given, written)
    probabilities = stage.transformer(inputs, stage.source(given)).softmax(-1).flatten(0, 1)
    return probabilities.multinomial(1, generator=torch.Generator().manual_seed(0)).view(written.shape)


def table(results: dict[Job, Result], names: list[str]) -> None:
    """Print means over seeds and half of their range."""
    print("| | steps | parameters | nats per token | ± | of the full model | with drawn coarse tokens | ± |")
    print("|---|---|---|---|---|---|---|---|")
    mean = {}
    for name in names:
        runs = [result for job, result in results.items() if job.name == name]
        losses, drawn = [run.loss for run in runs], [run.drawn_loss for run in runs]
        mean[name] = statistics.mean(losses)
        steps, parameters = statistics.mean(run.steps for run in runs), runs[0].parameters / 1e6
        spreads = [max(values) - min(values) for values in (losses, drawn)]
        share = f"{mean[name] / mean['full']:.3f}" if "full" in mean else ""
        print(f"| {name} | {steps:.0f} | {parameters:.1f} M | {mean[name]:.4f} | {spreads[0] / 2:.4f} | {share} "
              f"| {statistics.mean(drawn):.4f} | {spreads[1] / 2:.4f} |")  # fmt: skip


def main() -> None:
    """Run the jobs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of scripts/demo.sh, such as out/demo-avatars")
    parser.add_argument("--stage", type=int, choices=[0, 1, 2], default=1, help="stage to train [1]")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants to train [all]")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant [3]")
    parser.add_argument("--seconds", type=float, default=100.0, help="training time of a run [100]")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one thread each [2]")
    args = parser.parse_args()
    # Variants take turns, so that a machine that slows down slows all of them.
    jobs = [Job(name, seed, args.folder, args.stage, args.seconds) for seed in range(args.seeds) for name in args.only]
    with get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
        results = {}
        for job, result in tqdm(pool.imap_unordered(run, jobs), total=len(jobs), unit="run"):
            results[job] = result
            tqdm.write(f"{job.name}, seed {job.seed}: {result}", file=sys.stderr)
    table(results, args.only)


if __name__ == "__main__":
    main()
