"""Stage 3: train a codebook, a self-organizing map over the patches of feature maps.

Reads a dataset.json of feature maps and the autoencoder that made them; writes checkpoints, held-out images decoded
before and after quantization (images/image_plot_N.png, quant_image_plot_N.png, and with the originals
comparison_N.png), pictures of the map (atlas_N.png, u_matrix_N.png, hit_map_N.png) and metrics.jsonl under --out-dir.

    python train_codebook.py --dataset-path out/faces/feature_maps/dataset.json \
        --decoder-path out/faces/autoencoder/models_checkpoint/latest.pt \
        --config-path configs/full-128/codebook_0.json --max-epoch 5 --out-dir out/faces/codebook_0
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from models.autoencoder import Autoencoder
from models.codebook import KIND, Codebook, CodebookConfig
from models.map_learner import MapLearner, draw_sample, sample_size
from models.map_order import arrange
from models.map_pictures import save_map
from models.map_statistics import Census, decoded_psnr, table
from utils import cli
from utils.checkpoint import check_origin
from utils.config import load_config
from utils.dataset import BatchLoader, FeatureMapDataset, steps_per_epoch
from utils.files import UserError
from utils.images import save_grid
from utils.training import MAX_VALIDATION, Run, mean_over, planned_steps, preview_indices, train

COMPARED = 10  # images in the picture of truth, reconstruction and quantization
COUNTED = 2**18  # numbers of feature maps at once, when the map is measured


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    parser = cli.recipe_parser(__doc__)
    cli.add_training_flags(parser, lr_step=100_000)
    parser.add_argument("--decoder-path", type=Path, required=True, help="checkpoint of the autoencoder")
    parser.add_argument("--codebook-path", type=Path, help="go on from this codebook")
    args = parser.parse_args(argv)
    cli.check_start(args, "codebook-path")
    device = cli.choose_device(args.device)
    config = load_config(args.config_path, CodebookConfig)
    dataset = FeatureMapDataset(args.dataset_path)
    autoencoder = Autoencoder.load(args.decoder_path).to(device)
    check_origin(args.dataset_path, "autoencoder", dataset.autoencoder, autoencoder.fingerprint)
    training, held_out = dataset.split(args.val_fraction)
    cli.start_log(args, "train")

    torch.manual_seed(args.seed)
    codebook, sample = start_codebook(args, config, dataset, training, device)
    steps = (steps_per_epoch(len(training), args.batch_size), planned_steps(len(training), args))
    learner = MapLearner(codebook, *steps, args.codebook_path is not None, args.lr_step, sample)

    def validate() -> dict[str, float]:
        return mean_over(
            dataset, held_out, args, lambda fmap: {"val_loss": codebook.quantization_error(fmap.to(device))}
        )

    @torch.no_grad()
    def preview(step: int) -> None:
        decoded = [autoencoder.decode(given).cpu() for given in (maps, codebook.lookup(codebook.find_bmu(maps)))]
        save_grid(decoded[0], run.image_path("image_plot", step))
        save_grid(decoded[1], run.image_path("quant_image_plot", step))
        rows = [*truth, *(images[:COMPARED] for images in decoded)]
        save_grid(torch.cat(rows), run.image_path("comparison", step), columns=len(rows[0]))
        if step < run.total_steps:  # at the end it is drawn once it is arranged and counted
            save_map(codebook, autoencoder, args.out_dir / "images", step)

    shown = preview_indices(training, dataset.unflipped(held_out), 25)
    maps = dataset[shown].to(device)
    pictured = dataset.with_image(shown[:COMPARED])
    truth = [dataset.images(pictured, autoencoder.scale)] if len(pictured) == len(shown[:COMPARED]) else []
    run = Run(args, KIND, config, {"autoencoder": autoencoder.fingerprint}, len(training))
    step = train(run, learner, dataset, training, device, validate, preview)
    if codebook.counts.sum() == 0:
        finish(run, learner, autoencoder, dataset, held_out[:MAX_VALIDATION], step)


def start_codebook(
    args: argparse.Namespace,
    config: CodebookConfig,
    dataset: FeatureMapDataset,
    training: np.ndarray,
    device: torch.device,
) -> tuple[Codebook, torch.Tensor | None]:
    """The codebook of `--codebook-path`, or a new one laid out over a sample of patches of the training maps."""
    if args.codebook_path is not None:
        codebook = Codebook.load(args.codebook_path)
        if codebook.config != config:
            raise UserError(f"{args.codebook_path}: was trained with another config than {args.config_path}")
        codebook.check_fits(args.codebook_path, dataset)
        return codebook.to(device), None
    codebook = Codebook(config)
    codebook.check_fits(args.config_path, dataset)
    sample = start_patches(codebook, dataset, training, args)
    codebook.start_from(sample)  # not every device has what principal components need
    return codebook.to(device), sample.to(device)


def start_patches(
    codebook: Codebook, dataset: FeatureMapDataset, training: np.ndarray, args: argparse.Namespace
) -> torch.Tensor:
    """Patches of random training maps, (N, D) in random order: a few a unit, or all there are."""
    per_map = math.prod(codebook.config.grid)
    if len(training) * per_map < len(codebook):
        raise UserError(
            f"'num_embeddings' is {len(codebook)}, but the data set has {len(training) * per_map} patches to train on: "
            "lower it or add images"
        )
    wanted = sample_size(codebook.config, planned_steps(len(training), args) * args.batch_size * per_map)
    return draw_sample(codebook, dataset, training, wanted, args.seed)


def finish(
    run: Run, learner: MapLearner, autoencoder: Autoencoder, dataset: FeatureMapDataset, held_out: np.ndarray, step: int
) -> None:
    """Measure the map over the whole data set, put it in order, and keep numbers and counts in the last checkpoint."""
    codebook = learner.codebook
    at_once = max(1, COUNTED // math.prod(dataset.shape))
    batches = BatchLoader.in_order(dataset, at_once, cli.choose_workers(None, codebook.units.device))
    census = Census(codebook, tqdm(batches, unit="batch", desc="counting"))
    codebook.coordinates.copy_(arrange(codebook.coordinates, census.pairs))
    statistics = census.statistics()
    run.save(learner, step, statistics=statistics)  # before an image that has become unreadable can stop it
    save_map(codebook, autoencoder, run.args.out_dir / "images", step)
    statistics |= decoded_psnr(autoencoder, codebook, dataset, held_out)
    cli.log.info("statistics over %d patches\n%s", census.number, table(codebook=statistics))
    run.save(learner, step, statistics=statistics)
    run.write_metrics({"step": step, **statistics})
    run.show(step)


if __name__ == "__main__":
    cli.run(main)
