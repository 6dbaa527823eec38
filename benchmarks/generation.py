"""How fast whole pictures are generated, one or many in a batch, in float32 and in bfloat16.

    python -m benchmarks.generation out/demo-avatars

Measures the recipes `demo-64` and `laptop-128`, whose weights are random, which takes as long as trained ones; of a
folder it measures the model there as well. Prints a table in Markdown.
"""

import utils.runtime.threads  # noqa: F401

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import torch

from benchmarks.common import machine, options, print_head, print_row, seconds
from models.autoencoder import Autoencoder
from models.cascade import Cascade
from models.decoding import make_ready
from models.requests import Request
from models.stage import Stage, StageConfig
from scripts.recipe import fmap_shape, load_configs, stage_configs
from utils.core.options import option, parse_options
from utils.runs.chain import Recipe, steps_of
from utils.runs.folders import RunFolder
from utils.runtime import cli
from utils.sampling import SamplingConfig, uniform_draws

RECIPES, PICTURES = ("demo-64", "laptop-128"), (1, 25, 200)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
Options = options(run=(Path | None, option("folder of a run whose model to measure as well", None, positional=True)))


def build(config: StageConfig) -> Stage:
    """A stage whose weights are not zero: a trained stage has no zeros either."""
    torch.manual_seed(0)
    stage = Stage(config).eval()
    for parameter in stage.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return stage


def run_writer(run: Path, number: int, precision: str) -> Callable[[], object]:
    cascade = Cascade.load(run, device="cpu", precision=precision, batch_size=number)
    return lambda: cascade.decode(cascade.generate(Request(), range(number))[0][-1])


def recipe_writer(name: str, number: int, precision: str) -> Callable[[], object]:
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
            uniform = uniform_draws(0, level, range(number), stage.config.fine.length, 1)
            tokens, _ = stage.sample(tokens, SamplingConfig(), uniform)
        return autoencoder.decode(fmap)

    return write


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Print the seconds of whole pictures, all of them in one batch, each with one beam."""
    run = parse_options(Options, __doc__, argv).run
    print(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print_head("model", "pictures", *(f"{name}, s" for name in PRECISIONS))
    writers = {name: partial(recipe_writer, name) for name in RECIPES}
    writers |= {} if run is None else {run.name: partial(run_writer, run)}
    for (name, writer), number in product(writers.items(), PICTURES):
        print_row(name, number, *(f"{seconds(writer(number, precision)):.2f}" for precision in PRECISIONS))


if __name__ == "__main__":
    cli.run(main)
