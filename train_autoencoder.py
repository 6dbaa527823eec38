"""Step 1: train the autoencoder on a folder of images.

Reads a dataset.json of images; writes checkpoints, reconstructions (images/ground_truth_N.png, recon_N.png) and
metrics.jsonl under --out-dir.

    python train_autoencoder.py --dataset-path data/faces/dataset.json \
        --config-path configs/gpu-128/autoencoder.json --out-dir out/faces/autoencoder

With --encoder-path and --hr-codebook-path, after step 4, it trains the decoder of an autoencoder further, on feature
maps that consist of units of the finest codebook. The encoder stays, so feature maps and tokens stay valid.
"""

import utils.threads  # noqa: F401

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from models.autoencoder import KIND, Autoencoder, AutoencoderConfig, psnr
from models.codebook import Codebook
from utils import cli
from utils.attempt import attempt
from utils.checkpoint import Origin, check_origins
from utils.checkpoint_folder import CheckpointFolder
from utils.config import load_config
from utils.dataset import ImageDataset
from utils.device import choose_device
from utils.files import UserError
from utils.gradient import GradientLearner, GradientOptions
from utils.images import save_grid
from utils.metrics import Metrics
from utils.options import option, parse_options
from utils.split import Bounds
from utils.training import mean_over, preview_indices, train


@dataclass(frozen=True, kw_only=True)
class Options(GradientOptions):
    """Options of train_autoencoder.py."""

    encoder_path: Path | None = option("train the decoder of this autoencoder alone, on quantized feature maps", None)
    hr_codebook_path: Path | None = option("codebook that quantizes them", None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.encoder_path is None) != (self.hr_codebook_path is None):
            raise UserError("--encoder-path and --hr-codebook-path belong together: give both or none")
        if self.encoder_path is not None and self.model_path is not None:
            raise UserError("--encoder-path has the weights to start from: leave out --model-path")


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    options = parse_options(Options, __doc__, argv)
    with attempt(__file__, options) as attempted:
        device = choose_device(options.device)
        config = load_config(options.config_path, AutoencoderConfig)
        dataset = ImageDataset(options.dataset_path, options.out_dir)
        split = dataset.split(options.bounds)
        training, validation = split.training, split.validation

        torch.manual_seed(options.seed)
        autoencoder, codebook, origin = load_models(options, config, dataset, device)
        steps = options.planned_steps(len(training))
        cells = math.prod(autoencoder.fmap_shape(dataset.shape)[1:])
        compute = partial(reconstruction_loss, measure=autoencoder.loss, codebook=codebook)
        learner = GradientLearner(autoencoder, compute, config, options, steps, device, autoencoder.kernels, cells)
        checkpoints = CheckpointFolder(options, KIND, config, origin, dataset, len(training))
        if codebook is not None:
            checkpoints.begin_from(options.encoder_path, Bounds.common((autoencoder.bounds, codebook.bounds)))
        start = learner.start(checkpoints)

        @torch.no_grad()
        def reconstruct(images: torch.Tensor) -> torch.Tensor:
            with learner.autocast:
                images = images.to(device, memory_format=torch.channels_last)
                return learner.best_model(images, codebook).float().cpu()

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
        footprint = learner.footprint(dataset[training[: options.batch_size]])

        attempted.begin(device, config, {**origin, "data": dataset.fingerprint})
        shown = dataset[preview_indices(training, validation, 25)]
        train(options, learner, dataset, training, checkpoints, metrics, start, validate, preview, footprint=footprint)


def reconstruction_loss(
    model: nn.Module, images: torch.Tensor, measure: Callable, codebook: Codebook | None = None
) -> dict[str, torch.Tensor]:
    """The loss of an autoencoder, compiled or not, on images (B, 3, H, W), by its method `measure`."""
    images = images.to(memory_format=torch.channels_last)
    return {"loss": measure(model(images, codebook).float(), images)}


def load_models(
    options: Options, config: AutoencoderConfig, dataset: ImageDataset, device: torch.device
) -> tuple[Autoencoder, Codebook | None, Origin]:
    """A new autoencoder; or that of `--encoder-path` with a fixed encoder, the codebook for its decoder, their origin.

    Raises `UserError` if they do not fit each other or the images.
    """
    path, codebook, origin = options.hr_codebook_path, None, {}
    if path is None:
        autoencoder = Autoencoder(config)
    else:
        autoencoder, codebook = Autoencoder.load(options.encoder_path, config), Codebook.load(path).to(device)
        check_origins(path, codebook.origin, autoencoder.origins)
        autoencoder.encoder.requires_grad_(False)
        origin = autoencoder.origin | {"hr_codebook": codebook.fingerprint}
    autoencoder.check_image(dataset.shape, options.dataset_path)
    if codebook is not None and (shape := autoencoder.fmap_shape(dataset.shape)) != codebook.fmap_shape:
        raise UserError(
            f"{path}: is for feature maps of {codebook.fmap_shape} (C, H, W), those of these images are {shape}; give "
            "the images that its run was trained on"
        )
    return autoencoder.to(device, memory_format=torch.channels_last), codebook, origin


if __name__ == "__main__":
    cli.run(main)
