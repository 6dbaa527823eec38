"""Step 2: encode every image into a feature map.

Reads a dataset.json of images and an autoencoder; writes one .npy a map and a dataset.json under --out-dir.

    python generate_fmap_dataset.py --dataset-path data/faces/dataset.json \
        --model-path out/faces/autoencoder/models_checkpoint/latest.pt --out-dir out/faces/feature_maps
"""

import utils.threads  # noqa: F401

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.autoencoder import Autoencoder
from utils import cli
from utils.attempt import attempt
from utils.dataset import BatchLoader, ImageDataset, chunks
from utils.device import choose_device, choose_workers
from utils.files import remove_unnamed, replace_file
from utils.index import write_dataset
from utils.options import StepOptions, option, parse_options
from utils.progress import progress
from utils.run_folder import StepFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(StepOptions):
    """Options of generate_fmap_dataset.py."""

    dataset_path: Path = option("dataset.json of images")
    model_path: Path = option("checkpoint of the autoencoder")
    batch_size: int = option("images encoded at once", 8, low=1)
    num_files_folder: int = option("maps in a folder", 1000, low=1)
    flip: bool = option("also write each image mirrored, marked flipped", False)


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    options = parse_options(Options, __doc__, argv)
    with attempt(__file__, options) as attempted:
        device = choose_device(options.device)
        model = Autoencoder.load(options.model_path).to(device)
        dataset = ImageDataset(options.dataset_path)
        model.check_image(dataset.shape, options.dataset_path)

        folder, records = StepFolder(options.out_dir), []

        attempted.begin(device)
        for index, flipped, fmap in encode_all(model, dataset, options, device):
            name = f"{len(records) // options.num_files_folder:04d}/{fmap_name(model, dataset, index, flipped)}.npy"
            with replace_file(folder.path / name, durable=False) as temporary:
                np.save(temporary, fmap)
            records.append(fmap_record(dataset, index, flipped, name, folder.path))
        write_dataset(folder.dataset, records, model.origin)
        remove_unnamed(folder.path, f"[0-9]*/{'[0-9a-f]' * 24}.npy", {record["fmap_path"] for record in records})
        log.info("wrote %d feature maps and %s", len(records), folder.dataset)


@torch.no_grad()
def encode_all(
    model: Autoencoder, dataset: ImageDataset, options: Options, device: torch.device
) -> Iterator[tuple[int, bool, np.ndarray]]:
    """Yield index, whether it is mirrored, and the feature map (C, H, W) of every image."""
    batches = chunks(np.arange(len(dataset)), options.batch_size)
    loader = BatchLoader(dataset, batches, choose_workers(None, device))
    bar = progress(loader, unit="batch", desc=options.out_dir.name)
    for indices, images in zip(batches, bar, strict=True):
        for flipped in (False, True) if options.flip else (False,):
            fmaps = model.encode((images.flip(-1) if flipped else images).to(device)).cpu().numpy()
            for index, fmap in zip(indices, fmaps, strict=True):
                yield int(index), flipped, fmap


def fmap_name(model: Autoencoder, dataset: ImageDataset, index: int, flipped: bool) -> str:
    """A name that no map of another autoencoder or image has: an earlier data set stays whole until it is replaced."""
    origin = f"{model.encoder_fingerprint} {dataset.paths[index].decode()} {flipped}"
    return hashlib.blake2b(origin.encode(), digest_size=12).hexdigest()


def fmap_record(dataset: ImageDataset, index: int, flipped: bool, name: str, out_dir: Path) -> dict:
    """The record of a feature map; `image_key`, the image's path as its data set writes it, decides the split."""
    return {
        "fmap_path": name,
        "image_path": Path(os.path.relpath(dataset.path(index), out_dir)).as_posix(),
        "image_key": dataset.paths[index].decode(),
        "labels": dataset.label(index),
        "flipped": flipped,
    }


if __name__ == "__main__":
    cli.run(main)
