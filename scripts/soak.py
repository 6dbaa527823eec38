"""Kill each script at every critical point, restart it, and compare its results with those of an uninterrupted run.

Each of the six steps, scripts.make_dataset and scripts.export runs on small pictures and is killed with SIGKILL before
its first rename, link, removal, flush, validation or picture, then before its second one, and so on to its end. After
that, each runs in its own process and is killed at random times. Tensors in checkpoints, values of metrics except clock
times, the bytes of all other files, and the names of all files must be equal. Prints a table. If anything differs, it
exits with status 1 and keeps the folder. docs/reliability.md shows the last table.

    python -m scripts.soak
    python -m scripts.soak --only decoder
"""

import utils.runtime.threads  # noqa: F401

import importlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from utils.core.files import UserError
from utils.core.lock import LOCK_FILE
from utils.core.options import option, parse_options, words_of
from utils.core.tables import table
from utils.runs.chain import ROOT, Recipe, steps_of
from utils.runs.folders import RunFolder
from utils.runtime.cli import run
from utils.runtime.progress import progress
from utils.training.metrics import read_rows

TINY = ROOT / "configs" / "tiny-32"
PICTURES = 24  # number in the data set
# Functions that are counted in addition to calls of the operating system: validation and pictures, in these modules.
MEASURED = ("mean_over", "count_maps", "decoded_psnr", "arrange", "quantize", "write_png", "write_dataset")
MODULES = ("train_codebook", "train_autoencoder", "train_quantized_transformer", "prune_codebook", "models.tokens")
CALLS = ("replace", "link", "unlink", "fsync", "sync", "rmdir")
EXPORT = "scripts.export"
CLOCK = ("_per_second", "data_wait")  # suffixes of the names of numbers that depend on the clock


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of scripts.soak."""

    only: str | None = option("folder whose scripts are killed (the others only run)", None, unset="all")
    sample: int | None = option("number of random places at which to kill each script", None, unset="all", low=1)
    rounds: int = option("rounds of kills at random times per script", 3, low=0)
    seed: int = option("random seed", 0)


@dataclass(frozen=True)
class Case:
    """A script, its arguments, and the folder of the uninterrupted run to copy first, without some files."""

    module: str
    out: str
    arguments: tuple
    copied: str = ""
    without: str = ""

    def command(self, whole: Path, folder: Path) -> list[str]:
        """The arguments, with folders to read from in place of `{whole}` and `{copied}`, and the output folder."""
        places = {"whole": whole, "copied": folder if self.copied else whole}
        out = [str(folder / self.out)] if self.module == EXPORT else ["--out-dir", str(folder / self.out)]
        return [str(word).format(**places) for word in self.arguments] + out

    def differences(self, whole: Path, folder: Path) -> list[str]:
        """Differences between the files of the script in a folder and those of the uninterrupted run."""
        return [
            line for name in {self.out, self.copied or self.out} for line in differences(whole / name, folder / name)
        ]


def cases() -> Iterator[Case]:
    """`scripts.make_dataset`, all steps of a chain with one stage, with small settings, and `scripts.export`."""
    yield Case("scripts.make_dataset", "data", ("{whole}/pictures", "--image-size", 32, "--num-workers", 0))
    training = {
        "device": "cpu",
        "batch_size": 6,
        "val_fraction": 0.2,
        "log_step": 2,
        "max_step": 5,
        "checkpoint_step": 2,
    }
    keep = {"keep_checkpoint": 2}
    settings = {
        "autoencoder": training | keep | {"flip": True},
        "feature_maps": {"device": "cpu", "flip": True, "num_files_folder": 9, "batch_size": 5},
        "codebook": training | keep | {"max_step": 7, "checkpoint_step": 3},
        "prune": {"device": "cpu", "prune_threshold": 1},
        "decoder": training | keep,
        "transformer_0": training | {"test_num_sample": 2},
        "generate": {"device": "cpu", "num_images": 7, "batch_size": 3, "animate": "webp"},
    }
    caches = {"feature_maps": ("data", ""), "transformer_0": ("feature_maps", "tokens")}
    whole = RunFolder(Path("{whole}"), 1)
    for step in steps_of(whole, Recipe(TINY, settings), whole.images):
        out = step.folder.name
        copied, without = (out, "pruned") if step.section == "prune" else caches.get(out, ("", ""))
        # Files in the copied folder are read from the copy.
        words = [word.replace(f"{{whole}}/{copied}/", f"{{copied}}/{copied}/") for word in words_of(step.options)]
        yield Case(step.script, out, tuple(words), copied, without)
    yield Case(EXPORT, "exported", ("--device", "cpu", "{whole}"))


CASES = tuple(cases())


def draw_pictures(folder: Path) -> None:
    """Write some pictures, of which two are equal and one is broken."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    for number in range(PICTURES):
        image = Image.new("RGB", (40, 32), tuple(rng.choices(range(256), k=3)))
        corner = rng.randrange(12), rng.randrange(12)
        ImageDraw.Draw(image).ellipse((*corner, 30, 28), fill=tuple(rng.choices(range(256), k=3)))
        image.save(folder / f"{number:02d}.png")
    shutil.copy(folder / "03.png", folder / "10_copy.png")
    (folder / "broken.png").write_bytes(b"no picture")


def fork(case: Case, arguments: list[str], log: Path, last: int | None = None) -> int:
    """Run a script in a forked child; with `last` it kills itself before the call with that number.

    Returns the number of calls, or 0 if it was killed. Raises `RuntimeError` if the script fails.
    """
    pid = os.fork()
    if pid == 0:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        counter = count_calls(last)
        try:
            run(lambda: importlib.import_module(case.module).main(arguments))
        except BaseException as error:
            print(repr(error))
            os._exit(1)
        Path(f"{log}.count").write_text(str(next(counter)))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and last is not None:
        return 0
    if status:
        raise RuntimeError(f"{case.module} {' '.join(arguments)} failed:\n{log.read_text()[-2000:]}")
    return int(Path(f"{log}.count").read_text())


def count_calls(last: int | None) -> itertools.count:
    """Count the relevant calls from now on, and kill the process before number `last`."""
    counter = itertools.count()

    def counted(function: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            if next(counter) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    modules = (*MODULES, "utils.data.images", "scripts.make_dataset", "utils.data.dataset_json")
    for module in map(importlib.import_module, modules):
        for name in MEASURED:
            if hasattr(module, name):
                setattr(module, name, counted(getattr(module, name)))
    return counter


def prepare(case: Case, whole: Path, folder: Path) -> list[str]:
    """Create a folder with the files that the script starts from; returns the script's arguments."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if case.copied:  # with the timestamps of the files
        shutil.copytree(whole / case.copied, folder / case.copied, ignore=lambda _, names: {
            name for name in names if case.without and case.without in name
        })  # fmt: skip
    return case.command(whole, folder)


def same(first: object, second: object) -> bool:
    """Whether two checkpoints are bitwise equal, except for clock times and the digest, which covers them."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        first, second = (
            {key: value for key, value in content.items() if key != "digest" and not str(key).endswith(CLOCK)}
            for content in (first, second)
        )
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def differences(first: Path, second: Path) -> list[str]:
    """Differences between two folders, except in logs and in the record of attempts, run.json."""
    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix != ".log"} - {"run.json"}
        for folder in (first, second)
    ]
    differences = [f"{name} is only in one" for name in names[0] ^ names[1]]
    for name in sorted(names[0] & names[1]):
        paths = first / name, second / name
        if paths[0].is_dir():
            continue
        if name.endswith(".pt"):
            equal = same(*(torch.load(path, weights_only=True) for path in paths))
        elif name.endswith(".jsonl"):
            equal = same(*map(read_rows, paths))
        else:
            equal = paths[0].read_bytes() == paths[1].read_bytes()
        differences += [] if equal else [f"{name} differs"]
    return differences


def kill_everywhere(case: Case, whole: Path, base: Path, options: Options) -> tuple[int, list[str]]:
    """Kill a script before each of its calls, or a sample of them; return the number of kills and the differences."""
    folder, log, differences = base / "parts", base / "log", []
    number = fork(case, prepare(case, whole, folder), log)
    differences += case.differences(whole, folder)  # without a kill, results are reproducible
    rng = random.Random(f"{options.seed} {case.out} {case.module}")
    places = range(number) if options.sample is None else sorted(rng.sample(range(number), min(number, options.sample)))
    for place in progress(places, unit="kill", desc=f"{case.module} {case.out}"):
        arguments = prepare(case, whole, folder)
        fork(case, arguments, log, place)
        fork(case, arguments, log)
        differences += [f"killed at {place}: {line}" for line in case.differences(whole, folder)]
    return len(places), differences


def kill_at_random(case: Case, whole: Path, base: Path, options: Options) -> tuple[int, list[str]]:
    """Kill a script, with its data-loading processes, at random times; returns the same as `kill_everywhere`."""
    folder, differences, kills, work = base / "parts", [], 0, 0.0
    rng = random.Random(f"{options.seed} {case.out} {case.module} at random")
    for number in progress(range(options.rounds + 1), unit="round", desc=f"{case.module} {case.out}"):
        arguments = prepare(case, whole, folder)
        if "--resume" in arguments or case.module == "scripts.make_dataset":
            arguments += ["--num-workers", "2"]
        # The first round runs without kills, to measure the duration; in the others two processes are killed before the
        # third may finish.
        for _ in range(2 if number else 0):
            process, begin = start(case, arguments, folder)
            time.sleep(max(0.0, begin + rng.random() * work - time.monotonic()))
            kills += process.poll() is None
            process.kill()
            process.wait()
        process, begin = start(case, arguments, folder)
        status = process.wait()
        work = work or time.monotonic() - begin
        differences += [f"ended with status {status}"] if status else []
        differences += [f"killed at random: {line}" for line in case.differences(whole, folder)]
    return kills, differences


def start(case: Case, arguments: list[str], folder: Path) -> tuple[subprocess.Popen, float]:
    """Start a script in its own process; returns it once it has locked its folder, and the time of that."""
    module = ["-m", case.module] if "." in case.module else [str(ROOT / f"{case.module}.py")]
    lock = folder / case.out / LOCK_FILE
    lock.unlink(missing_ok=True)  # left by a killed process
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    process = subprocess.Popen([sys.executable, *module, *arguments], cwd=ROOT, **quiet)
    while process.poll() is None and not lock.exists():
        time.sleep(0.005)
    return process, time.monotonic()


def main(argv: list[str] | None = None) -> None:
    """Run all cases, print the table, and exit with status 1 if anything differs."""
    options = parse_options(Options, __doc__, argv)
    folders = dict.fromkeys(case.out for case in CASES)
    if options.only not in {None, *folders}:
        raise UserError(f"--only {options.only}: no such folder; give one of {', '.join(folders)}")
    torch.set_num_threads(1)  # needed after a fork, and for equal results
    for module in MODULES:
        importlib.import_module(module)
    base, rows, all_differences = Path(tempfile.mkdtemp(prefix="soak-")), [], []
    whole = base / "whole"
    draw_pictures(whole / "pictures")
    (whole / "generate.json").write_text(json.dumps({"0": json.loads((TINY / "generate.json").read_text())["0"]}))
    print(f"seed {options.seed}, folder {base}", flush=True)
    for case in CASES:
        fork(case, case.command(whole, whole), base / "log")
        if options.only not in (None, case.out):
            continue
        counts = [kill(case, whole, base, options) for kill in (kill_everywhere, kill_at_random)]
        differences = [line for _, lines in counts for line in lines]
        rows.append((f"`{case.module}` ({case.out})", counts[0][0], counts[1][0], len(differences)))
        all_differences += [f"{case.module} ({case.out}): {line}" for line in differences]
    print("\n".join(all_differences))
    print(table(("script", "killed at each call", "killed at random", "differences"), rows))
    if all_differences:
        sys.exit(1)
    shutil.rmtree(base)


if __name__ == "__main__":
    run(main)
