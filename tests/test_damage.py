"""A damaged file of any kind is read, or refused in one line: never another error, and never slow or large.

`pytest tests/test_damage.py --damages 1000` tries that many of each kind.
"""

import copy
import io
import json
import math
import shutil
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train_autoencoder
import train_codebook
from models.autoencoder import AutoencoderConfig
from models.cascade import Cascade
from models.codebook import CodebookConfig
from models.requests import load_generation_config
from models.transformer import TransformerConfig
from reporting.run import read_run
from scripts import export, train_cascade
from tests.conftest import undisturbed
from tests.helpers.scripts import TINY, run_main
from utils.core.config import load_config
from utils.core.files import UserError
from utils.data.dataset import FeatureMapDataset, ImageDataset
from utils.data.journal import Journal
from utils.data.shards import write_shard
from utils.data.split import Bounds
from utils.runs.chain import Recipe
from utils.runs.checkpoint import load_checkpoint
from utils.runs.folders import CONFIG, RunFolder
from utils.runtime.cli import fault_of
from utils.runtime.device import peak_memory

ODD = (None, True, -1, 0, 1.5, 10**40, math.nan, "", "\0", "\ud800", "../x", "x" * 9999, [], {}, [[]], [None])
DEEP = b"[" * 200_000


def use(dataset):
    """Read what a step reads of a data set."""
    dataset[dataset.split(Bounds()).training[:3]]
    [dataset.label(index) for index in range(len(dataset))]
    dataset.fingerprint  # noqa: B018


def to_resume(main, config, dataset, folder, *more):
    """A training that was stopped after three steps, with its config and data set; what resumes it for two more."""
    dataset = shutil.copytree(dataset.parent, folder / "data") / dataset.name
    words = [
        "--dataset-path",
        dataset,
        "--config-path",
        shutil.copy(config, folder),
        "--out-dir",
        folder / "run",
        *more,
    ]
    words += ["--device", "cpu", "--batch-size", 4, "--log-step", 1, "--num-workers", 0, "--resume"]

    def train(steps=5):
        with undisturbed():
            run_main(main, *words, "--max-step", steps, "--checkpoint-step", 1 if steps == 3 else 5)

    train(3)
    return folder, train


@pytest.fixture(scope="module")
def targets(tiny_run, faces, tmp_path_factory):
    """What is damaged, a file or a folder of files, and what reads it, by its name in `NAMES`."""
    scratch = tmp_path_factory.mktemp("damage")
    run = RunFolder(shutil.copytree(tiny_run, scratch / "run"))
    images, maps = shutil.copytree(faces.parent, scratch / "images") / faces.name, run.feature_maps.dataset
    pictures = [ImageDataset(images).path(index).read_bytes() for index in range(5)]
    files = {f"{number}.png": content for number, content in enumerate(pictures)}
    files |= {f"{number}.json": b'{"labels": ["a"], "group": "b"}' for number in range(5)}
    shard, _ = write_shard(scratch / "shards", 0, dict(sorted(files.items())))
    recipe, model = shutil.copytree(TINY, scratch / "recipe"), scratch / "model"
    run_main(export.main, tiny_run, model, "--device", "cpu")
    chain = train_cascade.Options(recipe="tiny-32", dataset=images, out=run.path)
    steps = train_cascade.Chain(Recipe.find("tiny-32"), chain)
    for step, key in [*steps.keys()]:
        steps.note(step.name, key)
    decoder = "--decoder-path", scratch / "run/autoencoder/models_checkpoint/latest.pt"
    targets = {
        "images": (images, lambda: use(ImageDataset(images))),
        "feature maps": (maps, lambda: use(FeatureMapDataset(maps))),
        "shard": (shard, lambda: use(ImageDataset(shard))),
        "run.json": (run.autoencoder.record, lambda: read_run(run)),
        "metrics": (run.autoencoder.metrics, lambda: read_run(run)),
        "recipe": (recipe / "recipe.json", lambda: Recipe.find(recipe)),
        "autoencoder": (
            recipe / "autoencoder.json",
            lambda: load_config(recipe / "autoencoder.json", AutoencoderConfig),
        ),
        "transformer": (
            recipe / "transformer_0.json",
            lambda: load_config(recipe / "transformer_0.json", TransformerConfig),
        ),
        "codebook": (recipe / "codebook_0.json", lambda: CodebookConfig.load(recipe / "codebook_0.json", (4, 8, 8))),
        "generation": (run.generation, lambda: load_generation_config(run.generation)),
        "checkpoint": (run.autoencoder.latest, lambda: load_checkpoint(run.autoencoder.latest, "autoencoder")),
        "mark": (run.mark("autoencoder"), lambda: train_cascade.Chain(Recipe.find("tiny-32"), chain)),
    }
    Journal(journal := run.feature_maps.path / "unfinished.jsonl", "key").add(
        {"0": {"places": [[maps.name, None, "a"]]}}
    )
    targets["journal"] = journal, lambda: Journal(journal, "key").find("0")
    for name in (CONFIG, "generate.json", "codebook_0.safetensors"):
        targets[f"exported {name}"] = model / name, lambda: Cascade.load(model, device="cpu", precision="fp32")
    for name, main, dataset, more in (
        ("autoencoder", train_autoencoder.main, images, ()),
        ("codebook_0", train_codebook.main, maps, decoder),
    ):
        (folder := scratch / f"{name} to resume").mkdir()
        targets[folder.name] = to_resume(main, recipe / f"{name}.json", dataset, folder, *more)
    for _, read in targets.values():
        read()  # whole, each is read
    return targets


def alter(value, rng):
    """A value of JSON in which one part is odd, missing, or a copy of another."""
    places = []

    def collect(part):
        if isinstance(part, dict | list):
            for key, inner in [*(part.items() if isinstance(part, dict) else enumerate(part))]:
                places.append((part, key))
                collect(inner)

    collect(value)
    if not places:
        return rng.choice(ODD)
    (part, key), (other, name), way = rng.choice(places), rng.choice(places), rng.randrange(3)
    if way == 0:
        del part[key]
    else:
        part[key] = copy.deepcopy(other[name]) if way == 1 else rng.choice(ODD)
    return value


def damaged(content, suffix, rng):
    """A file with a part that is wrong, missing, repeated or of another kind."""
    if suffix == ".pt" and rng.random() < 0.5:
        torch.save(alter(torch.load(io.BytesIO(content), weights_only=True), rng), file := io.BytesIO())
        return file.getvalue()
    if suffix in (".json", ".jsonl") and rng.random() < 0.7:
        lines = content.split(b"\n") if suffix == ".jsonl" else [content]
        number = rng.randrange(len(lines))
        lines[number] = json.dumps(alter(json.loads(lines[number] or b"0"), rng)).encode()
        return b"\n".join(lines)
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    flipped = bytearray(content)
    for _ in range(rng.choice((1, 3, 20)) if content else 0):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    ways = [content[:start], content[:start] + content[end:], content[:end] + content[start:], content[:start] + DEEP]
    return rng.choice([*ways, bytes(flipped), bytes(flipped)])


def damage(place, rng):
    """Damage a file; or damage, remove or replace one of those in a folder."""
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    suffix = rng.choice(sorted({path.suffix for path in files}))
    file, way = rng.choice([path for path in files if path.suffix == suffix]), rng.randrange(6)
    content = file.read_bytes()
    if len(files) > 1:
        file.unlink()  # it may be the same file as another one, by a hard link
    if len(files) > 1 and way == 0:
        file.symlink_to(rng.choice((file.name, "nowhere", "/dev/zero")))
    elif len(files) > 1 and way == 1:
        file.mkdir()
    elif len(files) == 1 or way > 2:
        file.write_bytes(damaged(content, file.suffix, rng))


NAMES = ("images", "feature maps", "shard", "run.json", "metrics", "recipe", "autoencoder", "transformer", "codebook")
NAMES += ("generation", "checkpoint", "mark", "journal", f"exported {CONFIG}", "exported generate.json")
NAMES += ("exported codebook_0.safetensors", "autoencoder to resume", "codebook_0 to resume")


@pytest.mark.parametrize("name", NAMES)
def test_no_damaged_file_ends_a_reader_with_a_traceback(name, targets, tmp_path, request):
    (place, read), spare = targets[name], tmp_path / "spare"
    copy_one, remove = (shutil.copytree, shutil.rmtree) if place.is_dir() else (shutil.copy2, type(place).unlink)

    @settings(max_examples=request.config.getoption("--damages"), derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def check(rng):
        copy_one(place, spare)
        start, before = time.process_time(), peak_memory(torch.device("cpu"))
        try:
            damage(place, rng)
            read()
        except (UserError, OSError):
            pass
        except Exception as error:
            assert fault_of(error) is not None, "it would end a script with a traceback"
        finally:
            remove(place)
            spare.rename(place)
        assert time.process_time() - start < 5
        assert peak_memory(torch.device("cpu")) - before < 2**31

    check()
