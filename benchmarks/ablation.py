"""What each part of the transformers is worth: the whole beside itself without that part, after the same time.

    python -m benchmarks.ablation out/demo-avatars --stage 1
    python -m benchmarks.ablation out/demo-avatars --stage 1 --only full 'plain block' --seeds 1 --seconds 600

Reads a folder that scripts/demo.sh has left; a cascade stage also needs the stage before it. Each run trains one stage
on one thread for so many seconds of training, its learning rate falling to 0 with the time; `--workers` runs at once.
Prints a table in Markdown: nats a token on held-out images, given their own coarse tokens, and given coarse tokens that
the stage before has drawn, each after the true ones before it (the base stage has none before it). Means over seeds; ±
is half of the range. Where a stage's config has no dropout, or no noise, to take it out changes nothing.
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

from benchmarks.stages import CPU, DemoStage
from models import transformer
from models.cascade import Stage, near_units
from models.transformer import Attention, ChannelDropout, Grid, GridEmbedding, TransformerConfig
from utils.dataset import EpochSampler, TokenDataset
from utils.device import keep_memory
from utils.gradient import GradientLearner


@dataclass(frozen=True)
class Variant:
    """What differs from the whole."""

    config: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    alter: Callable[[Stage], object] = lambda stage: None  # before the optimizer is made
    prepare: Callable[[GradientLearner], object] = lambda learner: None  # after that
    measure: Callable[[Stage, tuple], dict] = lambda stage, batch: stage(*batch)


class Sinusoids(nn.Module):
    """Tokens and one-dimensional sinusoids (Vaswani et al. 2017), in place of learned rows and columns."""

    def __init__(self, embed: GridEmbedding, length: int) -> None:
        super().__init__()
        self.token = embed.token
        half = self.token.embedding_dim // 2
        angles = torch.arange(length)[:, None] * 1e4 ** (-torch.arange(half) / half)
        self.register_buffer("table", torch.cat((angles.sin(), angles.cos()), dim=1))

    def forward(self, tokens: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T) at cells (T,) → (B, T, dim)."""
        return transformer.in_autocast(self.token(tokens) + self.table[cells])


class PlainAttention(nn.Module):
    """Queries, keys and values by MLPs of two layers, not normalised."""

    def __init__(self, config: TransformerConfig, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value = (plain_mlp(config, config.hidden_dim) for _ in range(3))
        self.out = nn.Linear(config.in_dim, config.in_dim)

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, dim) → (B, heads, T, head_dim)."""
        return self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S, dim) → keys and values, each (B, heads, S, head_dim)."""
        return tuple(part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.key, self.value))

    merge = Attention.merge


def plain_mlp(config: TransformerConfig, hidden: int) -> nn.Sequential:
    """Two layers without a gate."""
    return nn.Sequential(
        nn.Linear(config.in_dim, hidden),
        transformer.ACTIVATIONS[config.hidden_activation](),
        nn.Linear(hidden, config.in_dim),
    )


def blocks(stage: Stage) -> list[nn.Module]:
    return [*getattr(stage.transformer, "encoder", []), *stage.transformer.decoder]


class Rotated(nn.Module):
    """Normalises queries or keys, then turns them by row and column: rotary positions (Su et al. 2021)."""

    def __init__(self, norm: nn.Module, positions: torch.Tensor, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm = norm
        num = head_dim // 4
        angles = (positions[:, :, None] * 100.0 ** (-torch.arange(num) / num)).flatten(1)  # (T, head_dim / 2)
        tables = {"cos": torch.cat((angles, angles), dim=1).cos(), "sin": torch.cat((-angles, angles), dim=1).sin()}
        for name, table in tables.items():
            self.register_buffer(name, table.repeat(1, num_heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, heads, head_dim) → the same shape: entry i of each head is paired with entry i + head_dim / 2."""
        x = self.norm(x)
        cos, sin = (table.to(x.dtype) for table in (self.cos, self.sin))
        return torch.addcmul(x.flatten(2) * cos, x.roll(x.shape[-1] // 2, dims=-1).flatten(2), sin).view_as(x)


def centres(tokens: Grid, cells: Grid) -> torch.Tensor:
    """Row and column of each token in units of the cells of another grid, (T, 2): (i + ½)·r − ½ on each axis."""
    rows = (torch.arange(tokens.height) + 0.5) * (cells.height / tokens.height) - 0.5
    columns = (torch.arange(tokens.width) + 0.5) * (cells.width / tokens.width) - 0.5
    return torch.cartesian_prod(rows, columns)


def with_rotary(stage: Stage) -> None:
    """Rotary positions too, in self- and cross-attention."""
    fine, coarse, dim = stage.config.fine, stage.config.coarse, stage.config.transformer.in_dim

    def rotate(attention: Attention, queries: Grid, keys: Grid) -> None:
        shape = (attention.num_heads, dim // attention.num_heads)
        attention.query_norm = Rotated(attention.query_norm, centres(queries, fine), *shape)
        attention.key_norm = Rotated(attention.key_norm, centres(keys, fine), *shape)

    for block in stage.transformer.decoder:
        rotate(block.self_attention, fine, fine)
        if not stage.config.is_base:
            rotate(block.cross_attention, fine, coarse)
    for block in getattr(stage.transformer, "encoder", []):
        rotate(block.self_attention, coarse, coarse)


def with_sinusoids(stage: Stage) -> None:
    model = stage.transformer
    model.embed = Sinusoids(model.embed, stage.config.fine.length)
    if not stage.config.is_base:
        model.source_embed = Sinusoids(model.source_embed, stage.config.coarse.length)


def with_rotary_alone(stage: Stage) -> None:
    with_rotary(stage)
    for module in stage.modules():
        if isinstance(module, GridEmbedding):
            for part in (module.row, module.column):
                nn.init.zeros_(part.weight).requires_grad_(False)


def without_query_key_norm(stage: Stage) -> None:
    for module in stage.modules():
        if isinstance(module, Attention):
            module.query_norm = module.key_norm = nn.Identity()


def without_gate(stage: Stage) -> None:
    config = stage.config.transformer
    for block in blocks(stage):
        block.mlp = plain_mlp(config, config.hidden_dim * 3 // 2)  # as many parameters
        nn.init.zeros_(block.mlp[-1].weight)


def make_plain(stage: Stage) -> None:
    config = stage.config.transformer
    with_sinusoids(stage)
    for block in blocks(stage):
        block.mlp = plain_mlp(config, config.hidden_dim)
        block.self_attention = PlainAttention(config, config.self_attn_heads)
        if hasattr(block, "cross_attention"):
            block.cross_attention = PlainAttention(config, config.cross_attn_heads)
    for module in stage.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()


def drop_entries(stage: Stage) -> None:
    for module in stage.modules():
        if isinstance(getattr(module, "dropout", None), ChannelDropout):
            module.dropout = nn.Dropout(module.dropout.share)


def use_adam(learner: GradientLearner) -> None:
    learner.base_lr = 1e-4
    adam = torch.optim.Adam(learner.model.parameters(), lr=1e-4, betas=(0.5, 0.999), fused=True)
    learner.optimizers = {"optimizer": adam}


def use_adamw_alone(learner: GradientLearner) -> None:
    model, config = learner.model, learner.model.config.transformer
    alone = GradientLearner(model, learner.compute, config, learner.options, learner.total_steps, CPU)
    learner.optimizers = alone.optimizers


def halve_the_rate(learner: GradientLearner) -> None:
    learner.base_lr /= 2


def use_adamw_at_half_the_rate(learner: GradientLearner) -> None:
    use_adamw_alone(learner)
    halve_the_rate(learner)


def with_random_vectors(stage: Stage) -> None:
    for module in stage.modules():
        if isinstance(module, GridEmbedding):
            nn.init.normal_(module.token.weight, std=0.5)


def soft_targets(stage: Stage, batch: tuple, share: float = 0.1) -> dict[str, torch.Tensor]:
    """A share of each target goes to the units near to it."""
    coarse, fine = stage.disturb(batch[0]), batch[1]
    inputs, targets = stage.inputs_and_targets(coarse, fine)
    logs = stage.transformer(inputs, stage.source(coarse)).float().log_softmax(-1)
    hard = logs.gather(-1, targets[..., None]).mean()
    near = logs.gather(-1, stage.near_fine[targets]).mean()
    return {"loss": -(1 - share) * hard - share * near}


CONSTANT = {"lr_schedule": "step", "lr_step": 10**9}
WIDE = {"in_dim": 256, "hidden_dim": 512, "self_attn_heads": 4, "cross_attn_heads": 4}
NOTHING = {"condition_noise": 0.0, "dropout": 0.0}
VARIANTS = {
    "full": Variant(),
    "random vectors of tokens": Variant(alter=with_random_vectors),
    "AdamW alone": Variant(prepare=use_adamw_alone),
    "AdamW alone, half the rate": Variant(prepare=use_adamw_at_half_the_rate),
    "half the rate": Variant(prepare=halve_the_rate),
    "192 wide": Variant({"in_dim": 192, "hidden_dim": 384, "self_attn_heads": 3, "cross_attn_heads": 3}),
    "256 wide": Variant(WIDE),
    "256 wide, half the rate": Variant(WIDE, prepare=halve_the_rate),
    "4 heads": Variant({"self_attn_heads": 4, "cross_attn_heads": 4}),
    "2 + 3 layers": Variant({"num_enc_layers": 2, "num_dec_layers": 3}),
    "1-D sinusoids": Variant(alter=with_sinusoids),
    "rotary positions too": Variant(alter=with_rotary),
    "rotary positions alone": Variant(alter=with_rotary_alone),
    "no query-key norm": Variant(alter=without_query_key_norm),
    "ungated MLP": Variant(alter=without_gate),
    "no condition noise": Variant({"condition_noise": 0.0}),
    "condition dropout 0.1": Variant({"condition_dropout": 0.1}),
    "moving average": Variant(training={"ema_decay": 0.999}),
    "constant rate": Variant(training=CONSTANT),
    "constant rate, moving average": Variant(training=CONSTANT | {"ema_decay": 0.999}),
    "no dropout": Variant({"dropout": 0.0}),
    "dropout 0.1": Variant({"dropout": 0.1}),
    "dropout 0.1 of single entries": Variant({"dropout": 0.1}, alter=drop_entries),
    "fp32": Variant(training={"precision": "fp32"}),
    "Adam (0.5, 0.999) at 1e-4": Variant(training=CONSTANT | {"warmup_step": 0}, prepare=use_adam),
    "soft targets": Variant(measure=soft_targets),
    "plain block": Variant(NOTHING, CONSTANT | {"warmup_step": 0}, make_plain, use_adam),
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
    """What a run came to."""

    steps: int
    parameters: int
    loss: float  # nats a token
    drawn_loss: float  # given coarse tokens that the stage before has drawn


def run(job: Job) -> tuple[Job, Result]:
    """Train one variant and measure it."""
    torch.set_num_threads(1)
    keep_memory()
    variant, demo = VARIANTS[job.name], DemoStage.read(job.folder, job.stage)
    coarse, fine = demo.tokens[demo.held_out]
    drawn = coarse if job.stage == 0 else draw_coarse(DemoStage.read(job.folder, job.stage - 1))
    torch.manual_seed(job.seed)
    stage = demo.build(**variant.config)
    stage.near_fine = near_units(demo.fine)
    variant.alter(stage)
    learner = demo.learner(stage, **variant.training)
    learner.compute = variant.measure
    variant.prepare(learner)
    sampler = EpochSampler(demo.training, demo.batch_size, job.seed, 0, 10**9)
    steps = train(learner, demo.tokens, sampler, job.seconds)
    losses = [loss_of(learner.best_model, given, fine, learner) for given in (coarse, drawn)]
    return job, Result(steps, sum(p.numel() for p in stage.parameters()), *losses)


def train(learner: GradientLearner, tokens: TokenDataset, sampler: EpochSampler, seconds: float) -> int:
    """Train for so long; return the steps taken. The schedule follows the time."""
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
    """Nats a token."""
    total = 0.0
    for part in zip(coarse.split(64), fine.split(64), strict=True):
        with learner.autocast:
            total += stage(*part)["loss"].item() * len(part[0])
    return total / len(fine)


@torch.no_grad()
def draw_coarse(before: DemoStage) -> torch.Tensor:
    """The tokens of held-out images as the stage before would have them: each drawn after the true ones before it."""
    stage = Stage.load(
        before.folder / f"transformer_{before.number}" / "models_checkpoint/best.pt", before.coarse, before.fine
    )
    given, written = before.tokens[before.held_out]
    inputs, _ = stage.inputs_and_targets(given, written)
    probabilities = stage.transformer(inputs, stage.source(given)).softmax(-1).flatten(0, 1)
    return probabilities.multinomial(1, generator=torch.Generator().manual_seed(0)).view(written.shape)


def table(results: dict[Job, Result], names: list[str]) -> None:
    """Print means over seeds, and their spread."""
    print("| | steps | parameters | nats a token | ± | of the whole | with drawn coarse tokens | ± |")
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
    parser.add_argument("folder", type=Path, help="what scripts/demo.sh wrote, such as out/demo-avatars")
    parser.add_argument("--stage", type=int, choices=[0, 1, 2], default=1, help="stage to train [1]")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="of these parts [all]")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each [3]")
    parser.add_argument("--seconds", type=float, default=100.0, help="of training a run [100]")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, a thread each [2]")
    args = parser.parse_args()
    # In turn, so that a machine that slows down slows all of them.
    jobs = [Job(name, seed, args.folder, args.stage, args.seconds) for seed in range(args.seeds) for name in args.only]
    with get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
        results = {}
        for job, result in tqdm(pool.imap_unordered(run, jobs), total=len(jobs), unit="run"):
            results[job] = result
            tqdm.write(f"{job.name}, seed {job.seed}: {result}", file=sys.stderr)
    table(results, args.only)


if __name__ == "__main__":
    main()
