"""Stage 4: drop the units of a codebook that the data hardly uses.

Reads a dataset.json of feature maps and a codebook; writes models_checkpoint/pruned_codebook.pt and a line of
metrics.jsonl under --out-dir. The survivors keep their order, their vectors and their places on the map. With
--decoder-path, the table of before and after also tells the PSNR of held-out images, and what is left is drawn
(images/atlas_pruned.png, ...).

    python prune_codebook.py --dataset-path out/faces/feature_maps/dataset.json \
        --codebook-path out/faces/codebook_0/models_checkpoint/latest.pt --out-dir out/faces/codebook_0
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from models.autoencoder import Autoencoder
from models.codebook import KIND, Codebook
from models.map_pictures import save_map
from models.map_statistics import Census, Statistics, decoded_psnr, table
from utils import cli
from utils.checkpoint import check_origin, load_checkpoint, save_checkpoint
from utils.dataset import BatchLoader, FeatureMapDataset
from utils.files import UserError
from utils.training import MAX_VALIDATION, append_metrics


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    parser = cli.recipe_parser(__doc__)
    parser.add_argument("--dataset-path", type=Path, required=True, help="dataset.json of feature maps")
    parser.add_argument("--codebook-path", type=Path, required=True, help="checkpoint of the codebook")
    parser.add_argument("--decoder-path", type=Path, help="checkpoint of the autoencoder, to measure images")
    parser.add_argument("--batch-size", type=cli.positive_int, default=8, help="feature maps at once [8]")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--prune-threshold", type=cli.natural_int, default=10, help="least use of a unit to stay [10]")
    amount.add_argument("--keep", type=cli.positive_int, help="units that stay, the most used, instead of a threshold")
    parser.add_argument(
        "--val-fraction", type=cli.fraction, default=cli.VAL_FRACTION, help="share of images held out [0.05]"
    )
    args = parser.parse_args(argv)
    device = cli.choose_device(args.device)
    dataset = FeatureMapDataset(args.dataset_path)
    codebook = Codebook.load(args.codebook_path).to(device)
    codebook.check_fits(args.codebook_path, dataset)
    autoencoder = args.decoder_path and load_decoder(args, codebook).to(device)
    cli.start_log(args, "prune")

    def measure(codebook: Codebook, title: str) -> Statistics:
        batches = BatchLoader.in_order(dataset, args.batch_size, cli.choose_workers(None, device))
        statistics = Census(codebook, tqdm(batches, unit="batch", desc=title)).statistics()
        if autoencoder is not None:
            _, held_out = dataset.split(args.val_fraction)
            statistics |= decoded_psnr(autoencoder, codebook, dataset, held_out[:MAX_VALIDATION])
        return statistics

    before = measure(codebook, "before pruning")
    pruned = codebook.prune(choose(args, codebook.counts))
    after = measure(pruned, "after pruning")
    cli.log.info("statistics\n%s", table(before=before, after=after))
    path = args.out_dir / "models_checkpoint" / "pruned_codebook.pt"
    rest = {"trained_from": {"autoencoder": codebook.autoencoder}, "statistics": after, "statistics_before": before}
    save_checkpoint(path, KIND, pruned.config, pruned.state_dict(), **rest)
    row = {"step": load_checkpoint(args.codebook_path, KIND).get("step", 0)}  # of the training that made the codebook
    append_metrics(args.out_dir / "metrics.jsonl", row | {f"pruned_{key}": value for key, value in after.items()})
    if autoencoder is not None:
        save_map(pruned, autoencoder, args.out_dir / "images", "pruned")
    cli.log.info("kept %d of %d units: wrote %s", len(pruned), len(codebook), path)


def load_decoder(args: argparse.Namespace, codebook: Codebook) -> Autoencoder:
    """The autoencoder of `--decoder-path`, if it is the one that the codebook's feature maps are of."""
    autoencoder = Autoencoder.load(args.decoder_path)
    check_origin(args.codebook_path, "autoencoder", codebook.autoencoder, autoencoder.fingerprint)
    return autoencoder


def choose(args: argparse.Namespace, counts: torch.Tensor) -> torch.Tensor:
    """Which units (K,) bool stay, by their counts."""
    if args.keep is not None:
        if not 2 <= args.keep <= len(counts):
            raise UserError(
                f"--keep {args.keep} is not possible: {args.codebook_path} has {len(counts)} units; give 2 to that many"
            )
        keep = torch.zeros_like(counts, dtype=torch.bool)
        keep[counts.sort(descending=True, stable=True).indices[: args.keep]] = True
        return keep
    keep = counts >= args.prune_threshold
    if keep.sum() < 2:
        most = int(counts.sort(descending=True).values[1])
        raise UserError(
            f"--prune-threshold {args.prune_threshold} would leave {int(keep.sum())} of {len(counts)} units of "
            f"{args.codebook_path}: give at most {most}"
        )
    return keep


if __name__ == "__main__":
    cli.run(main)
