"""What each part of a transformer is worth: the full model compared with variants without that part.

    python -m benchmarks.ablation out/demo-avatars --stage 1
    python -m benchmarks.ablation out/demo-avatars --stage 2 --seconds 120 --seeds 1 --only full "AdamW alone"

Reads a folder that scripts/demo.sh has written; a cascade stage also needs the trained stage before it. Each run trains
one stage on one thread for a fixed time, while its learning rate falls to 0. Prints a table in Markdown: nats per token
on held-out images, once from their true coarse tokens and once from coarse tokens drawn by the stage before, each after
the true ones before it (for the base stage both are the same). Values are means over seeds; ± is half of the range.
A variant without dropout or noise changes nothing where the config of the stage has none.
"""

import argparse
import sys
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from benchmarks.stages import DemoStage
from models.cascade import Stage
from models.transformer import Attention, GatedMLP, GridEmbedding
from utils.dataset import EpochSampler
from utils.device import keep_memory
from utils.gradient import GradientLearner

WIDE = {"in_dim": 256, "hidden_dim": 512, "self_attn_heads": 4, "cross_attn_heads": 4}
# What a variant changes in the config and in the arguments of `DemoStage.learner`; `alter` changes the modules.
VARIANTS = {
    "full": ({}, {}),
    "random vectors of tokens": ({}, {}),
    "AdamW alone": ({}, {"use_muon": False}),
    "AdamW alone, half the rate": ({}, {"use_muon": False, "rate": 0.5}),
    "half the rate": ({}, {"rate": 0.5}),
    "192 wide": ({"in_dim": 192, "hidden_dim": 384, "self_attn_heads": 3, "cross_attn_heads": 3}, {}),
    "256 wide": (WIDE, {}),
    "256 wide, half the rate": (WIDE, {"rate": 0.5}),
    "4 heads": ({"self_attn_heads": 4, "cross_attn_heads": 4}, {}),
    "2 + 3 layers": ({"num_enc_layers": 2, "num_dec_layers": 3}, {}),
    "no query-key norm": ({}, {}),
    "ungated MLP": ({}, {}),
    "no condition noise": ({"condition_noise": 0.0}, {}),
    "condition dropout 0.1": ({"condition_dropout": 0.1}, {}),
    "moving average": ({}, {"ema_decay": 0.999}),
    "no dropout": ({"dropout": 0.0}, {}),
    "dropout 0.1": ({"dropout": 0.1}, {}),
    "fp32": ({}, {"precision": "fp32"}),
}


def build(name: str, demo: DemoStage) -> GradientLearner:
    """A new stage of a variant, ready to be trained."""
    config, training = VARIANTS[name]
    stage = demo.build(**config)
    for module in stage.modules():
        alter(module, name)
    return demo.learner(stage, **training)


def alter(module: nn.Module, name: str) -> None:
    """Change a module of a stage where the variant does."""
    if name == "random vectors of tokens" and isinstance(module, GridEmbedding):
        nn.init.normal_(module.token.weight, std=0.5)
    elif name == "no query-key norm" and isinstance(module, Attention):
        module.query_norm = module.key_norm = nn.Identity()
    elif name == "ungated MLP" and isinstance(getattr(module, "mlp", None), GatedMLP):
        dim, hidden = module.mlp.down.weight.shape
        hidden = hidden * 3 // 2  # as many parameters as with a gate
        module.mlp = nn.Sequential(nn.Linear(dim, hidden), module.mlp.activation, nn.Linear(hidden, dim))
        nn.init.zeros_(module.mlp[-1].weight)


def run(job: tuple[str, int], folder: Path, number: int, seconds: float) -> tuple[tuple[str, int], tuple[float, ...]]:
    """Train a variant with a seed; return the job, and its training steps, parameters and both losses."""
    name, seed = job
    torch.set_num_threads(1)
    keep_memory()
    demo = DemoStage.read(folder, number)
    coarse, fine = demo.tokens[demo.validation]
    drawn = coarse if number == 0 else draw_coarse(DemoStage.read(folder, number - 1))
    torch.manual_seed(seed)
    learner = build(name, demo)
    batches = iter(EpochSampler(demo.training, demo.batch_size, seed, 0, 10**9))
    start, step = time.perf_counter(), 0
    while (share := (time.perf_counter() - start) / seconds) < 1:
        learner.total_steps = max(step + 1, round(step / max(share, 1e-9)))  # the schedule follows the time
        learner.update(demo.tokens[next(batches)], step)
        step += 1
    parameters = sum(p.numel() for p in learner.model.parameters())
    return job, (step, parameters, loss_of(learner, coarse, fine), loss_of(learner, drawn, fine))


@torch.no_grad()
def loss_of(learner: GradientLearner, coarse: torch.Tensor, fine: torch.Tensor) -> float:
    """Nats per token."""
    with learner.autocast:
        parts = zip(coarse.split(64), fine.split(64), strict=True)
        return sum(learner.best_model(*part)["loss"].item() * len(part[0]) for part in parts) / len(fine)


@torch.no_grad()
def draw_coarse(before: DemoStage) -> torch.Tensor:
    """Tokens of held-out images drawn by the stage before, each after the true tokens before it."""
    stage = Stage.load(before.run.transformers[before.number].best, before.coarse, before.fine)
    given, written = before.tokens[before.validation]
    inputs, _ = stage.inputs_and_targets(given, written)
    probabilities = stage.transformer(inputs, stage.source(given)).softmax(-1).flatten(0, 1)
    return probabilities.multinomial(1, generator=torch.Generator().manual_seed(0)).view(written.shape)


def main() -> None:
    """Train the variants; print means over seeds, and half of their range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of scripts/demo.sh, such as out/demo-avatars")
    parser.add_argument("--stage", type=int, choices=[0, 1, 2], default=1, help="stage to train [1]")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants to train [all]")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant [3]")
    parser.add_argument("--seconds", type=float, default=100.0, help="training time of a run [100]")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one thread each [2]")
    args = parser.parse_args()
    # Variants take turns, so that a machine that slows down slows all of them.
    jobs = [(name, seed) for seed in range(args.seeds) for name in args.only]
    train, results = partial(run, folder=args.folder, number=args.stage, seconds=args.seconds), {}
    with get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
        for (name, seed), numbers in tqdm(pool.imap_unordered(train, jobs), total=len(jobs), unit="run"):
            results.setdefault(name, []).append(numbers)
            tqdm.write(f"{name}, seed {seed}: steps, parameters, losses {numbers}", file=sys.stderr)
    print("| | steps | parameters | loss | ± | of the full model | drawn | ± |\n|---|---|---|---|---|---|---|---|")
    for name in args.only:
        steps, parameters, loss, drawn = np.mean(results[name], axis=0)
        *_, spread, drawn_spread = np.ptp(results[name], axis=0) / 2
        share = f"{loss / np.mean(results['full'], axis=0)[2]:.3f}" if "full" in results else ""
        print(f"| {name} | {steps:.0f} | {parameters / 1e6:.1f} M | {loss:.4f} | {spread:.4f} | {share} "
              f"| {drawn:.4f} | {drawn_spread:.4f} |")  # fmt: skip


if __name__ == "__main__":
    main()
