"""How fast generation is: pictures of whole cascades, and decoding with a cache beside the limits of the machine.

    python -m benchmarks.generation [out/demo-avatars]

Measures the recipes `demo-64` and `laptop-128`, and the third stage of `reference-128`: 5 + 7 layers of width 512 and
64 heads, 1,024 tokens under a window of 256, from 256 coarse tokens. Their weights are random, which takes as long as
trained ones; of a folder it measures the model there as well. Prints tables in Markdown.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is imported, so that the profiler prints no lines

import utils.runtime.threads  # noqa: F401

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
from torch.autograd.profiler import profile

from benchmarks.common import options, print_head, print_row, seconds, timed
from models.autoencoder import Autoencoder
from models.cascade import Cascade
from models.decoding import CachedDecoder, make_ready
from models.requests import Request
from models.stage import Stage, StageConfig
from models.transformer import Grid, Transformer, TransformerConfig
from scripts.recipe import fmap_shape, load_configs, stage_configs
from utils.core.config import load_config
from utils.core.options import option, parse_options
from utils.runs.chain import Recipe, steps_of
from utils.runs.folders import RunFolder
from utils.runtime import cli
from utils.sampling import SamplingConfig, uniform_draws

CONFIG = Path(__file__).parent.parent / "configs/reference-128/transformer_2.json"
UNITS = 512
COARSE, FINE = (16, 16), (32, 32)
IMAGES = 5
SIDE = 2048  # of the matrices whose product shows how fast the machine multiplies
PREFIXES = (1, 256, 512, 1024)  # lengths at which the reference is timed; between them its time is interpolated
BEAMS = SamplingConfig(num_beam=4, beam_width=8)
ROWS = {1: (1, SamplingConfig()), 20: (5, BEAMS), 160: (5, SamplingConfig(num_beam=32, beam_width=8))}
WARM, STEPS = 300, 64  # tokens decoded before the measurement, more than the window; tokens that are timed
RECIPES, PICTURES = ("demo-64", "laptop-128"), (1, 25, 200)
Options = options(run=(Path | None, option("folder of a run whose model to measure as well", None, positional=True)))
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
OPERATORS = {
    "linear layers": ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm"),
    "products of attention": ("aten::bmm", "aten::baddbmm"),
    "softmax": ("aten::_softmax",),
    "norms": ("aten::native_layer_norm",),
    "copies": ("aten::copy_", "aten::index", "aten::_index_put_impl_", "aten::cat"),
}


def build(config: StageConfig) -> Stage:
    """A stage whose weights are not zero: a trained stage has no zeros either."""
    torch.manual_seed(0)
    stage = Stage(config).eval()
    for parameter in stage.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return stage


def third_stage(config: TransformerConfig, fine: tuple[int, int]) -> Stage:
    """A stage from the coarse grid to one of this height and width."""
    return build(StageConfig(config, Grid(*COARSE, UNITS), Grid(*fine, UNITS), is_base=False))


def by_number(run: Path | None) -> None:
    """Print the time of whole pictures, all of them in one batch."""
    threads = torch.get_num_threads()
    print(f"\nPictures in one batch, each with one beam, from the condition to the image; threads: {threads}.\n")
    print_head("model", "pictures", *(f"{name}, s" for name in PRECISIONS))
    writers = {name: partial(recipe_writer, name) for name in RECIPES}
    writers |= {} if run is None else {run.name: partial(run_writer, run)}
    for (name, writer), number in product(writers.items(), PICTURES):
        print_row(name, number, *(f"{seconds(writer(number, precision)):.2f}" for precision in PRECISIONS))


def run_writer(run: Path, number: int, precision: str) -> Callable[[], object]:
    """A function that writes pictures of a trained model."""
    cascade = Cascade.load(run, device="cpu", precision=precision, batch_size=number)
    return lambda: cascade.decode(cascade.generate(Request(), range(number))[0][-1])


def recipe_writer(name: str, number: int, precision: str) -> Callable[[], object]:
    """A function that writes pictures of a recipe, with random weights."""
    recipe = Recipe.find(name)
    run = RunFolder(Path("unread"), len(recipe.stages))
    configs = load_configs(recipe, steps_of(run, recipe, Path("unread")))
    stages = [build(config) for config in stage_configs(recipe, run, configs)]
    autoencoder = Autoencoder(configs["autoencoder"]).eval()
    fmap = torch.randn(number, *fmap_shape(recipe, autoencoder.config))
    for stage in stages:
        make_ready(stage.transformer, PRECISIONS[precision])

    def write() -> torch.Tensor:
        tokens = torch.zeros(number, 1, dtype=torch.int64)
        for level, stage in enumerate(stages):
            tokens, _ = stage.sample(
                tokens, SamplingConfig(), uniform_draws(0, level, range(number), stage.config.fine.length, 1)
            )
        return autoencoder.decode(fmap)

    return write


def coarse_tokens(images: int) -> torch.Tensor:
    """Random coarse tokens (images, T)."""
    return torch.randint(UNITS, (images, COARSE[0] * COARSE[1]))


def next_logits(stage: Stage, coarse: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Coarse tokens (N, S) and the fine tokens so far (N, t) → logits (N, K) of token t."""
    known, size = tokens.shape[1], stage.transformer.per_position
    unknown = torch.zeros(len(coarse), size - known % size, dtype=torch.int64)  # the rest of the cell
    inputs = stage.inputs(coarse, torch.cat((tokens.view(len(coarse), -1), unknown), dim=1))
    return stage.transformer(inputs, stage.source(coarse), stage.start(coarse))[:, known].float()


def seconds_to_sample(stage: Stage, images: int, sampling: SamplingConfig, dtype: torch.dtype) -> float:
    """The time in which a stage writes all tokens of some images, with the cache."""
    make_ready(stage.transformer, dtype)
    coarse = coarse_tokens(images)
    uniform = uniform_draws(0, 0, range(images), stage.config.fine.length, sampling.num_beam)
    return timed(stage.sample, coarse, sampling, uniform)[1]


def compare_with_reference(config: TransformerConfig) -> None:
    """Print the time of all tokens by the slow reference and with the cache."""
    print(f"\n{IMAGES} images, {BEAMS.num_beam} beams each, all tokens; the reference timed at {PREFIXES} tokens.\n")
    print_head("precision", "reference, ms per beam", "in all", "with the cache", "times as fast")
    for name, dtype in PRECISIONS.items():
        stage, coarse = third_stage(config, FINE), coarse_tokens(IMAGES)
        prefixes = [torch.randint(UNITS, (IMAGES, size - 1)) for size in PREFIXES]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            beam = [seconds(partial(next_logits, stage, coarse, tokens)) for tokens in prefixes]
        slow = BEAMS.num_beam * torch.trapezoid(torch.tensor(beam), torch.tensor(PREFIXES)).item()
        fast, each = seconds_to_sample(stage, IMAGES, BEAMS, dtype), ", ".join(f"{part * 1e3:.0f}" for part in beam)
        print_row(name, each, f"{slow:,.0f} s", f"{fast:.1f} s", f"{slow / fast:,.0f}")


def work_of(decoder: CachedDecoder, rows: int, dtype: torch.dtype, num_weights: int) -> tuple[int, float]:
    """Bytes of weights and cache that decoding a token must read, and the operations that it needs."""
    read = decoder.cache.capacity + COARSE[0] * COARSE[1]
    width = decoder.model.config.in_dim * len(decoder.model.decoder)
    keys = decoder.cache.keys.nbytes + sum(layer.keywords["k"].nbytes for layer in decoder.reads)  # values are as many
    return num_weights * dtype.itemsize + 2 * keys, rows * (2 * num_weights + 4 * read * width)


def weights_of(model: Transformer) -> int:
    """Number of weights that a token is multiplied by; those for keys and values of the coarse tokens are not."""
    inside = sum(p.numel() for name, p in model.decoder.named_parameters() if "cross_attention.key_value" not in name)
    return inside + model.head.weight.numel()


def compare_with_machine(config: TransformerConfig) -> None:
    """Print the time of a token, and the least time that the machine needs for its bytes or for its operations."""
    print("\nA token past the window, compared with the time of its bytes or its operations, whichever is longer.\n")
    print_head("rows", "precision", "bytes, ms", "products, ms", "token, ms", "share", *OPERATORS, "the rest")
    for (rows, (images, sampling)), (name, dtype) in product(ROWS.items(), PRECISIONS.items()):
        model = third_stage(config, FINE).transformer
        num_weights = weights_of(model)
        make_ready(model, dtype)
        decoder = CachedDecoder(model, rows, coarse_tokens(images))
        taken, shares = time_tokens(decoder, rows, images, sampling)
        num_bytes, operations = work_of(decoder, rows, dtype, num_weights)
        buffer, matrix = torch.ones(num_bytes // 4), torch.randn(SIDE, SIDE, dtype=dtype)
        least = (seconds(buffer.sum), operations * seconds(lambda matrix=matrix: matrix @ matrix) / (2 * SIDE**3))
        times = [f"{part * 1e3:.1f}" for part in (*least, taken)]
        print_row(rows, name, *times, *(f"{share:.0%}" for share in (max(least) / taken, *shares)))


def time_tokens(decoder: CachedDecoder, rows: int, images: int, sampling: SamplingConfig) -> tuple[float, list[float]]:
    """Seconds per token, with the reordering of beams at the end of blocks, and the shares of the operators."""
    inputs = torch.randint(UNITS, (rows,))
    parents = torch.arange(images).repeat_interleave(sampling.num_beam) * sampling.num_beam

    def tokens(number: int) -> None:
        for _ in range(number):
            decoder.next_logits(inputs)
            if sampling.num_beam > 1 and decoder.position % sampling.beam_width == 0:
                decoder.reorder(parents)

    tokens(WARM)
    taken = median(timed(tokens, STEPS)[1] for _ in range(3)) / STEPS
    with profile(use_kineto=False) as profiler:  # which prints nothing itself
        tokens(16)
    spent = Counter({event.key: event.self_cpu_time_total for event in profiler.key_averages()})
    shares = [sum(spent[name] for name in names) / spent.total() for names in OPERATORS.values()]
    return taken, [*shares, 1 - sum(shares)]


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Print all tables."""
    given = parse_options(Options, __doc__, argv)
    by_number(given.run)
    config = load_config(CONFIG, TransformerConfig)
    compare_with_reference(config)
    compare_with_machine(config)


if __name__ == "__main__":
    cli.run(main)
