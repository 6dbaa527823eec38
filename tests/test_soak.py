"""A sample of what `python -m scripts.soak` does in full: scripts that are killed leave what others leave."""

import random
import subprocess
import sys

from scripts.soak import CASES
from utils.runs.chain import ROOT


def test_a_script_that_is_killed_anywhere_leaves_what_an_uninterrupted_one_leaves():
    """The scripts of one folder, killed once; which ones, and where, differs from run to run."""
    seed, folder = random.randrange(10**6), random.choice([case.out for case in CASES])
    arguments = ["--only", folder, "--rounds", "0", "--sample", "1", "--seed", str(seed)]
    print(f"repeat with: python -m scripts.soak {' '.join(arguments)}")
    # A process of its own: the one that forks must have a single thread.
    command = [sys.executable, "-m", "scripts.soak", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [line.split("|")[2:5] for line in ended.stdout.splitlines() if line.startswith("| `")]
    assert len(rows) == sum(case.out == folder for case in CASES)
    assert all([int(cell) for cell in row] == [1, 0, 0] for row in rows)
