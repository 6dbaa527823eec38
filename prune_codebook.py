"""Stage 4: drop the units of a codebook that the data hardly uses.

Reads a dataset.json of feature maps and a codebook; writes models_checkpoint/pruned_codebook.pt under --out-dir. The
survivors keep their order, their vectors and their places on the map.

    python prune_codebook.py --dataset-path out/faces/feature_maps/dataset.json \
        --codebook-path out/faces/codebook_0/models_checkpoint/latest.pt --out-dir out/faces/codebook_0
"""

from pathlib import Path

from tqdm import tqdm

from models.codebook import KIND, Codebook
from utils import cli
from utils.checkpoint import save_checkpoint
from utils.dataset import BatchLoader, FeatureMapDataset
from utils.files import UserError


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    parser = cli.recipe_parser(__doc__)
    parser.add_argument("--dataset-path", type=Path, required=True, help="dataset.json of feature maps")
    parser.add_argument("--codebook-path", type=Path, required=True, help="checkpoint of the codebook")
    parser.add_argument("--batch-size", type=cli.positive_int, default=8, help="feature maps at once [8]")
    parser.add_argument("--prune-threshold", type=cli.natural_int, default=10, help="least use of a unit to stay [10]")
    args = parser.parse_args(argv)
    device = cli.choose_device(args.device)
    dataset = FeatureMapDataset(args.dataset_path)
    codebook = Codebook.load(args.codebook_path).to(device)
    codebook.check_fits(args.codebook_path, dataset)
    cli.start_log(args, "prune")

    def measure(codebook: Codebook, title: str) -> dict[str, float]:
        batches = BatchLoader.in_order(dataset, args.batch_size, cli.choose_workers(None, device))
        return codebook.statistics(tqdm(batches, unit="batch", desc=title))

    before = measure(codebook, "before pruning")
    keep = codebook.counts >= args.prune_threshold
    if keep.sum() < 2:
        most = int(codebook.counts.sort(descending=True).values[1])
        raise UserError(
            f"--prune-threshold {args.prune_threshold} would leave {int(keep.sum())} of {len(codebook)} units of "
            f"{args.codebook_path}: give at most {most}"
        )
    pruned = codebook.prune(keep)
    after = measure(pruned, "after pruning")
    for key, value in before.items():
        cli.log.info("%-20s before %-10.5g after %.5g", key, value, after[key])
    path = args.out_dir / "models_checkpoint" / "pruned_codebook.pt"
    rest = {"trained_from": {"autoencoder": codebook.autoencoder}, "statistics": after, "statistics_before": before}
    save_checkpoint(path, KIND, pruned.config, pruned.state_dict(), **rest)
    cli.log.info("kept %d of %d units: wrote %s", len(pruned), len(codebook), path)


if __name__ == "__main__":
    cli.run(main)
