"""Stage 2: encode every image into a feature map.

Reads a dataset.json of images and an autoencoder; writes one .npy a map and a dataset.json under --out-dir.

    python generate_fmap_dataset.py --dataset-path data/faces/dataset.json \
        --model-path out/faces/autoencoder/models_checkpoint/latest.pt --out-dir out/faces/feature_maps
"""

import argparse
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from models.autoencoder import Autoencoder
from utils import cli
from utils.dataset import BatchLoader, ImageDataset, chunks, write_dataset
from utils.files import remove_unnamed, replace_file


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    parser = cli.recipe_parser(__doc__)
    parser.add_argument("--dataset-path", type=Path, required=True, help="dataset.json of images")
    parser.add_argument("--model-path", type=Path, required=True, help="checkpoint of the autoencoder")
    parser.add_argument("--batch-size", type=cli.positive_int, default=8, help="images encoded at once [8]")
    parser.add_argument("--num-files-folder", type=cli.positive_int, default=1000, help="maps in a folder [1000]")
    parser.add_argument("--flip", action="store_true", help="also write each image mirrored, marked flipped")
    args = parser.parse_args(argv)
    device = cli.choose_device(args.device)
    model = Autoencoder.load(args.model_path).to(device)
    dataset = ImageDataset(args.dataset_path)
    model.check_image(dataset.shape, args.dataset_path)
    cli.start_log(args, "generate")

    records = []
    for index, flipped, fmap in encode_all(model, dataset, args, device):
        name = f"{len(records) // args.num_files_folder:04d}/{fmap_name(model, dataset, index, flipped)}.npy"
        with replace_file(args.out_dir / name, durable=False) as temporary:
            np.save(temporary, fmap)
        records.append(fmap_record(dataset, index, flipped, name, args.out_dir))
    write_dataset(args.out_dir / "dataset.json", records, {"autoencoder": model.fingerprint})
    remove_unnamed(args.out_dir, f"[0-9]*/{'[0-9a-f]' * 24}.npy", {record["fmap_path"] for record in records})
    cli.log.info("wrote %d feature maps and %s", len(records), args.out_dir / "dataset.json")


@torch.no_grad()
def encode_all(
    model: Autoencoder, dataset: ImageDataset, args: argparse.Namespace, device: torch.device
) -> Iterator[tuple[int, bool, np.ndarray]]:
    """Yield index, whether it is mirrored, and the feature map (C, H, W) of every image."""
    batches = chunks(np.arange(len(dataset)), args.batch_size)
    loader = BatchLoader(dataset, batches, cli.choose_workers(None, device))
    for indices, images in zip(batches, tqdm(loader, unit="batch", desc=args.out_dir.name), strict=True):
        for flipped in (False, True) if args.flip else (False,):
            fmaps = model.encode((images.flip(-1) if flipped else images).to(device)).cpu().numpy()
            for index, fmap in zip(indices, fmaps, strict=True):
                yield int(index), flipped, fmap


def fmap_name(model: Autoencoder, dataset: ImageDataset, index: int, flipped: bool) -> str:
    """A name that no map of another autoencoder or image has: an earlier data set stays whole until it is replaced."""
    origin = f"{model.fingerprint} {dataset.paths[index].decode()} {flipped}"
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
