"""Two processes beside one, for steps of as many images, on the cores of this machine.

    python -m benchmarks.processes out/demo-avatars

Reads a folder that scripts/demo.py has left. Each training runs in turn in one process with all cores, and in two with
half of them each and half of the batch; the table has medians over rounds of what a second brings, and the largest
difference between their losses, in float32. The last row multiplies matrices in as many processes and threads, without
a word between them: what the machine allows.
"""

from utils.runtime.threads import available_cores

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import DEMO, in_turn, options, print_head, print_row, seconds
from utils.core.options import option, parse_options, words_of
from utils.runs.chain import CONFIGS, ROOT, Recipe, steps_of
from utils.runs.folders import RunFolder
from utils.runtime import cli
from utils.training.metrics import read_rows

IMAGES = {"autoencoder": 16, "codebook_1": 64, "transformer_2": 16}  # of a training step
SIZE = 1024  # rows and columns of the matrices
Options = options(run=DEMO, rounds=(int, option("rounds", 3, low=1)))
COMMON = "--device cpu --log-step 15 --checkpoint-step 100000 --val-fraction 0.001 --max-step 30"


def trainings(run: RunFolder) -> dict[str, list]:
    """What each training is told but its batch, and the images of its step."""
    exact, words = {"precision": "fp32"}, {}
    for step in steps_of(run, Recipe(CONFIGS / "demo-64"), run.images):
        if step.name in IMAGES:
            options = step.inputs if step.section == "codebook" else step.inputs | exact
            words[step.name] = [f"{step.script}.py", IMAGES[step.name], *words_of(options)]
    return words


def train(words: list, processes: int) -> tuple[float, list[float]]:
    """Run a training; return what it did a second in its second log line, and its losses."""
    script, images, *rest = words
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    command += [ROOT / script, *rest, *COMMON.split(), "--batch-size", images // processes, "--out-dir"]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, available_cores() // processes))}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "out")
        subprocess.run([*map(str, command), out], env=environment, check=True, capture_output=True)
        rows = [row for row in read_rows(out / "metrics.jsonl") if "train_loss" in row]
    rate = next(value for key, value in rows[1].items() if key in ("images_per_second", "tokens_per_second"))
    return rate, [row["train_loss"] for row in rows]


def multiply(threads: int) -> float:
    """Products a second of this process."""
    torch.set_num_threads(threads)
    x = torch.randn(SIZE, SIZE)
    return 1 / seconds(lambda: x @ x, at_least=2)


def products(processes: int) -> float:
    """Products a second of processes that do nothing else at the same time."""
    threads = max(1, available_cores() // processes)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return sum(pool.map(multiply, [threads] * processes))


def main(argv: list[str] | None = None) -> None:
    """Take turns and print the table."""
    args = parse_options(Options, __doc__, argv)
    print_head("", "one process", "two", "two beside one", "largest difference of losses")
    for name, words in trainings(RunFolder(args.run)).items():
        runs = in_turn(args.rounds, {number: partial(train, words, number) for number in (1, 2)})
        one, two = (median(rate for rate, _ in each) for each in runs.values())
        pairs = zip(runs[1][0][1], runs[2][0][1], strict=True)
        worst = max(abs(first - second) / abs(first) for first, second in pairs)
        print_row(name, f"{one:.0f}", f"{two:.0f}", f"{two / one:.2f}", f"{100 * worst:.3f} %")
    one, two = map(median, in_turn(args.rounds, {number: partial(products, number) for number in (1, 2)}).values())
    print_row("products of matrices", f"{one:.1f}", f"{two:.1f}", f"{two / one:.2f}", "")


if __name__ == "__main__":
    cli.run(main)
