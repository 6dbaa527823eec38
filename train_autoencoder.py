"""Step 1: train the autoencoder on a folder of images.

Reads a dataset.json of images; writes checkpoints, reconstructions (images/ground_truth_N.png, recon_N.png) and
metrics.jsonl under --out-dir.

    python train_autoencoder.py --dataset-path data/faces/dataset.json \
        --config-path configs/full-128/autoencoder.json --out-dir out/faces/autoencoder
"""

import utils.threads  # noqa: F401

import torch
import torch.nn.functional as F
from torch import nn

from models.autoencoder import KIND, Autoencoder, AutoencoderConfig, psnr
from utils import cli
from utils.attempt import attempt
from utils.checkpoint_folder import CheckpointFolder
from utils.config import load_config
from utils.dataset import ImageDataset
from utils.device import choose_device
from utils.gradient import GradientLearner
from utils.gradient import GradientOptions as Options
from utils.images import save_grid
from utils.metrics import Metrics
from utils.options import parse_options
from utils.training import mean_over, preview_indices, train


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    options = parse_options(Options, __doc__, argv)
    with attempt(__file__, options) as attempted:
        device = choose_device(options.device)
        config = load_config(options.config_path, AutoencoderConfig)
        dataset = ImageDataset(options.dataset_path)
        split = dataset.split(options.bounds)
        training, validation = split.training, split.validation

        torch.manual_seed(options.seed)
        autoencoder = Autoencoder(config).to(device, memory_format=torch.channels_last)
        autoencoder.check_image(dataset.shape, options.dataset_path)

        def reconstruction_loss(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
            images = images.to(memory_format=torch.channels_last)
            return {"loss": autoencoder.loss(model(images).float(), images)}

        steps = options.planned_steps(len(training))
        learner = GradientLearner(autoencoder, reconstruction_loss, config, options, steps, device)
        checkpoints = CheckpointFolder(options, KIND, config, {}, dataset, len(training))
        start = learner.start(checkpoints)

        @torch.no_grad()
        def reconstruct(images: torch.Tensor) -> torch.Tensor:
            with learner.autocast:
                return learner.best_model(images.to(device, memory_format=torch.channels_last)).float().cpu()

        def errors(images: torch.Tensor) -> dict[str, torch.Tensor]:
            made = reconstruct(images)
            return {"val_loss": autoencoder.loss(made, images), "val_mse": F.mse_loss(made, images)}

        def validate() -> dict[str, float]:
            found = mean_over(dataset, validation, options.batch_size, errors)
            return {**found, "val_psnr": psnr(found["val_mse"])} if found else {}

        def preview(step: int) -> None:
            save_grid(shown, checkpoints.folder.picture("ground_truth", step))
            save_grid(reconstruct(shown), checkpoints.folder.picture("recon", step))

        metrics = Metrics(options, len(training))

        attempted.begin(device, config, {"data": dataset.fingerprint})
        shown = dataset[preview_indices(training, validation, 25)]
        train(options, learner, dataset, training, checkpoints, metrics, start, validate, preview)


if __name__ == "__main__":
    cli.run(main)
