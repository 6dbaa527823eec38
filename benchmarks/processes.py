"""Two processes beside one, for steps of as many images, on the cores of this machine.

    python -m benchmarks.processes out/demo-avatars

Reads a folder that scripts/demo.sh has left. Each training runs in turn in one process with all cores, and in two with
half of them each and half of the batch; the table has medians over rounds of what a second brings, and the largest
difference between their losses, in float32. The last row multiplies matrices in as many processes and threads, without
a word between them: what the machine allows.
"""

from utils.threads import available_cores

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from benchmarks.timing import seconds
from utils.chain import CONFIGS, ROOT, Recipe, steps_of
from utils.metrics import read_rows
from utils.options import words_of
from utils.run_folder import RunFolder

IMAGES = {"autoencoder": 16, "codebook_1": 64, "transformer_2": 16}  # of a training step
SIZE = 1024  # rows and columns of the matrices
COMMON = "--device cpu --log-step 15 --checkpoint-step 100000 --val-fraction 0.001 --max-step 30"


def trainings(run: RunFolder) -> dict[str, list]:
    """What each training is told but its batch, and the images of its step."""
    exact, found = {"precision": "fp32"}, {}
    for step in steps_of(run, Recipe(CONFIGS / "demo-64"), run.images):
        if step.name in IMAGES:
            options = step.inputs if step.section == "codebook" else step.inputs | exact
            found[step.name] = [f"{step.script}.py", IMAGES[step.name], *words_of(options)]
    return found


def train(words: list, processes: int, out: Path) -> tuple[float, list[float]]:
    """Run a training; return what it did a second in its second log line, and its losses."""
    script, images, *rest = words
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    command += [ROOT / script, *rest, *COMMON.split(), "--batch-size", images // processes, "--out-dir", out]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, available_cores() // processes))}
    subprocess.run([*map(str, command)], env=environment, check=True, capture_output=True)
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


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that scripts/demo.sh has left")
    parser.add_argument("--rounds", type=int, default=3, help="rounds [3]")
    args = parser.parse_args()
    print("| | one process | two | two beside one | largest difference of losses |\n" + "|---" * 5 + "|")
    for name, words in trainings(RunFolder(args.run)).items():
        found = {1: [], 2: []}
        for _ in range(args.rounds):
            for processes, runs in found.items():
                with tempfile.TemporaryDirectory() as scratch:
                    runs.append(train(words, processes, Path(scratch, "out")))
        one, two = (median(rate for rate, _ in runs) for runs in found.values())
        pairs = zip(found[1][0][1], found[2][0][1], strict=True)
        worst = max(abs(first - second) / abs(first) for first, second in pairs)
        print(f"| {name} | {one:.0f} | {two:.0f} | {two / one:.2f} | {100 * worst:.3f} % |", flush=True)
    one, two = (median(products(processes) for _ in range(args.rounds)) for processes in (1, 2))
    print(f"| products of matrices | {one:.1f} | {two:.1f} | {two / one:.2f} | |")


if __name__ == "__main__":
    main()
