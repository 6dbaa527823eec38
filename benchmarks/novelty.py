"""What the two measures of novelty find of images that are copied on purpose.

    python -m benchmarks.novelty out/demo-avatars    # takes about five minutes on one thread

Reads a folder that scripts.train_cascade has written. Takes training images at random and copies each: its finest
tokens; its coarse tokens, with a finest stage that is sampled; those of its coarsest grid, with all others sampled; and
its finest tokens, decoded and moved by two pixels. Prints a table in Markdown: how many of these each measure of
scripts.evaluate finds, that is, how many come as near to a training image as 1 % of the test images do.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common import CPU, IMAGES, RUN, options, print_head, print_row
from evaluation.evaluator import Evaluator
from evaluation.features import EfficientNetFeatures
from evaluation.novelty import Nearest
from evaluation.run import TrainedRun
from models.cascade import Cascade
from models.requests import Request
from utils.core.options import parse_options
from utils.runs.folders import RunFolder
from utils.runtime import cli

COPIES = 60
MOVED = 2  # pixels
BATCH = 64
NAME = "quantized training images"
Options = options(folder=RUN, dataset_path=IMAGES)


def copies(cascade: Cascade, true: list[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor, list[torch.Tensor]]]:
    """Copies of images by their tokens (N, T): a name, the copies (N, 3, H, W), and their tokens."""
    yield "copies of the finest tokens", cascade.decode_all(true[-1]), true
    for stage in reversed(range(1, len(cascade.stages))):
        request = Request(init_tokens=tuple(true), from_stage=stage)
        parts = [tokens for _, tokens, _ in cascade.batches(request, len(true[0]), "copies")]
        tokens = [torch.cat(level) for level in zip(*parts, strict=True)]
        yield f"sampled from stage {stage} on", cascade.decode_all(tokens[-1]), tokens
    moved = F.pad(cascade.decode_all(true[-1]), (MOVED, 0, 0, 0), mode="replicate")[..., :-MOVED]
    yield f"moved by {MOVED} pixels", moved, cascade.tokens(moved)


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = parse_options(Options, __doc__, argv)
    run = TrainedRun(RunFolder.open(args.folder), CPU)
    dataset = run.images(args.dataset_path)
    work = Evaluator(run, dataset, EfficientNetFeatures(), run.folder.evaluation, len(dataset), len(dataset), 0, BATCH)
    cascade, training = work.cascade, work.quantized(work.training, NAME, run.sides)
    layouts = work.layouts[NAME]

    def measure(images: torch.Tensor, tokens: list[torch.Tensor]) -> tuple[Nearest, Nearest]:
        looks = [work.extractor(images.flip(-1) if mirrored else images) for mirrored in run.sides]
        return Nearest.among(training, *looks), Nearest.by_tokens(layouts, torch.cat(tokens[1:-1], 1).int())

    tokens = cascade.tokens(dataset[work.held_out])
    test = measure(cascade.decode_all(tokens[-1]), tokens)
    order = np.random.default_rng(0).permutation(len(work.training))[:COPIES]
    print_head("", "images", "nearer than 99 % of the test images, by features", "by layout")
    for name, images, tokens in copies(cascade, cascade.tokens(dataset[work.training[order]])):
        measured = measure(images, tokens)
        shares = [one.nearness(other.threshold).share for one, other in zip(measured, test, strict=True)]
        print_row(name, len(images), *(round(share * len(images)) for share in shares))


if __name__ == "__main__":
    cli.run(main)
