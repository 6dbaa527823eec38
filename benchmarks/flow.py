"""A rectified flow on feature maps by a transformer as wide as the stages of a run.

Liu et al. 2022: a network learns the velocity x₁ − x₀ at points (1 − t)·x₀ + t·x₁ between noise x₀ and data x₁, and a
sample follows it from noise. Blocks are those of the stages, without a causal mask, and modulated by the time as in DiT
(Peebles and Xie 2023); times are drawn as in Esser et al. 2024, most of them near the middle.
"""

from collections.abc import Callable

import torch
from torch import nn

from models.autoencoder import Autoencoder
from models.patches import patchify, unpatchify
from models.transformer import Block, TransformerConfig, attend, norm

STEPS = 50  # of the solver


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
