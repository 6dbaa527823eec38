"""How fast images and feature maps are read and written, beside the least that this could take.

    python -m benchmarks.reading out/demo-avatars

Reads a folder that scripts/demo.py has left; writes to a temporary folder. Prints items a second, medians of rounds in
which the ways take turns, and the share of the plain way that is left:

- feature maps: step 2, from images to its index, beside the encoder alone, and beside reading and encoding alone
- packed maps: random batches in an epoch after the first one, beside rows of memory-mapped arrays
- images in shards: an epoch in its random order, beside Python's tarfile in the order of the files; both decode them
"""

import io
import sys
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

import generate_fmap_dataset
from benchmarks.common import DEMO, options, print_head, print_row, timed
from models.autoencoder import Autoencoder
from scripts.make_dataset import write_shards
from utils.core.options import option, parse_options, words_of
from utils.data.batches import BatchLoader, chunks
from utils.data.dataset import FeatureMapDataset, ImageDataset
from utils.data.dataset_json import write_dataset
from utils.data.feature_maps import open_rows
from utils.data.images import to_floats
from utils.data.records import read_dataset
from utils.runs.folders import RunFolder
from utils.runtime import cli

BATCH = 64
each = deque(maxlen=0).extend  # goes through an iterable, and keeps nothing
Options = options(
    run=DEMO,
    images=(int, option("images that are read, at most", 4000, low=1)),
    rounds=(int, option("rounds in which the ways take turns", 5, low=1)),
)


def compare(task: str, number: int, rounds: int, ours: Callable[[], object], **others: Callable[[], object]) -> None:
    """Print a row for each way beside ours to do `number` items: items a second, medians of rounds that take turns."""
    ways = {"ours": ours, **others}
    turns = [[timed(way)[1] for way in ways.values()] for _ in range(rounds)]
    mine, *rates = (number / median(times) for times in zip(*turns, strict=True))
    for name, rate in zip(others, rates, strict=True):
        print_row(task, name, f"{mine:.0f}", f"{rate:.0f}", f"{100 * mine / rate:.0f} %")


def feature_maps(run: RunFolder, folder: Path, number: int, rounds: int, packed: bool) -> None:
    """Step 2 beside the encoder alone, and beside reading and encoding alone."""
    model, dataset = Autoencoder.load(run.autoencoder.latest), ImageDataset(folder / "dataset.json")
    images, order, count = dataset[np.arange(min(BATCH, number))], chunks(np.arange(number), BATCH), iter(range(rounds))

    def step() -> None:
        paths = {"dataset_path": folder / "dataset.json", "model_path": run.autoencoder.latest}
        out = {"packed": packed, "out_dir": folder / f"maps_{packed}_{next(count)}"}
        with redirect_stdout(sys.stderr):  # what it logs is no part of the table
            generate_fmap_dataset.main(words_of({**paths, "device": "cpu", "batch_size": BATCH, **out}))

    @torch.no_grad()
    def encode(batches: Iterable[torch.Tensor]) -> None:
        each(map(model.encode, batches))

    others = {"the encoder alone": lambda: encode(images[: len(part)] for part in order)}
    others["and reading"] = lambda: encode(BatchLoader(dataset, order))
    compare(f"feature maps, {'packed' if packed else 'a file each'}", number, rounds, step, **others)


def packed_maps(folder: Path, number: int, rounds: int) -> None:
    """Random batches of packed maps."""
    maps = FeatureMapDataset(folder / "maps_True_0/dataset.json")
    order = chunks(np.random.default_rng(0).permutation(number), BATCH)
    files, rows = [open_rows(str(maps.path(index))) for index in range(number)], maps.rows.tolist()

    def plain(batch: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([files[index][rows[index]] for index in batch.tolist()]))

    ours, arrays = (lambda way=way: each(map(way, order)) for way in (maps.__getitem__, plain))
    ours()  # the first epoch compares all checksums
    compare("packed maps, of a data set", number, rounds, ours, **{"memory-mapped arrays": arrays})


def shards(folder: Path, number: int, rounds: int) -> None:
    """Images of shards in random order."""
    images = ImageDataset(folder / "shards.json")
    order = chunks(np.random.default_rng(0).permutation(number), BATCH)

    def plain() -> None:
        for path in sorted((folder / "shards").glob("*.tar")):
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.name.endswith(".png"):
                        image = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")
                        to_floats(np.asarray(image))

    ours = partial(each, BatchLoader(images, order))
    compare("images in shards, in random order", number, rounds, ours, **{"tarfile, in order": plain})


def main(argv: list[str] | None = None) -> None:
    """Measure everything in a temporary folder."""
    args = parse_options(Options, __doc__, argv)
    run = RunFolder(args.run)
    used = read_dataset(run.images, ("image_fpath",))[0][: args.images]
    size = len(used), args.rounds
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").symlink_to((run.images.parent / "images").resolve())
        write_dataset(folder / "dataset.json", used)
        write_dataset(folder / "shards.json", write_shards(used, folder, 1000))
        print_head("", "beside", "ours a second", "beside it", "share")
        for packed in (False, True):
            feature_maps(run, folder, *size, packed)
        packed_maps(folder, *size)
        shards(folder, *size)


if __name__ == "__main__":
    cli.run(main)
