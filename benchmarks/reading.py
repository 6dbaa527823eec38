"""How fast images and feature maps are read and written, beside the least that this could take.

    python -m benchmarks.reading out/demo-avatars

Reads a folder that scripts/demo.sh has left; writes to a temporary folder. Prints items a second, medians of rounds in
which the ways take turns, and the share of the plain way that is left:

- feature maps: step 2, from images to its index, beside the encoder alone, and beside reading and encoding alone
- packed maps: random batches in an epoch after the first one, beside rows of memory-mapped arrays
- images in shards: an epoch in its random order, beside Python's tarfile in the order of the files; both decode them
"""

import argparse
import io
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

import generate_fmap_dataset
from models.autoencoder import Autoencoder
from scripts.make_dataset import write_shards
from utils.dataset import BatchLoader, FeatureMapDataset, ImageDataset, chunks
from utils.index import read_dataset, write_dataset
from utils.map_files import open_rows
from utils.run_folder import RunFolder

BATCH = 64
CPU = torch.device("cpu")


def rates(number: int, rounds: int, **ways: Callable[[], object]) -> dict[str, float]:
    """Items a second of each way to do `number` items: the median of rounds in which the ways take turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            since = time.perf_counter()
            way()
            found[name].append(number / (time.perf_counter() - since))
    return {name: median(values) for name, values in found.items()}


def row(what: str, found: dict[str, float]) -> str:
    """A row of the table."""
    ours, plain = found.values()
    return f"| {what} | {' | '.join(found)} | {ours:.0f} | {plain:.0f} | {100 * ours / plain:.0f} % |"


def feature_maps(run: RunFolder, folder: Path, number: int, rounds: int, packed: bool) -> str:
    """Step 2 beside the encoder alone."""
    model, dataset = Autoencoder.load(run.autoencoder.latest), ImageDataset(folder / "dataset.json")
    images = dataset[np.arange(min(BATCH, number))]
    count = iter(range(rounds))

    def step() -> None:
        words = ["--dataset-path", folder / "dataset.json", "--model-path", run.autoencoder.latest, "--device", "cpu"]
        words += ["--batch-size", BATCH, "--out-dir", folder / f"maps_{packed}_{next(count)}"]
        generate_fmap_dataset.main([str(word) for word in [*words, *(["--packed"] if packed else [])]])

    @torch.no_grad()
    def alone() -> None:
        for batch in chunks(np.arange(number), BATCH):
            model.encode(images[: len(batch)])

    @torch.no_grad()
    def read() -> None:
        for batch in BatchLoader(dataset, chunks(np.arange(number), BATCH)):
            model.encode(batch)

    way = "packed" if packed else "a file each"
    found = rates(number, rounds, **{"step 2": step, "the encoder alone": alone, "and reading": read})
    names = list(found)
    pairs = [{name: found[name] for name in (names[0], other)} for other in names[1:]]
    return "\n".join(row(f"feature maps, {way}", pair) for pair in pairs)


def packed_maps(folder: Path, number: int, rounds: int) -> str:
    """Random batches of packed maps."""
    maps = FeatureMapDataset(folder / "maps_True_0/dataset.json")
    order = chunks(np.random.default_rng(0).permutation(number), BATCH)
    for batch in order:  # the first epoch compares all checksums
        maps[batch]
    files = [open_rows(str(maps.path(index))) for index in range(number)]
    rows = maps.rows.tolist()

    def plain() -> None:
        for batch in order:
            torch.from_numpy(np.stack([files[index][rows[index]] for index in batch.tolist()]))

    def ours() -> None:
        for batch in order:
            maps[batch]

    return row("packed maps", rates(number, rounds, **{"a data set": ours, "memory-mapped arrays": plain}))


def shards(folder: Path, number: int, rounds: int) -> str:
    """Images of shards in random order."""
    images = ImageDataset(folder / "shards.json")
    order = chunks(np.random.default_rng(0).permutation(number), BATCH)
    paths = sorted((folder / "shards").glob("*.tar"))

    def ours() -> None:
        for _ in BatchLoader(images, order):
            pass

    def plain() -> None:
        for path in paths:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.name.endswith(".png"):
                        image = np.array(Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB"))
                        pixels = torch.from_numpy(image).permute(2, 0, 1)
                        pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)

    return row("images in shards", rates(number, rounds, **{"random order": ours, "tarfile, in order": plain}))


def main() -> None:
    """Measure everything in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that scripts/demo.sh has left")
    parser.add_argument("--images", type=int, default=4000, help="images that are read, at most [4000]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which the ways take turns [5]")
    args = parser.parse_args()
    run = RunFolder(args.run)
    found, _ = read_dataset(run.images, ("image_fpath",))
    used = found[: args.images]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").symlink_to((run.images.parent / "images").resolve())
        write_dataset(folder / "dataset.json", used)
        write_dataset(folder / "shards.json", write_shards(used, folder, 1000))
        lines = [feature_maps(run, folder, len(used), args.rounds, packed) for packed in (False, True)]
        lines += [packed_maps(folder, len(used), args.rounds), shards(folder, len(used), args.rounds)]
    print("| | ours | beside | ours a second | beside it | share |\n" + "|---" * 6 + "|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
