"""Measure the tables of README.md and docs/ again, and write them there: no table is typed by hand.

    python -m docs.numbers --list                # the tables and their commands; runs nothing
    python -m docs.numbers --only scaling rates-stage
    python -m docs.numbers                       # all of them, which takes many hours

Each table stands in its document between two comments, `<!-- numbers: NAME -->` and `<!-- end -->`. Its command runs on
two cores, and its output replaces what is between them, with a line that names command, seeds, machine and commit. A
table that names its command and the present commit of the code is skipped, so the same command goes on where another
one has ended; changes in docs/ and tests/ alone are no new commit. Runs that a table needs are trained first where they
are missing. A command that fails leaves its table as it was, and the others follow.

Other work on the machine falsifies times, so let it do nothing else. Needs all requirements files but that of tests.
"""

import functools
import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass

from benchmarks.common import commit, machine
from utils.core.files import UserError, write_file
from utils.core.options import option, parse_options
from utils.runs.chain import ROOT
from utils.runtime import cli

CORES = 2
FACES, EMOJI = "out/demo-avatars", "out/demo-openmoji"
SHORT = "out/quarter-avatars", "out/quarter-adventurers"  # runs of auto in a quarter of an hour
LARGE = "out/faces-128"  # images alone
TRAIN, DRAW = "scripts.train_cascade", "scripts.demo_data"
RUNS = {  # that tables read: the commands that make each, after `python -m`
    FACES: (
        f"{DRAW} avatars --num-images 9000 --out-dir {FACES}/data",
        f"{TRAIN} demo-64 {FACES}/data/dataset.json {FACES}",
    ),
    EMOJI: (f"{DRAW} openmoji --out-dir {EMOJI}/data", f"{TRAIN} demo-64 {EMOJI}/data/dataset.json {EMOJI}"),
    LARGE: (f"{DRAW} avatars --num-images 9000 --image-size 128 --out-dir {LARGE}/data",),
} | {
    folder: (f"{DRAW} {name} --out-dir {folder}/data", f"{TRAIN} auto {folder}/data/dataset.json {folder} --hours 0.25")
    for folder, name in zip(SHORT, ("avatars --num-images 9000", "adventurers"), strict=True)
}


@dataclass(frozen=True)
class Table:
    """One or more tables of a document, as a command prints them."""

    document: str
    command: str  # after `python -m`
    seeds: str  # that it uses, in words; empty where nothing is random
    parts: tuple[int, ...] = ()  # which of the tables that it prints, -1 the last; all that it prints if none is given

    @property
    def source(self) -> str:
        """What the document says of it, without machine and commit."""
        return f"`python -m {self.command}`{f', {self.seeds}' if self.seeds else ''}: "

    @property
    def runs(self) -> list[str]:
        """The folders of runs that it reads."""
        return [folder for folder in RUNS if any(word.startswith(folder) for word in self.command.split())]


EVALUATE = f"scripts.evaluate {FACES}"
ABLATION = f"benchmarks.ablation {FACES} --seconds 60"
PARTS = '"no query-key norm" "ungated MLP" "no condition noise" "condition dropout 0.1" "moving average" "dropout 0.1"'
WIDTHS = '"full, rate 0.5" "full, rate 2" "AdamW alone" "random vectors of tokens" "2 + 3 layers" "256 wide"'
RATES, WIDE = f"benchmarks.rates {FACES}", "--steps 150 --rates 0.5 1 2 4 8"
MANY, FEW = (
    f"benchmarks.peers {folder}/data/dataset.json --run {folder} --minutes 15 --images 200 --out-dir out/peers/{name}"
    for folder, name in zip(SHORT, ("faces", "few"), strict=True)
)
QUALITY, SEEDS = f"benchmarks.quality {FACES}/data/dataset.json", "--rivals flow --seeds 0 1 2"
LAPTOP = f"benchmarks.quality {LARGE}/data/dataset.json --recipe laptop-128 --out-dir out/quality-128"
MAPS = "feature_maps/dataset.json"
EXPERIMENTS, EVALUATION, SCALING = "docs/experiments.md", "docs/evaluation.md", "docs/scaling.md"
PEERS_PAGE = "docs/peers.md"
LAST = (-1,)  # of a command that also shows what its trainings print
TABLES = {
    "scaling": Table(SCALING, "benchmarks.scaling gpu-128 gpu-256", ""),
    "evaluation-reconstruction": Table(EVALUATION, EVALUATE, "seed 0", (0,)),
    "evaluation-bits": Table(EVALUATION, EVALUATE, "seed 0", (1,)),
    "evaluation-distances": Table(EVALUATION, EVALUATE, "seed 0", (2,)),
    "evaluation-novelty": Table(EVALUATION, EVALUATE, "seed 0", (4, 5)),
    "novelty": Table(EVALUATION, f"benchmarks.novelty {FACES}", "seed 0"),
    "intervals": Table(EVALUATION, f"benchmarks.intervals {FACES}", "seeds 0 to 19"),
    "codebooks": Table(
        "docs/codebooks.md", f"benchmarks.codebook --dataset-path {FACES}/{MAPS} {EMOJI}/{MAPS}", "seeds 0 to 2"
    ),
    "ablation-rates": Table(
        EXPERIMENTS, f'{ABLATION} --seeds 1 --only full "plain block" --rates 0.25 0.5 1 2 4', "seed 0"
    ),
    "ablation-plain": Table(EXPERIMENTS, f'{ABLATION} --test --only full "plain block"', "seeds 0 to 2"),
    "ablation-parts": Table(EXPERIMENTS, f"{ABLATION} --only full {PARTS}", "seeds 0 to 2"),
    "ablation-width": Table(EXPERIMENTS, f"{ABLATION} --stage 2 --seeds 2 --only full {WIDTHS}", "seeds 0 and 1"),
    "optimizers": Table(EXPERIMENTS, f"benchmarks.optimizers {FACES}", ""),
    "pictures": Table(EXPERIMENTS, f"benchmarks.generation {FACES}", "", (0,)),
    "floor": Table(EXPERIMENTS, f"benchmarks.generation {FACES}", "", (2,)),
    "sampling": Table(EXPERIMENTS, f"benchmarks.sampling {FACES}", "seed 0"),
    "scale": Table(SCALING, "benchmarks.scale", ""),
    "reading": Table(SCALING, f"benchmarks.reading {FACES}", ""),
    "rates-stage": Table(SCALING, f"{RATES} stage {WIDE}", "seeds 0 and 1"),
    "rates-autoencoder": Table(SCALING, f"{RATES} autoencoder {WIDE}", "seeds 0 and 1"),
    "rates-batches": Table(
        SCALING, f"{RATES} stage --steps 150 --widths 64 --batch-sizes 4 8 16 --rates 1 2 4 8", "seeds 0 and 1"
    ),
    "peers": Table(PEERS_PAGE, MANY, ""),
    "peers-seeds": Table(PEERS_PAGE, f"{MANY} {SEEDS}", ""),
    "peers-few": Table(PEERS_PAGE, FEW, ""),
    "peers-few-seeds": Table(PEERS_PAGE, f"{FEW} {SEEDS}", ""),
    "quality-ends": Table(EXPERIMENTS, f"{QUALITY} --minutes 4 20 --runs 3", "seeds 0 to 2", LAST),
    "quality": Table(EXPERIMENTS, f"{QUALITY} --minutes 6 12", "seed 0", LAST),
    "quality-128": Table(EXPERIMENTS, f"{LAPTOP} --shares 0.67 1.33 2", "seed 0", LAST),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of docs.numbers."""

    only: tuple[str, ...] = option("tables to measure; all if none is given", (), choices=tuple(TABLES))
    list: bool = option("print the tables with their commands, and which are measured at this commit", False)


def block_of(name: str) -> tuple[str, re.Match]:
    """The text of a table's document, and what is between its markers there."""
    path = ROOT / TABLES[name].document
    text = path.read_text(encoding="utf-8")
    blocks = [*re.finditer(rf"(?<=<!-- numbers: {name} -->\n)(.*?)(?=<!-- end -->)", text, re.DOTALL)]
    if len(blocks) != 1:
        raise UserError(
            f"{path}: {len(blocks)} places between '<!-- numbers: {name} -->' and '<!-- end -->', expected 1"
        )
    return text, blocks[0]


def is_measured(name: str, now: str) -> bool:
    """Whether a table names its command and the commit `now`."""
    words = " ".join(block_of(name)[1].group().split())
    return TABLES[name].source in words and f"commit {now}." in words


@functools.cache
def run(command: str) -> subprocess.CompletedProcess:
    """Run a command, once for all tables."""
    print(f"python -m {command}", file=sys.stderr, flush=True)
    words = [sys.executable, "-m", *shlex.split(command)]
    return subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8")


def output_of(command: str) -> str:
    """What a command prints; raises `UserError` if it fails."""
    done = run(command)
    if done.returncode:
        raise UserError(f"python -m {command}: ended with status {done.returncode}, as printed above")
    return done.stdout


def written(table: Table, now: str) -> str:
    """The lines of a document that a table's command gives."""
    for folder in table.runs:
        for command in RUNS[folder]:  # which end at once if the run is finished
            output_of(command)
    printed = output_of(table.command).strip()
    tables = re.findall(r"^\|.*(?:\n\|.*)*", printed, re.MULTILINE)
    if not tables or max(table.parts, default=0) >= len(tables):
        raise UserError(f"python -m {table.command}: has printed {len(tables)} tables, which is too few")
    shown = "\n\n".join(tables[part] for part in table.parts) if table.parts else printed
    line = f"{table.source}{machine()}, commit {now}."
    return f"\n{shown}\n\n{textwrap.fill(line, 120, break_long_words=False, break_on_hyphens=False)}\n\n"


def main(argv: list[str] | None = None) -> None:
    """Run the commands, one after another, and write the tables."""
    args, now, failed = parse_options(Options, __doc__, argv), commit(), []
    names = [name for name in TABLES if not args.only or name in args.only]
    if args.list:
        for name in names:
            state = "measured" if is_measured(name, now) else "to do"
            print(f"{name} ({TABLES[name].document}, {state}): python -m {TABLES[name].command}")
        return
    if now.endswith("+") or now == "unknown":
        raise UserError("the tables name the commit of the code: commit your changes first (git status)")
    if hasattr(os, "sched_setaffinity"):  # children keep to these cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    for name in names:
        if is_measured(name, now):
            print(f"{name}: is measured at commit {now} already", file=sys.stderr)
            continue
        try:
            content = written(TABLES[name], now)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        if commit() != now:
            raise UserError(f"the code has changed meanwhile, from commit {now} to {commit()}; start again")
        text, block = block_of(name)  # now, since a person may have changed it in these hours
        write_file(ROOT / TABLES[name].document, text[: block.start()] + content + text[block.end() :])
    if failed:
        raise UserError(f"these tables were not measured, for the reasons above: {', '.join(failed)}")


if __name__ == "__main__":
    cli.run(main)
