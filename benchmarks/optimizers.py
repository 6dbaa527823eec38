"""How long a step of each optimizer takes on the weights of the demo's finest stage.

    python -m benchmarks.optimizers out/demo-avatars

Reads a folder that scripts/demo.py has written. Prints a table in Markdown.
"""

import torch

from benchmarks.common import DEMO, options, print_head, print_row, seconds
from benchmarks.stages import demo_task
from utils.core.options import parse_options
from utils.runtime import cli
from utils.training.muon import Muon

Options = options(folder=DEMO)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    folder = parse_options(Options, __doc__, argv).folder
    weights = demo_task(folder, "transformer_2")[0].learner.model.transformer.block_weights
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    kinds = {"AdamW": torch.optim.AdamW(weights, fused=True)}
    kinds |= {f"Muon in {name}": Muon(weights, 1e-3, getattr(torch, name)) for name in ("bfloat16", "float32")}
    kinds["torch.optim.Muon"] = torch.optim.Muon(weights, lr=1e-3)
    print_head("", "ms per step")
    for name, optimizer in kinds.items():
        print_row(name, f"{seconds(optimizer.step, 1) * 1e3:.1f}")


if __name__ == "__main__":
    cli.run(main)
