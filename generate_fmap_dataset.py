r"""Step 2: encode every image into a feature map.

Reads a dataset.json of images and an autoencoder; writes a .npy for each map, or with --packed for each folder of maps,
and a dataset.json under --out-dir.

    python generate_fmap_dataset.py --dataset-path data/faces/dataset.json \
        --model-path out/faces/autoencoder/models_checkpoint/latest.pt --out-dir out/faces/feature_maps
"""

import utils.runtime.threads  # noqa: F401

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from models.autoencoder import Autoencoder
from utils.core.files import UserError, remove_unnamed
from utils.core.options import ScriptOptions, option, parse_options
from utils.data.batches import BatchLoader, chunks
from utils.data.dataset import FeatureMapDataset, ImageDataset
from utils.data.dataset_json import write_dataset
from utils.data.feature_maps import MapFiles, PackedMaps
from utils.data.journal import Journal
from utils.data.records import image_key, read_packed
from utils.runs.folders import OutputFolder
from utils.runs.manifest import FINISHED, attempt, note, read_attempts
from utils.runtime import cli
from utils.runtime.device import choose_device, choose_workers
from utils.runtime.distributed import barrier, is_main, my_items
from utils.runtime.progress import progress

log = logging.getLogger(__name__)

REACH = 10  # an image is moved by at most 1 / REACH of its height and width
View = tuple[bool, int]  # of an image: whether it is mirrored, and its number among the moved ones, 0 if not moved


@dataclass(frozen=True, kw_only=True)
class Options(ScriptOptions):
    dataset_path: Path = option("dataset.json of images")
    model_path: Path = option("checkpoint of the autoencoder")
    batch_size: int = option("images encoded at once", 8, low=1, is_fixed=True)  # the order of the maps follows it
    num_files_folder: int = option("maps in a folder", 1000, low=1, is_fixed=True)
    flip: bool = option(
        "also write each image mirrored, marked flipped; for an autoencoder trained with --flip", False, is_fixed=True
    )
    num_moved: int = option(
        "also write each image so many times moved by up to a tenth of its size, and with --flip every second one "
        "mirrored; stages after the base stage learn from these too, which helps where images are few and not aligned",
        0,
        low=0,
        high=1000,
        is_fixed=True,
    )
    packed: bool = option("write one array for each folder instead of a file for each map", False, is_fixed=True)
    dtype: str = option(
        "numbers of a map; float16 needs half the disk", "float32", choices=("float32", "float16"), is_fixed=True
    )

    @property
    def views(self) -> tuple[View, ...]:
        moved = ((self.flip and number % 2 == 0, number) for number in range(1, self.num_moved + 1))
        return ((False, 0), *([(True, 0)] if self.flip else []), *moved)


def main(argv: list[str] | None = None) -> None:
    generate_fmap_dataset(parse_options(Options, __doc__, argv))


def generate_fmap_dataset(options: Options) -> None:
    """Encode all images of a data set; raises `UserError` if they do not fit the autoencoder."""
    with attempt(__file__, options) as attempted:
        device = choose_device(options.device)
        model = Autoencoder.load(options.model_path).to(device)
        if options.flip and not model.flip:
            advice = "train it with --flip, or leave --flip out here"
            raise UserError(f"--flip: {options.model_path} has not learned from mirror images; {advice}")
        dataset = ImageDataset(options.dataset_path)
        model.check_image(dataset.shape, options.dataset_path)
        folder, inputs = OutputFolder(options.out_dir), model.origin | {"data": dataset.fingerprint}
        attempted.check_repeats(inputs, dataset.verify)
        finished = finished_batches(folder, len(dataset), options)

        attempted.begin(device, inputs=inputs)
        key = attempted.key(inputs) | {"device": str(device)}
        journal = Journal(folder.unfinished, key, finished)
        note(folder, goes_on=bool(journal.entries))
        batches = chunks(np.arange(len(dataset)), options.batch_size)
        # A batch is made again as a whole: in a smaller one its maps would differ by rounding.
        missing = journal.missing({str(batch[0]): batch for batch in batches})
        write_maps(model, dataset, missing, journal, key, options)
        if not is_main():
            return
        images = ((index, view) for batch in batches for view in options.views for index in batch.tolist())
        places = (place for batch in batches for place in journal.entries[str(batch[0])]["places"])
        pairs = zip(images, places, strict=True)
        folders = joined_folders(dataset.folder, folder.path)
        records = (fmap_record(dataset, *image, *place, *folders) for image, place in pairs)
        write_dataset(folder.dataset, records, model.origin | {"images": dataset.fingerprint["images"]})
        names = {name for entry in journal.entries.values() for name, *_ in entry["places"]}
        remove_unnamed(folder.path, f"[0-9]*/{'[0-9a-f]' * 24}.npy", names)
        folder.unfinished.unlink()
        log.info("wrote %d feature maps and %s", len(dataset) * len(options.views), folder.dataset)


def finished_batches(folder: OutputFolder, num_images: int, options: Options) -> dict[str, dict]:
    """The entries for a journal of an existing data set, if the last attempt has finished it, from the same inputs."""
    attempts, views = read_attempts(folder), len(options.views)
    if options.overwrite or not attempts or attempts[-1].outcome != FINISHED or not folder.dataset.is_file():
        return {}
    records = read_packed(folder.dataset, FeatureMapDataset.required)
    places = [(record["fmap_path"], record.get("row"), record["checksum"]) for record in records]
    starts = range(0, num_images, options.batch_size) if len(places) == num_images * views else ()
    return {str(start): {"places": places[start * views :][: options.batch_size * views]} for start in starts}


@torch.no_grad()
def write_maps(
    model: Autoencoder, dataset: ImageDataset, batches: list[np.ndarray], journal: Journal, key: dict, options: Options
) -> None:
    total, shape = len(dataset) * len(options.views), model.fmap_shape(dataset.shape)
    where, mine = (options.out_dir, options.num_files_folder), my_items(batches)
    maps = PackedMaps(*where, total, shape, options.dtype, key) if options.packed else MapFiles(*where)
    if batches and options.packed and is_main():
        maps.make()
    barrier()
    device = next(model.parameters()).device
    loader = BatchLoader(dataset, mine, choose_workers(None, device))
    for batch, images in zip(mine, progress(loader, unit="batch", desc=options.out_dir.name), strict=True):
        seen = (augment(images, batch, view) for view in options.views)
        fmaps = np.concatenate([model.encode(part.to(device)).cpu().numpy() for part in seen])  # (N, C, H, W)
        first = int(batch[0]) * len(options.views)
        journal.add({str(batch[0]): maps.write(fmaps.astype(options.dtype), first)})
    journal.collect()


def augment(images: torch.Tensor, indices: np.ndarray, view: View) -> torch.Tensor:
    """Images (B, 3, H, W) of these indices, as one view has them; edges are repeated where an image was moved away."""
    flipped, moved = view
    images = images.flip(-1) if flipped else images
    if not moved:
        return images
    height, width = images.shape[2:]
    down, right = height // REACH, width // REACH
    padded = F.pad(images, (right, right, down, down), mode="replicate")
    starts = [
        np.random.default_rng((int(index), moved)).integers(0, (2 * down + 1, 2 * right + 1)) for index in indices
    ]
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, starts, strict=True)])


def joined_folders(images: Path, maps: Path) -> tuple[Path, Path]:
    """Both folders so that the way from one to the other is right: without links where one of them misleads ".."."""
    images, maps = images.absolute(), maps.absolute()
    if images.drive == maps.drive and (maps / os.path.relpath(images, maps)).resolve() != images.resolve():
        return images.resolve(), maps.resolve()
    return images, maps


def fmap_record(
    dataset: ImageDataset, index: int, view: View, name: str, row: int | None, expected: str, images: Path, maps: Path
) -> dict:
    """The record of a feature map, which is a file or a row of the array in it; its `image_key` is split by hash.

    `images` and `maps` are the folders of both data sets, as `joined_folders` returns them.
    """
    image = dataset.records[index]
    path = images / image[dataset.records.key]
    if path.drive == maps.drive:  # Windows has no way from one to another
        path = Path(os.path.relpath(path, maps))
    record = {"fmap_path": name, "checksum": expected, "image_path": path.as_posix(), "image_key": image_key(image)}
    flipped, moved = view
    record |= {"labels": image.get("labels", []), "flipped": flipped} | ({"moved": moved} if moved else {})
    record |= {name: image[name] for name in ("offset", "size", "group", "original_path") if name in image}
    return record | ({} if row is None else {"row": row})


if __name__ == "__main__":
    cli.run(main)
