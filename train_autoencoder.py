"""Stage 1: train the autoencoder on a folder of images.

Reads a dataset.json of images; writes checkpoints, reconstructions (images/ground_truth_N.png, recon_N.png) and
metrics.jsonl under --out-dir.

    python train_autoencoder.py --dataset-path data/faces/dataset.json \
        --config-path configs/full-128/autoencoder.json --out-dir out/faces/autoencoder
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.autoencoder import KIND, Autoencoder, AutoencoderConfig, psnr
from utils import cli
from utils.config import load_config
from utils.dataset import ImageDataset
from utils.gradient import GradientLearner
from utils.images import save_grid
from utils.training import Run, mean_over, planned_steps, preview_indices, train


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    parser = cli.recipe_parser(__doc__)
    cli.add_training_flags(parser, lr_step=50_000)
    cli.add_gradient_flags(parser)
    args = parser.parse_args(argv)
    cli.check_start(args, "model-path")
    device = cli.choose_device(args.device)
    config = load_config(args.config_path, AutoencoderConfig)
    dataset = ImageDataset(args.dataset_path)
    training, held_out = dataset.split(args.val_fraction)
    cli.start_log(args, "train")

    torch.manual_seed(args.seed)
    autoencoder = Autoencoder(config).to(device, memory_format=torch.channels_last)
    autoencoder.check_image(dataset.shape, args.dataset_path)

    def measure(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
        images = images.to(memory_format=torch.channels_last)
        return {"loss": autoencoder.loss(model(images).float(), images)}

    learner = GradientLearner(autoencoder, measure, config, args, planned_steps(len(training), args), device)
    if args.model_path is not None:
        learner.start_from(args.model_path, KIND, trained_from={})

    @torch.no_grad()
    def reconstruct(images: torch.Tensor) -> torch.Tensor:
        with learner.autocast:
            return learner.best_model(images.to(device, memory_format=torch.channels_last)).float().cpu()

    def validate() -> dict[str, float]:
        def errors(images: torch.Tensor) -> dict[str, torch.Tensor]:
            made = reconstruct(images)
            return {"val_loss": autoencoder.loss(made, images), "val_mse": F.mse_loss(made, images)}

        found = mean_over(dataset, held_out, args, errors)
        return {**found, "val_psnr": psnr(found["val_mse"])} if found else {}

    shown = dataset[preview_indices(training, held_out, 25)]

    def preview(step: int) -> None:
        save_grid(shown, run.image_path("ground_truth", step))
        save_grid(reconstruct(shown), run.image_path("recon", step))

    run = Run(args, KIND, config, trained_from={}, num_items=len(training))
    train(run, learner, dataset, training, device, validate, preview)


if __name__ == "__main__":
    cli.run(main)
