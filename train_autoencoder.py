r"""Step 1: train the autoencoder on a folder of images.

Reads a dataset.json of images; writes checkpoints, reconstructions (images/ground_truth_N.png, recon_N.png) and
metrics.jsonl under --out-dir.

    python train_autoencoder.py --dataset-path data/faces/dataset.json \
        --config-path configs/gpu-128/autoencoder.json --out-dir out/faces/autoencoder

With --encoder-path and --hr-codebook-path, after step 4, it trains the decoder of an autoencoder further, on feature
maps that consist of units of the finest codebook. The encoder stays, so feature maps and tokens stay valid.
"""

import utils.runtime.threads  # noqa: F401

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from models.autoencoder import KIND, Autoencoder, AutoencoderConfig, psnr
from models.codebook import Codebook
from utils.core.config import load_config
from utils.core.files import UserError
from utils.core.options import option, parse_options
from utils.core.provenance import check_origin
from utils.data.dataset import ImageDataset
from utils.data.images import save_grid
from utils.runs.checkpoint import load_checkpoint
from utils.runs.folders import OutputFolder
from utils.runtime import cli
from utils.runtime.draws import draw
from utils.training.gradient import GradientLearner, GradientOptions, GradientTask
from utils.training.loop import mean_over, preview_indices, run


@dataclass(frozen=True, kw_only=True)
class Options(GradientOptions):
    encoder_path: Path | None = option("train the decoder of this autoencoder alone, on quantized feature maps", None)
    hr_codebook_path: Path | None = option("codebook that quantizes the feature maps, for --encoder-path", None)
    flip: bool = option(
        "learn from mirror images too: a random half of each step's images; on if the weights to start from did",
        False,
        is_fixed=True,
    )
    permute_colours: bool = option(
        "learn from a random half of each step's images with their colour channels permuted: few images do not show "
        "all colours that others may have",
        False,
        is_fixed=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.encoder_path is None) != (self.hr_codebook_path is None):
            raise UserError("--encoder-path and --hr-codebook-path belong together: give both or none")
        if self.encoder_path is not None and self.model_path is not None:
            raise UserError("--encoder-path has the weights to start from: leave out --model-path")


def main(argv: list[str] | None = None) -> None:
    train_autoencoder(parse_options(Options, __doc__, argv))


def train_autoencoder(options: Options) -> None:
    """Train an autoencoder, or the decoder of one alone, as `utils.training.loop.run` describes it."""
    run(__file__, options, AutoencoderTask)


class AutoencoderTask(GradientTask):
    """An autoencoder learns to reconstruct images; or the decoder of one alone, from quantized feature maps."""

    kind = KIND

    def __init__(self, options: Options, device: torch.device) -> None:
        self.options, self.device = options, device
        self.config = load_config(options.config_path, AutoencoderConfig)
        self.dataset = ImageDataset(options.dataset_path)
        split = self.dataset.split(options.bounds)
        self.training, self.validation = split.training, split.measured
        self.source, self.codebook, self.origin = None, None, {}
        if (path := options.hr_codebook_path) is not None:
            self.source = Autoencoder.load(options.encoder_path, self.config)
            self.codebook = Codebook.load(path).to(device)
            check_origin(path, self.codebook.origin, self.source.origin)
            self.origin = self.source.origin | {"hr_codebook": self.codebook.fingerprint}
            self.begun_from = {options.encoder_path: self.source.learned, path: self.codebook.learned}

    def build(self, saved: dict) -> None:
        """Build the autoencoder, or freeze the encoder of the given one, once the images fit."""
        options, model = self.options, self.source or Autoencoder(self.config)
        begun = saved or (load_checkpoint(path, KIND, memory_map=True) if (path := options.model_path) else {})
        self.traits = {"flip": options.flip or model.flip or begun.get("flip", False)}
        model.check_image(self.dataset.shape, options.dataset_path)
        shape = model.fmap_shape(self.dataset.shape)
        if self.source is not None:
            model.encoder.requires_grad_(False)
            if shape != self.codebook.fmap_shape:
                shapes = f"{self.codebook.fmap_shape} (C, H, W), those of these images are {shape}"
                advice = "give the images that its run was trained on"
                raise UserError(f"{options.hr_codebook_path}: is for feature maps of {shapes}; {advice}")
        self.model = model.to(self.device, memory_format=torch.channels_last)
        steps, cells = options.planned_steps(len(self.training)), math.prod(shape[1:])
        self.learner = GradientLearner(
            self.model, self.loss, self.config, options, steps, self.device, model.kernels, cells
        )
        self.update = self.learner.update

    def loss(self, model: Callable, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """The error of the reconstructions of images (B, 3, H, W), perhaps a half mirrored, a half in other colours."""
        if self.traits["flip"]:
            batch = torch.where(random_half(batch), batch.flip(-1), batch)
        if self.options.permute_colours:
            orders = draw(lambda number: torch.rand(number, batch.shape[1], device=batch.device).argsort(1), len(batch))
            permuted = batch.gather(1, orders[:, :, None, None].expand_as(batch))
            batch = torch.where(random_half(batch), permuted, batch)
        return reconstruction_loss(model, batch, self.model.loss, self.codebook)

    def prepare(self) -> ImageDataset:
        self.shown = self.dataset[preview_indices(self.training, self.validation, 25)]
        return self.dataset

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) → their reconstructions, float32 on the CPU."""
        with self.learner.autocast:
            images = images.to(self.device, memory_format=torch.channels_last)
            return self.learner.best_model(images, self.codebook).float().cpu()

    def validate(self) -> dict[str, float]:

        def errors(images: torch.Tensor) -> dict[str, torch.Tensor]:
            outputs = self.reconstruct(images)
            return {"val_loss": self.model.loss(outputs, images), "val_mse": F.mse_loss(outputs, images)}

        means = mean_over(self.dataset, self.validation, self.options.batch_size, errors)
        return {**means, "val_psnr": psnr(means["val_mse"])} if means else {}

    def preview(self, step: int) -> None:
        for name, images in (("ground_truth", self.shown), ("recon", self.reconstruct(self.shown))):
            save_grid(images, OutputFolder(self.options.out_dir).picture(name, step))


def random_half(batch: torch.Tensor) -> torch.Tensor:
    """Whether each image of a batch (B, …) belongs to a random half of the training step's images, (B, 1, 1, 1)."""

    def half(number: int) -> torch.Tensor:
        order = torch.randperm(number, device=batch.device)
        if number % 2:  # else a step of one image would always be chosen
            order += torch.randint(2, (1,), device=batch.device)
        return order % 2 == 0

    return draw(half, len(batch))[:, None, None, None]


def reconstruction_loss(
    model: Callable, images: torch.Tensor, measure: Callable, codebook: Codebook | None = None
) -> dict[str, torch.Tensor]:
    """The loss of an autoencoder, compiled or not, on images (B, 3, H, W), by its method `measure`."""
    images = images.to(memory_format=torch.channels_last)
    return {"loss": measure(model(images, codebook).float(), images)}


if __name__ == "__main__":
    cli.run(main)
