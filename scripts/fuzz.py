"""Damage each kind of file that the scripts read, at random, and see what its readers make of it.

A reader may read it or refuse it in one line that names the file. It must not end with another error, take over 5 s or
need over 2 GiB. Each input is a function of the seed and its number. Of an interrupted training, any file is damaged,
removed, or exchanged with another one, and the trainer resumes it for two steps.

    python -m scripts.fuzz out/quick-avatars --inputs 10000
"""

import utils.runtime.threads  # noqa: F401

import contextlib
import copy
import io
import json
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import train_autoencoder
import train_codebook
from models.autoencoder import AutoencoderConfig
from models.cascade import Cascade
from models.codebook import CodebookConfig
from models.requests import load_generation_config
from models.transformer import TransformerConfig
from reporting.run import read_run
from scripts import export, train_cascade
from utils.core.config import load_config
from utils.core.files import UserError
from utils.core.options import option, parse_options
from utils.core.tables import table
from utils.data.dataset import FeatureMapDataset, FileDataset, ImageDataset
from utils.data.shards import write_shard
from utils.data.split import Bounds
from utils.runs.chain import Recipe
from utils.runs.checkpoint import load_checkpoint
from utils.runs.folders import CONFIG, RunFolder
from utils.runtime import cli
from utils.runtime.device import peak_memory
from utils.runtime.progress import progress

SECONDS, BYTES = 5.0, 2**31  # limits of a reader: of its own time, since others may use the machine
CPU = torch.device("cpu")
ODD = (
    None,
    True,
    -1,
    0,
    1.5,
    10**40,
    1e308,
    float("nan"),
    "",
    "\0",
    "\ud800",
    "../x",
    "x" * 9999,
    [],
    {},
    [[]],
    [None],
)
DEEP = b"[" * 200_000


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of scripts.fuzz."""

    run_dir: Path = option("folder that scripts.train_cascade wrote", positional=True)
    dataset: Path | None = option("its dataset.json of images", None, unset="that in its folder data")
    inputs: int = option("number of damaged files", 10_000, low=1)
    seed: int = option("random seed", 0)


@dataclass(frozen=True)
class Target:
    """A file, and what reads it or its folder; or a folder, and what reads all files in it."""

    name: str
    file: Path
    read: Callable[[], object]


def main(argv: list[str] | None = None) -> None:
    """Parse, damage, read, report; ends with status 1 if a reader failed."""
    options = parse_options(Options, __doc__, argv)
    with tempfile.TemporaryDirectory() as scratch:
        counts, failures = fuzz(options, Path(scratch))
    print(table(("file", "inputs", "read", "refused"), ([name, sum(count), *count] for name, count in counts.items())))
    print(f"{options.inputs} damaged files, {len(failures)} failures")
    if failures:
        print(*failures, sep="\n", file=sys.stderr)
        sys.exit(1)


def fuzz(options: Options, scratch: Path) -> tuple[dict[str, list[int]], list[str]]:
    """Damage files in a copy of the run; return how many of each were read and refused, and what failed."""
    run = RunFolder.open(options.run_dir)
    spare = scratch / "spare"
    targets = [*targets_of(run, options.dataset or run.images, scratch)]
    counts, failures = {target.name: [0, 0] for target in targets}, []
    for target in targets:
        with kept(target.file, spare):
            target.read()  # whole, it can be read
    for number in progress(range(options.inputs), unit="file", desc="damaging"):
        target, rng = targets[number % len(targets)], random.Random(f"{options.seed} {number}")
        with kept(target.file, spare):
            damage_any(target.file, rng)
            since, before = time.process_time(), peak_memory(CPU)
            try:
                target.read()
                counts[target.name][0] += 1
            except (UserError, OSError):
                counts[target.name][1] += 1
            except Exception as error:  # what it is looking for, unless it ends a script in one line
                counts[target.name][1] += (is_line := cli.fault_of(error) is not None)
                failures += [] if is_line else [f"input {number}, {target.name}: {traceback.format_exc()}"]
        if (seconds := time.process_time() - since) > SECONDS:
            failures.append(f"input {number}, {target.name}: took {seconds:.1f} s")
        if (grown := peak_memory(CPU) - before) > BYTES:
            failures.append(f"input {number}, {target.name}: needed {grown / 2**30:.1f} GiB")
    return counts, failures


def targets_of(run: RunFolder, dataset: Path, scratch: Path) -> Iterator[Target]:
    """The files to damage, in copies, each with its readers."""
    work = RunFolder(Path(shutil.copytree(run.path, scratch / "run")))
    images = Path(shutil.copytree(dataset.parent, scratch / "images"), dataset.name)
    yield Target("dataset.json of images", images, lambda: use(ImageDataset(images)))
    yield Target(
        "dataset.json of feature maps", maps := work.feature_maps.dataset, lambda: use(FeatureMapDataset(maps))
    )
    names = [ImageDataset(images).path(index) for index in range(5)]
    files = {f"{number}{path.suffix}": path.read_bytes() for number, path in enumerate(names)}
    files |= {f"{number}.json": b'{"labels": ["a"], "group": "b"}' for number in range(5)}
    shard, _ = write_shard(scratch / "shards", 0, dict(sorted(files.items())))
    yield Target("shard", shard, lambda: use(ImageDataset(shard)))
    for file in (work.autoencoder.record, work.autoencoder.metrics, work.evaluation.results):
        if file.exists():
            yield Target(file.name, file, lambda: read_run(work))
    recipe = Path(shutil.copytree(Recipe.find("tiny-32").folder, scratch / "recipe"))
    yield Target("recipe.json", recipe / "recipe.json", lambda: Recipe.find(recipe))
    for name, cls in {"autoencoder": AutoencoderConfig, "transformer_0": TransformerConfig}.items():
        file = recipe / f"{name}.json"
        yield Target(f"{name}.json", file, lambda file=file, cls=cls: load_config(file, cls))
    book = recipe / "codebook_0.json"
    yield Target("codebook_0.json", book, lambda: CodebookConfig.load(book, (4, 8, 8)))
    yield Target("generate.json", work.generation, lambda: load_generation_config(work.generation))
    latest = work.autoencoder.latest
    yield Target("checkpoint", latest, lambda: load_checkpoint(latest, "autoencoder"))
    model = scratch / "model"
    export.main([str(run.path), str(model), "--device", "cpu"])
    for file in (model / CONFIG, model / "generate.json", model / "codebook_0.safetensors"):
        yield Target(f"exported {file.name}", file, lambda: Cascade.load(model, device="cpu", precision="fp32"))
    chain = train_cascade.Options(recipe="tiny-32", dataset=images, out=work.path)
    steps = train_cascade.Chain(Recipe.find("tiny-32"), chain)
    for step, key in [*steps.keys()]:
        steps.note(step.name, key)
    done = work.mark("autoencoder")
    yield Target(".done", done, lambda: train_cascade.Chain(Recipe.find("tiny-32"), chain))
    yield training(train_autoencoder.main, recipe / "autoencoder.json", images, scratch / "autoencoder to resume")
    yield training(train_codebook.main, recipe / "codebook_0.json", maps, scratch / "codebook to resume")


def training(main: Callable[[list[str]], None], config: Path, dataset: Path, folder: Path) -> Target:
    """A training that was stopped after three of five steps, with its config and its data set, and the trainer."""
    dataset = Path(shutil.copytree(dataset.parent, folder / "data"), dataset.name)
    config = Path(shutil.copy(config, folder))
    words = ["--dataset-path", dataset, "--config-path", config, "--out-dir", folder / "run", "--device", "cpu"]
    words += ["--batch-size", "4", "--log-step", "1", "--num-workers", "0", "--resume"]
    if main is train_codebook.main:
        words += ["--decoder-path", folder.parent / "run/autoencoder/models_checkpoint/latest.pt"]

    def train(steps: int, between: int) -> None:
        root = logging.getLogger()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                main([*map(str, words), "--max-step", str(steps), "--checkpoint-step", str(between)])
            finally:
                for handler in root.handlers[:]:
                    root.removeHandler(handler)
                    handler.close()

    train(3, 1)
    return Target(folder.name, folder, lambda: train(5, 5))


def use(dataset: FileDataset) -> None:
    """Read what a step reads of a data set."""
    split = dataset.split(Bounds())
    dataset[split.training[:3]]
    [dataset.label(index) for index in range(len(dataset))]
    dataset.fingerprint  # noqa: B018


@contextlib.contextmanager
def kept(place: Path, spare: Path) -> Iterator[None]:
    """Put a file or a folder back as it was, at the end of this block."""
    copy_one, remove = (shutil.copytree, shutil.rmtree) if place.is_dir() else (shutil.copy2, Path.unlink)
    copy_one(place, spare)
    yield
    remove(place)
    spare.rename(place)


def damage_any(place: Path, rng: random.Random) -> None:
    """Damage a file, or one or two of those in a folder."""
    if not place.is_dir():
        place.write_bytes(damage(place.read_bytes(), rng, place.suffix))
        return
    for _ in range(rng.choice((1, 1, 2))):
        damage_one(sorted(path for path in place.rglob("*") if path.is_file()), rng)


def damage_one(files: list[Path], rng: random.Random) -> None:
    """Damage, remove or replace a file, or exchange it with another one."""
    suffix = rng.choice((*sorted({path.suffix for path in files}), ".pt", ".pt"))
    file, other = rng.choice([path for path in files if path.suffix == suffix] or files), rng.choice(files)
    content, others = file.read_bytes(), other.read_bytes()
    file.unlink()  # it may be the same file as another one, by a hard link
    way = rng.randrange(10)
    if way == 0:
        file.write_bytes(others)
        other.unlink(missing_ok=True)
        other.write_bytes(content)
    elif way == 1:
        file.mkdir()
    elif way == 2:
        file.symlink_to(rng.choice((file.name, "nowhere", "/dev/zero")))
    elif way in (3, 4, 5) and file.suffix == ".pt":
        saved = torch.load(io.BytesIO(content), weights_only=True)
        torch.save(alter(saved, rng), file)
    elif way > 3:
        file.write_bytes(damage(content, rng, file.suffix) if content else b"x")


def damage(content: bytes, rng: random.Random, suffix: str) -> bytes:
    """A file with a part that is wrong, missing, repeated or of another kind."""
    if suffix in (".json", ".jsonl") and rng.random() < 0.7:
        lines = content.split(b"\n") if suffix == ".jsonl" else [content]
        number = rng.randrange(len(lines))
        if lines[number]:
            lines[number] = json.dumps(alter(json.loads(lines[number]), rng)).encode()
        return b"\n".join(lines)
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    ways = [content[:start], content[:start] + content[end:], content[:end] + content[start:], content[:start] + DEEP]
    ways += [content[:start] + rng.randbytes(min(end - start, 64)) + content[start + 64 :]]
    flipped = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return rng.choice([*ways, *[bytes(flipped)] * 5])


def alter(value: object, rng: random.Random) -> object:
    """A value in which one part is odd, missing, or a copy of another."""
    places: list[tuple] = []

    def collect(part: object) -> None:
        if isinstance(part, dict | list):
            for key, inner in [*(part.items() if isinstance(part, dict) else enumerate(part))]:
                places.append((part, key))
                collect(inner)

    collect(value)
    if not places:
        return rng.choice(ODD)
    (part, key), (other, name) = rng.choice(places), rng.choice(places)
    way = rng.randrange(4)
    if way == 0:
        del part[key]
    elif way == 1 and isinstance(part, dict):
        part[rng.choice(("", "x", "1", "\ud800"))] = part.pop(key)
    elif way == 2:
        part[key] = copy.deepcopy(other[name])
    else:
        part[key] = rng.choice(ODD)
    return value


if __name__ == "__main__":
    cli.run(main)
