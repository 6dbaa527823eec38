r"""Step 4: drop the units of a codebook that the training maps hardly use.

Reads a dataset.json of feature maps and a codebook; writes models_checkpoint/pruned_codebook.pt and a line of
metrics.jsonl under --out-dir. The survivors keep their order, their vectors and their places on the map. With
--decoder-path, the table of before and after also reports the PSNR of held-out images, and the remaining units are
drawn (images/atlas_pruned.png, ...).

    python prune_codebook.py --dataset-path out/faces/feature_maps/dataset.json \
        --codebook-path out/faces/codebook_0/models_checkpoint/latest.pt --out-dir out/faces/codebook_0
"""

import utils.runtime.threads  # noqa: F401

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from models.autoencoder import Autoencoder
from models.codebook import KIND, Codebook
from models.som.pictures import save_map
from models.som.statistics import FEW_KEPT, FEW_KEPT_ADVICE, Statistics, count_maps, decoded_psnr, table
from utils.core.files import UserError
from utils.core.options import ScriptOptions, option, parse_options
from utils.core.provenance import check_origin
from utils.data.dataset import FeatureMapDataset
from utils.data.split import SplitOptions
from utils.runs.checkpoint import save_checkpoint
from utils.runs.folders import OutputFolder
from utils.runs.manifest import attempt
from utils.runtime import cli
from utils.runtime.device import choose_device
from utils.runtime.distributed import is_main
from utils.training.metrics import read_rows, write_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(SplitOptions, ScriptOptions):
    dataset_path: Path = option("dataset.json of feature maps")
    codebook_path: Path = option("checkpoint of the codebook")
    decoder_path: Path | None = option("checkpoint of the autoencoder: also measure images, and draw the map", None)
    batch_size: int = option("feature maps at once", 8, low=1)
    prune_threshold: int = option(
        "smallest number of training patches that keeps a unit", 10, low=0, exclusive="amount", is_fixed=True
    )
    keep: int | None = option(
        "most used units to keep, instead of a threshold", None, low=1, exclusive="amount", is_fixed=True
    )


def main(argv: list[str] | None = None) -> None:
    prune_codebook(parse_options(Options, __doc__, argv))


def prune_codebook(options: Options) -> None:
    """Write the codebook without the units that are hardly used; raises `UserError` if it would keep less than two."""
    with attempt(__file__, options) as attempted:
        device = choose_device(options.device)
        dataset = FeatureMapDataset(options.dataset_path)
        codebook = Codebook.load(options.codebook_path).to(device)
        codebook.check_fits(options.codebook_path, dataset.shape, dataset.origin)
        autoencoder = options.decoder_path and Autoencoder.load(options.decoder_path).to(device)
        if autoencoder is not None:
            check_origin(options.codebook_path, codebook.origin, autoencoder.origin)
            dataset.check_origin(autoencoder.origin)

        split = dataset.split(options.bounds)

        def statistics_of(codebook: Codebook, title: str) -> Statistics:
            census = count_maps(codebook, dataset, split.training, options.batch_size, title)
            statistics = census.statistics(codebook)
            if autoencoder is not None and is_main():
                statistics |= decoded_psnr(autoencoder, codebook, dataset, split.measured)
            return statistics

        inputs = {"codebook": codebook.fingerprint, "data": dataset.fingerprint}
        attempted.check_repeats(inputs, dataset.verify)
        attempted.agree(inputs=inputs)
        before = statistics_of(codebook, "before pruning")
        pruned = codebook.prune(choose(options, codebook.counts))

        attempted.begin(device, inputs=inputs)
        bounds, change = codebook.learned.continued(options.bounds, dataset.fingerprint)
        if change:
            log.warning("%s: %s", options.codebook_path, change)
        after = before if len(pruned) == len(codebook) else statistics_of(pruned, "after pruning")
        if not is_main():
            return
        log.info("statistics\n%s", table(before=before, after=after))
        folder = OutputFolder(options.out_dir)
        if autoencoder is not None:
            save_map(pruned, autoencoder, folder, "pruned")
        rest = {"statistics": after, "statistics_before": before, "data": dataset.fingerprint}
        rest |= {"bounds": tuple(bounds)}
        save_checkpoint(folder.pruned, KIND, pruned.config, pruned.state_dict(), codebook.origin, **rest)
        rows = [row for row in read_rows(folder.metrics) if "pruned_units" not in row]  # without an earlier pruning
        rows.append({"step": codebook.step} | {f"pruned_{key}": value for key, value in after.items()})
        write_rows(folder.metrics, rows)
        log.info("kept %d of %d units: wrote %s", len(pruned), len(codebook), folder.pruned)
        if options.keep is None and len(pruned) < FEW_KEPT * len(codebook):
            patches = f"{int(codebook.counts.sum())} training patches are too few for {len(codebook)} units"
            log.warning("kept only %d of %d units: %s. %s", len(pruned), len(codebook), patches, FEW_KEPT_ADVICE)


def choose(options: Options, counts: torch.Tensor) -> torch.Tensor:
    ranked = counts.sort(descending=True, stable=True)
    if options.keep is not None:
        if not 2 <= options.keep <= len(counts):
            units = f"{options.codebook_path} has {len(counts)} units"
            raise UserError(f"--keep {options.keep}: {units}; give a number from 2 to {len(counts)}")
        return torch.isin(torch.arange(len(counts), device=counts.device), ranked.indices[: options.keep])
    keep = counts >= options.prune_threshold
    if keep.sum() < 2:
        left = f"{int(keep.sum())} of {len(counts)} units of {options.codebook_path}"
        most = int(ranked.values[1])
        raise UserError(f"--prune-threshold {options.prune_threshold} would leave {left}: give at most {most}")
    return keep


if __name__ == "__main__":
    cli.run(main)
