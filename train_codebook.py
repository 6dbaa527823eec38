"""Stage 3: train a codebook, a self-organizing map over the patches of feature maps.

Reads a dataset.json of feature maps and the autoencoder that made them; writes checkpoints, held-out images decoded
before and after quantization (images/image_plot_N.png, quant_image_plot_N.png) and metrics.jsonl under --out-dir.

    python train_codebook.py --dataset-path out/faces/feature_maps/dataset.json \
        --decoder-path out/faces/autoencoder/models_checkpoint/latest.pt \
        --config-path configs/full-128/codebook_0.json --max-epoch 5 --out-dir out/faces/codebook_0
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from models.autoencoder import Autoencoder
from models.codebook import KIND, Codebook, CodebookConfig
from models.map_learner import MapLearner
from utils import cli
from utils.checkpoint import check_origin
from utils.config import load_config
from utils.dataset import BatchLoader, FeatureMapDataset, steps_per_epoch
from utils.files import UserError
from utils.images import save_grid
from utils.training import Run, mean_over, planned_steps, preview_indices, train


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
    codebook = start_codebook(args, config, dataset, training).to(device)
    per_epoch = steps_per_epoch(len(training), args.batch_size)
    continued = args.codebook_path is not None
    learner = MapLearner(codebook, per_epoch, planned_steps(len(training), args), continued, args.lr_step)

    def validate() -> dict[str, float]:
        return mean_over(
            dataset, held_out, args, lambda fmap: {"val_loss": codebook.quantization_error(fmap.to(device))}
        )

    @torch.no_grad()
    def preview(step: int) -> None:
        save_grid(autoencoder.decode(shown).cpu(), run.image_path("image_plot", step))
        quantized = codebook.lookup(codebook.find_bmu(shown))
        save_grid(autoencoder.decode(quantized).cpu(), run.image_path("quant_image_plot", step))

    shown = dataset[preview_indices(training, dataset.unflipped(held_out), 25)].to(device)
    run = Run(args, KIND, config, {"autoencoder": autoencoder.fingerprint}, len(training))
    step = train(run, learner, dataset, training, device, validate, preview)
    if codebook.counts.sum() == 0:
        count(run, learner, dataset, step)


def start_codebook(
    args: argparse.Namespace, config: CodebookConfig, dataset: FeatureMapDataset, training: np.ndarray
) -> Codebook:
    """The codebook of `--codebook-path`, or a new one laid out over patches of the training maps."""
    if args.codebook_path is not None:
        codebook = Codebook.load(args.codebook_path)
        if codebook.config != config:
            raise UserError(f"{args.codebook_path}: was trained with another config than {args.config_path}")
        codebook.check_fits(args.codebook_path, dataset)
        return codebook
    codebook = Codebook(config)
    codebook.check_fits(args.config_path, dataset)
    codebook.start_from(start_patches(codebook, dataset, training, args.seed))
    return codebook


def start_patches(codebook: Codebook, dataset: FeatureMapDataset, training: np.ndarray, seed: int) -> torch.Tensor:
    """Patches of random training maps, (N, D) in random order: eight a unit, or all there are."""
    per_map = codebook.config.grid[0] * codebook.config.grid[1]
    if len(training) * per_map < len(codebook):
        raise UserError(
            f"'num_embeddings' is {len(codebook)}, but the data set has {len(training) * per_map} patches to train on: "
            "lower it or add images"
        )
    rng = np.random.default_rng(seed & 0xFFFFFFFF)
    chosen = rng.permutation(training)[: max(64, -(-8 * len(codebook) // per_map))]
    patches = codebook.patchify(dataset[chosen])
    return patches[torch.from_numpy(rng.permutation(len(patches)))]


def count(run: Run, learner: MapLearner, dataset: FeatureMapDataset, step: int) -> None:
    """Measure the map over the whole data set, and keep its counts in the last checkpoint."""
    batches = BatchLoader.in_order(dataset, 64, cli.choose_workers(None, learner.codebook.units.device))
    statistics = learner.codebook.statistics(tqdm(batches, unit="batch", desc="counting"))
    run.save(learner, step, statistics=statistics)
    run.write_metrics({"step": step, **statistics})


if __name__ == "__main__":
    cli.run(main)
