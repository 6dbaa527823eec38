"""Damage each kind of file that the scripts read, at random, and see what its readers make of it.

A reader may read it or refuse it in one line that names the file. It must not end with another error, take over 5 s or
need over 2 GiB. Each input is a function of the seed and its number.

    python -m scripts.fuzz out/quick-avatars --inputs 10000
"""

import utils.runtime.threads  # noqa: F401

import json
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

from models.autoencoder import AutoencoderConfig
from models.cascade import Cascade
from models.codebook import CodebookConfig
from models.requests import load_generation_config
from models.transformer import TransformerConfig
from reporting.run import read_run
from scripts import export
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

SECONDS, BYTES = 5.0, 2**31  # limits of a reader
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
    """A file, and what reads it or its folder."""

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
    targets = [*targets_of(run, options.dataset or run.images, scratch)]
    counts, failures = {target.name: [0, 0] for target in targets}, []
    for target in targets:
        target.read()  # whole, it can be read
    for number in progress(range(options.inputs), unit="file", desc="damaging"):
        target, rng = targets[number % len(targets)], random.Random(f"{options.seed} {number}")
        content = target.file.read_bytes()
        target.file.write_bytes(damage(content, rng, target.file.suffix))
        since, before = time.perf_counter(), peak_memory(CPU)
        try:
            target.read()
            counts[target.name][0] += 1
        except (UserError, OSError):
            counts[target.name][1] += 1
        except Exception:  # what it is looking for
            failures.append(f"input {number}, {target.name}: {traceback.format_exc()}")
        if (seconds := time.perf_counter() - since) > SECONDS:
            failures.append(f"input {number}, {target.name}: took {seconds:.1f} s")
        if (grown := peak_memory(CPU) - before) > BYTES:
            failures.append(f"input {number}, {target.name}: needed {grown / 2**30:.1f} GiB")
        target.file.write_bytes(content)
    return counts, failures


def targets_of(run: RunFolder, dataset: Path, scratch: Path) -> Iterator[Target]:
    """The files to damage, in copies, each with its readers."""
    copy = RunFolder(Path(shutil.copytree(run.path, scratch / "run")))
    images = Path(shutil.copytree(dataset.parent, scratch / "images"), dataset.name)
    yield Target("dataset.json of images", images, lambda: use(ImageDataset(images)))
    yield Target(
        "dataset.json of feature maps", maps := copy.feature_maps.dataset, lambda: use(FeatureMapDataset(maps))
    )
    names = [ImageDataset(images).path(index) for index in range(5)]
    files = {f"{number}{path.suffix}": path.read_bytes() for number, path in enumerate(names)}
    files |= {f"{number}.json": b'{"labels": ["a"], "group": "b"}' for number in range(5)}
    shard, _ = write_shard(scratch / "shards", 0, dict(sorted(files.items())))
    yield Target("shard", shard, lambda: use(ImageDataset(shard)))
    for file in (copy.autoencoder.record, copy.autoencoder.metrics, copy.evaluation.results):
        if file.exists():
            yield Target(file.name, file, lambda: read_run(copy))
    recipe = Path(shutil.copytree(Recipe.find("tiny-32").folder, scratch / "recipe"))
    yield Target("recipe.json", recipe / "recipe.json", lambda: Recipe.find(recipe))
    for name, cls in {"autoencoder": AutoencoderConfig, "transformer_0": TransformerConfig}.items():
        file = recipe / f"{name}.json"
        yield Target(f"{name}.json", file, lambda file=file, cls=cls: load_config(file, cls))
    book = recipe / "codebook_0.json"
    yield Target("codebook_0.json", book, lambda: CodebookConfig.load(book, (4, 8, 8)))
    yield Target("generate.json", copy.generation, lambda: load_generation_config(copy.generation))
    latest = copy.autoencoder.latest
    yield Target("checkpoint", latest, lambda: load_checkpoint(latest, "autoencoder"))
    model = scratch / "model"
    export.main([str(run.path), str(model), "--device", "cpu"])
    for file in (model / CONFIG, model / "generate.json", model / "codebook_0.safetensors"):
        yield Target(f"exported {file.name}", file, lambda: Cascade.load(model, device="cpu", precision="fp32"))


def use(dataset: FileDataset) -> None:
    """Read what a step reads of a data set."""
    split = dataset.split(Bounds())
    dataset[split.training[:3]]
    [dataset.label(index) for index in range(len(dataset))]
    dataset.fingerprint  # noqa: B018


def damage(content: bytes, rng: random.Random, suffix: str) -> bytes:
    """A file with a part that is wrong, missing, repeated or of another kind."""
    if suffix in (".json", ".jsonl") and rng.random() < 0.7:
        lines = content.split(b"\n") if suffix == ".jsonl" else [content]
        number = rng.randrange(len(lines))
        if lines[number]:
            lines[number] = change(json.loads(lines[number]), rng)
        return b"\n".join(lines)
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    ways = [content[:start], content[:start] + content[end:], content[:end] + content[start:], content[:start] + DEEP]
    ways += [content[:start] + rng.randbytes(min(end - start, 64)) + content[start + 64 :]]
    flipped = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return rng.choice([*ways, *[bytes(flipped)] * 5])


def change(value: object, rng: random.Random) -> bytes:
    """JSON of a value in which one part is odd, missing, or a copy of another."""
    places: list[tuple] = []

    def collect(part: object) -> None:
        if isinstance(part, dict | list):
            for key, inner in [*(part.items() if isinstance(part, dict) else enumerate(part))]:
                places.append((part, key))
                collect(inner)

    collect(value)
    if not places:
        return json.dumps(rng.choice(ODD)).encode()
    (part, key), (other, name) = rng.choice(places), rng.choice(places)
    way = rng.randrange(4)
    if way == 0:
        del part[key]
    elif way == 1 and isinstance(part, dict):
        part[rng.choice(("", "x", "1", "\ud800"))] = part.pop(key)
    elif way == 2:
        part[key] = json.loads(json.dumps(other[name]))
    else:
        part[key] = rng.choice(ODD)
    return json.dumps(value).encode()


if __name__ == "__main__":
    cli.run(main)
