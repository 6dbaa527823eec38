"""A fully convolutional autoencoder: images in [−1, 1] to small feature maps and back."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from models.activations import ACTIVATIONS
from models.codebook import Codebook
from utils.core.config import build_config
from utils.core.files import UserError
from utils.core.options import check_ranges, option
from utils.core.provenance import Origin
from utils.core.size import Size
from utils.data.split import Learned
from utils.runs.checkpoint import build_model, fingerprint, load_checkpoint
from utils.runtime.draws import draw

KIND = "autoencoder"


@dataclass(frozen=True)
class AutoencoderConfig:
    model_lr: float = option("peak learning rate, for steps of 2,048 cells of feature maps", low=0)
    image_channel: int = option("channels of an image: 3, since images are read as RGB", low=1)
    min_channel: int = option(
        "width after the first halving; it doubles at each further one, up to max_channel", low=1, high=2**16
    )
    max_channel: int = option("largest width", high=2**16)
    num_layers: int = option("halvings of height and width", low=1, high=16)
    latent_channel: int = option("channels of the feature map", low=1, high=2**12)
    hidden_activation_type: str = option("activation inside", choices=ACTIVATIONS)
    use_final_enc_activation: bool = option("whether the feature map passes an activation")
    encoder_activation_type: str = option("activation of the feature map", choices=ACTIVATIONS)
    use_final_dec_activation: bool = option("whether the image passes an activation")
    decoder_activation_type: str = option("activation of the image", choices=ACTIVATIONS)
    num_enc_res_blocks: int = option("residual blocks at each resolution of the encoder", 1, low=0, high=64)
    num_dec_res_blocks: int = option("residual blocks at each resolution of the decoder", 1, low=0, high=64)
    latent_noise: float = option("standard deviation of noise on the feature map in training", 0.0, low=0)
    weight_decay: float = option("share that a step at the peak rate takes from kernels", 2e-5, low=0, below=0.01)
    loss: str = option("mean squared error, or mean absolute error, which is sharper", "mse", choices=("mse", "l1"))
    edge_weight: float = option("weight of the same error of differences between neighbouring pixels", 0.0, low=0)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.max_channel < self.min_channel:
            expected = f"at least {self.min_channel} ('min_channel')"
            raise ValueError(f"'max_channel' is {self.max_channel}, expected {expected}")
        if self.image_channel != 3:
            raise ValueError(f"'image_channel' is {self.image_channel}, expected 3: images are read as RGB")

    @property
    def encoder_activations(self) -> tuple[str, str | None]:
        return self.hidden_activation_type, self.encoder_activation_type if self.use_final_enc_activation else None

    def channels(self) -> list[int]:
        return [min(self.min_channel * 2**level, self.max_channel) for level in range(self.num_layers)]


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))), after He et al. 2016, "Identity mappings in deep residual networks"."""

    def __init__(self, channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.layers = nn.Sequential(activation(), first, activation(), second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) → the same shape."""
        return x + self.layers(x)


class Encoder(nn.Sequential):
    """Images (B, 3, H, W) to feature maps (B, latent_channel, H / 2^num_layers, W / 2^num_layers)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        activation = ACTIVATIONS[config.hidden_activation_type]
        layers: list[nn.Module] = []
        for narrower, width in pairwise([config.image_channel, *config.channels()]):
            layers += [nn.PixelUnshuffle(2), nn.Conv2d(narrower * 4, width, 3, padding=1)]
            layers += [*(ResidualBlock(width, activation) for _ in range(config.num_enc_res_blocks)), activation()]
        layers += [nn.Conv2d(width, config.latent_channel, 3, padding=1)]
        if config.use_final_enc_activation:
            layers.append(ACTIVATIONS[config.encoder_activation_type]())
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Feature maps (B, latent_channel, h, w) to images (B, 3, h · 2^num_layers, w · 2^num_layers): a mirror."""

    def __init__(self, config: AutoencoderConfig) -> None:
        activation = ACTIVATIONS[config.hidden_activation_type]
        channels = [config.image_channel, *config.channels()]
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channel, channels[-1], 3, padding=1)]
        for narrower, width in reversed(list(pairwise(channels))):
            layers += [ResidualBlock(width, activation) for _ in range(config.num_dec_res_blocks)]
            layers += [activation(), nn.Conv2d(width, narrower * 4, 3, padding=1), nn.PixelShuffle(2)]
        if config.use_final_dec_activation:
            layers.append(ACTIVATIONS[config.decoder_activation_type]())
        super().__init__(*layers)


class Autoencoder(nn.Module):
    """Encoder and decoder, trained on the mean squared or mean absolute error of images in [−1, 1] and of their edges.

    Resolution changes by pixel (un)shuffling (Shi et al. 2016): no convolution runs on the full-size image.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config, self.encoder, self.decoder = config, Encoder(config), Decoder(config)
        self.scale = 2**config.num_layers  # pixels per side of a cell of the feature map
        # Of the checkpoint that it was loaded from:
        self.fingerprint: str | None = None
        self.encoder_fingerprint: str | None = None
        self.learned = Learned()
        self.flip = False  # whether it has learned from mirror images too

    @classmethod
    def load(cls, path: Path, config: AutoencoderConfig | None = None) -> "Autoencoder":
        """Read an autoencoder from a checkpoint, with its config or another that its weights fit, or `UserError`."""
        content = load_checkpoint(path, KIND)
        saved = build_config(AutoencoderConfig, content["config"], str(path))
        config = config or saved
        if config.encoder_activations != saved.encoder_activations:  # which no weight shows
            names = " and ".join(filter(None, saved.encoder_activations))
            raise UserError(f"{path}: its encoder was trained with {names}; give a config with these activations")
        model = build_model(lambda: cls(config), content, path)
        model.fingerprint = content["fingerprint"]
        # An exported model keeps the fingerprint of its weights before they were rounded.
        model.encoder_fingerprint = content.get("encoder_fingerprint") or fingerprint(model.encoder.state_dict())
        model.learned, model.flip = Learned.saved(content), content.get("flip", False)
        return model.eval()

    @property
    def origin(self) -> Origin:
        """The key of all that depends on its feature maps: the encoder alone, as a decoder may be trained further."""
        return {"encoder": self.encoder_fingerprint}

    @property
    def kernels(self) -> list[nn.Parameter]:
        return [layer.weight for layer in self.modules() if isinstance(layer, nn.Conv2d)]

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [−1, 1] → feature maps (B, C, h, w). H and W must be multiples of 2^num_layers."""
        return self.encoder(images)

    def fmap_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape (C, h, w) of the feature maps of images (3, H, W)."""
        return self.config.latent_channel, shape[1] // self.scale, shape[2] // self.scale

    def image_size(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Height and width of the images of feature maps (C, h, w)."""
        return shape[1] * self.scale, shape[2] * self.scale

    def decode(self, fmap: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, h, w) → images (B, 3, H, W)."""
        return self.decoder(fmap)

    def forward(self, images: torch.Tensor, codebook: Codebook | None = None) -> torch.Tensor:
        """Reconstruct (B, 3, H, W), with a codebook from quantized feature maps, without gradients for the encoder."""
        if codebook is not None:
            return self.decode(self.quantized(images, codebook))
        fmap = self.encode(images)
        if self.training and self.config.latent_noise > 0:  # so the decoder tolerates quantization
            fmap = fmap + self.config.latent_noise * draw(partial(_noise, fmap), len(fmap))
        return self.decode(fmap)

    @torch.no_grad()
    def quantized(self, images: torch.Tensor, codebook: Codebook) -> torch.Tensor:
        """Images (B, 3, H, W) → quantized feature maps (B, C, h, w), in float32, as later steps make them."""
        with torch.autocast(images.device.type, enabled=False):
            return codebook.quantize(self.encode(images))

    def loss(self, outputs: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """The mean error of reconstructions (B, 3, H, W), by the config's `loss` and `edge_weight`, a scalar.

        Errors of the differences between neighbours (Mathieu et al. 2016, "Deep multi-scale video prediction beyond
        mean square error") punish soft edges, which hardly change the error of the pixels.
        """
        measure = torch.square if self.config.loss == "mse" else torch.abs
        error = outputs - images
        if self.config.edge_weight == 0:
            return measure(error).mean()
        edges = sum(measure(error.diff(dim=dim)).mean() for dim in (-2, -1))
        return measure(error).mean() + self.config.edge_weight * edges

    def check_image(self, shape: tuple[int, int, int], where: Path) -> None:
        """Raise `UserError` if images (3, H, W) cannot be halved `num_layers` times."""
        if shape[1] % self.scale or shape[2] % self.scale:
            size, times = Size.of(shape), self.config.num_layers
            nearest = " or ".join(map(str, size.multiples(self.scale, self.scale)))
            problem = f"images of {size.shown} cannot be halved {times} times ('num_layers')"
            raise UserError(f"{where}: {problem}; make them {nearest}, the nearest sizes that can")


def _noise(like: torch.Tensor, number: int) -> torch.Tensor:
    shape, layout = (number, *like.shape[1:]), torch.channels_last
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout).normal_()


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB, from the mean squared error of images in [−1, 1]."""
    return 10 * math.log10(4 / max(error, 1e-12))
