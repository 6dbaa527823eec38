"""What benchmarks.peers compares with: two packages that learn from pixels, and a rectified flow on feature maps.

Each is a module: called with a batch it returns the loss, and `sample(number)` returns images, drawn by the default
generator. Its class names the `package` that it needs, or None, its usual learning `rate`, and the multiples of that to
try, `rates`. `data` returns the indices of training and validation and their data set, `learner` what trains it.

The flow is that of Liu et al. 2022: a network learns the velocity x₁ − x₀ at points (1 − t)·x₀ + t·x₁ between noise x₀
and data x₁, and a sample follows it from noise. Its blocks are those of the stages, without a causal mask, and
modulated by the time as in DiT (Peebles and Xie 2023); times are drawn as by Esser et al. 2024, most near the middle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from benchmarks.common import CPU
from models.autoencoder import Autoencoder
from models.patches import patchify, unpatchify
from models.transformer import Block, TransformerConfig, attend, norm
from utils.data.dataset import ImageDataset
from utils.training.gradient import GradientLearner, GradientOptions

STEPS = 50  # of the solver
WIDTH = 32  # of a UNet on its finest level; three halvings


def follow(velocity: Callable, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Go from noise (N, …) at time 0 along `velocity(t, x)`, where t is (N,), to time 1, by Euler's method."""
    x = noise
    for step in range(steps):
        x = x + velocity(torch.full((len(x),), step / steps), x) / steps
    return x


class TimedBlock(Block):
    """A block whose two parts are shifted, scaled and gated by the time."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.modulation = nn.Linear(config.in_dim, 6 * config.in_dim)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """(B, T, dim) and the vectors of the times (B, 1, dim) → (B, T, dim)."""
        shift, scale, gate, *others = self.modulation(time).chunk(6, dim=-1)
        attention, normed = self.self_attention, self.self_norm(x) * (1 + scale) + shift
        y = attend(attention.queries(normed), *attention.keys_values(normed))
        x = x + (1 + gate) * self.dropout(attention.merge(y))
        shift, scale, gate = others
        return x + (1 + gate) * self.dropout(self.mlp(self.mlp_norm(x) * (1 + scale) + shift))


class Flow(nn.Module):
    """A rectified flow on feature maps (C, H, W), and the decoder of its samples.

    `maps` (N, C, H, W) are some to take means and deviations of channels from.
    """

    def __init__(self, config: TransformerConfig, maps: torch.Tensor, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.shape, dim = tuple(maps.shape[1:]), config.in_dim
        self.register_buffer("mean", maps.mean((0, 2, 3), keepdim=True))
        self.register_buffer("deviation", maps.std((0, 2, 3), keepdim=True))
        self.patch = 1 if any(side % 2 for side in self.shape[1:]) else 2  # cells a side of a token
        tokens, numbers = patchify(maps[:1], self.patch, self.patch).shape[1:]
        self.embed, self.head = nn.Linear(numbers, dim), nn.Linear(dim, numbers)
        self.place = nn.Parameter(0.5 * torch.randn(tokens, dim))
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU())
        self.blocks = nn.ModuleList(TimedBlock(config) for _ in range(config.num_enc_layers + config.num_dec_layers))
        self.norm = norm(dim)
        self.decoder = autoencoder.decoder.requires_grad_(False)
        for name, parameter in self.named_parameters():
            if name.startswith("head.") or name.endswith((".out.weight", ".down.weight")) or ".modulation." in name:
                nn.init.zeros_(parameter)  # as in the stages, blocks start as the identity

    @property
    def by_muon(self) -> list[nn.Parameter]:
        """The matrices of attention and MLPs, which Muon moves as in the stages."""
        return [weight for name, weight in self.blocks.named_parameters() if weight.ndim == 2 and "modul" not in name]

    def velocity(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """At times (B,) and points (B, C, H, W) → (B, C, H, W)."""
        half = self.place.shape[1] // 2
        angles = 1000 * t[:, None] * 1e4 ** (-torch.arange(half) / half)
        time = self.time(torch.cat((angles.sin(), angles.cos()), dim=1))[:, None]
        y = self.embed(patchify(x, self.patch, self.patch)) + self.place
        for block in self.blocks:
            y = block(y, time)
        return unpatchify(self.head(self.norm(y)), *self.shape, self.patch)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, H, W) → the loss, a scalar."""
        x = (maps - self.mean) / self.deviation
        noise, t = torch.randn_like(x), torch.randn(len(x)).sigmoid()
        share = t[:, None, None, None]
        return (self.velocity(t, (1 - share) * noise + share * x) - (x - noise)).square().mean()

    def sample(self, number: int) -> torch.Tensor:
        """Images (N, 3, H, W), from the default generator."""
        x = follow(self.velocity, torch.randn(number, *self.shape), STEPS)
        return self.decoder(x.float() * self.deviation + self.mean)


@dataclass
class Mirrored(Dataset):
    """Images, followed by their mirror images."""

    dataset: ImageDataset

    def __getitem__(self, indices: np.ndarray) -> torch.Tensor:
        images = self.dataset[indices % len(self.dataset)]
        is_mirrored = torch.from_numpy(indices >= len(self.dataset))[:, None, None, None]
        return torch.where(is_mirrored, images.flip(-1), images)


class PixelRival(nn.Module):
    """A rival that learns from pixels, by its authors' optimizer, Adam, and rate."""

    package: str
    rate: float
    rates: tuple[float, ...]  # large ones, since the usual ones are for trainings of days
    betas = (0.9, 0.999)

    def data(self, shared: object) -> tuple[np.ndarray, np.ndarray, Dataset]:
        """The indices of what it learns from and of what validates it, and the data that they are of."""
        training, number = shared.split.training, len(shared.dataset)
        mirrored = np.concatenate([training + number * side for side in shared.sides])
        return mirrored, shared.split.measured, Mirrored(shared.dataset)

    def learner(self, rate: float, given: GradientOptions) -> GradientLearner:
        """With the shared warm-up, schedule, clipping and averaged weights."""
        config = SimpleNamespace(model_lr=rate, weight_decay=0.0)
        learner = GradientLearner(self, loss_of, config, given, 1, CPU)
        groups, learner.peak = [{"params": list(self.parameters()), "scale": 1.0}], rate
        learner.optimizers = {"optimizer": torch.optim.Adam(groups, rate, betas=self.betas, fused=True)}
        return learner


class Diffusion(PixelRival):
    """The rival of denoising-diffusion-pytorch, with the settings of its README and of its Trainer."""

    package, rate, rates, betas = "denoising_diffusion_pytorch", 8e-5, (8.0, 16.0, 32.0, 64.0), (0.9, 0.99)

    def __init__(self, shared: object) -> None:
        super().__init__()
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet

        size = tuple(shared.dataset.shape[1:])
        self.model = GaussianDiffusion(Unet(WIDTH), image_size=size, sampling_timesteps=50)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model((images + 1) / 2)

    def sample(self, number: int) -> torch.Tensor:
        return 2 * self.model.sample(number) - 1


class Matching(PixelRival):
    """The rival of torchcfm, with the settings of its example for CIFAR-10, dropout against few images among them."""

    package, rate, rates = "torchcfm", 2e-4, (4.0, 8.0, 16.0, 32.0)

    def __init__(self, shared: object) -> None:
        super().__init__()
        from torchcfm import ExactOptimalTransportConditionalFlowMatcher
        from torchcfm.models.unet import UNetModel

        self.shape = tuple(shared.dataset.shape)
        usual = {"num_res_blocks": 2, "num_heads": 4, "attention_resolutions": "16", "dropout": 0.1}
        self.model = UNetModel(self.shape, WIDTH, channel_mult=(1, 2, 3, 4), **usual)
        self.matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        t, x, velocity = self.matcher.sample_location_and_conditional_flow(torch.randn_like(images), images)
        return (self.model(t, x) - velocity).square().mean()

    def sample(self, number: int) -> torch.Tensor:
        return follow(self.model, torch.randn(number, *self.shape), 100)


class MapFlow(Flow):
    """The rival on feature maps, with the settings and optimizers of the run's finest stage."""

    package, rates = None, (0.25, 0.5, 1.0, 2.0)

    def __init__(self, shared: object) -> None:
        config, (training, _, maps) = shared.cascade.stages[-1].config.transformer, self.data(shared)
        super().__init__(config, maps[training[:1024]], shared.run.decoder)
        self.rate, self.decay = config.model_lr, config.weight_decay

    def data(self, shared: object) -> tuple[np.ndarray, np.ndarray, Dataset]:
        split = shared.run.maps.split(shared.bounds)
        return split.training, split.measured, shared.run.maps

    def learner(self, rate: float, given: GradientOptions) -> GradientLearner:
        config = SimpleNamespace(model_lr=rate, weight_decay=self.decay)
        return GradientLearner(self, loss_of, config, given, 1, CPU, self.by_muon, len(self.place))


def loss_of(model: Callable, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss of a batch, as a `GradientLearner` takes it."""
    return {"loss": model(batch)}
