"""The plain block: a transformer block as one writes it first, the baseline of benchmarks/ablation.py.

It has one-dimensional sinusoids, an MLP without a gate, no query-key norm and PyTorch's own initial weights. Queries,
keys and values each come from an MLP of two layers, or from linear layers as in most transformers.
"""

import torch
from torch import nn

from models.activations import ACTIVATIONS
from models.stage import Stage
from models.transformer import Attention, Block, GridEmbedding, TransformerConfig


class Sinusoids(nn.Module):
    """The sum of a learned vector for the token and one-dimensional sinusoids (Vaswani et al. 2017) for its cell."""

    def __init__(self, embed: GridEmbedding) -> None:
        super().__init__()
        self.token = embed.token
        half = self.token.embedding_dim // 2
        cells = torch.arange(embed.row.num_embeddings * embed.column.num_embeddings)
        angles = cells[:, None] * 1e4 ** (-torch.arange(half) / half)
        self.register_buffer("table", torch.cat((angles.sin(), angles.cos()), dim=1))

    def forward(self, tokens: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T) at the cells (T,) → (B, T, dim), under autocast in its dtype."""
        x = self.token(tokens) + self.table[cells]
        device = x.device.type  # as in `GridEmbedding`: autocast does not cast sums
        return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class KeyValue(nn.Module):
    """Keys and values, each from an MLP of two layers, side by side as `Attention` expects them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.key, self.value = plain_mlp(config), plain_mlp(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, dim) → (B, S, 2·dim)."""
        return torch.cat((self.key(x), self.value(x)), dim=-1)


def plain_mlp(config: TransformerConfig) -> nn.Sequential:
    """Two layers without a gate."""
    activation = ACTIVATIONS[config.hidden_activation]()
    dim, hidden = config.in_dim, config.hidden_dim
    return nn.Sequential(nn.Linear(dim, hidden), activation, nn.Linear(hidden, dim))


def make_plain(stage: Stage, has_linear_projections: bool = False) -> None:
    """Turn the blocks and the embeddings of a new stage into plain ones, with other initial weights."""
    model, config = stage.transformer, stage.config.transformer
    model.embed = Sinusoids(model.embed)
    if not stage.config.is_base:
        model.source_embed = Sinusoids(model.source_embed)
    for module in list(stage.modules()):
        if isinstance(module, Block):
            module.mlp = plain_mlp(config)
        elif isinstance(module, Attention):
            module.query_norm = module.key_norm = nn.Identity()
            if not has_linear_projections:
                module.query, module.key_value = plain_mlp(config), KeyValue(config)
    for module in stage.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()
