"""The plain block: a transformer block as one writes it first, the baseline of benchmarks/ablation.py.

It has one-dimensional sinusoids, an MLP without a gate, no query-key norm and PyTorch's own initial weights.
"""

import torch
from torch import nn

from models.cascade import Stage
from models.transformer import Attention, Block, GatedMLP, GridEmbedding


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


def ungated(mlp: GatedMLP, share: float = 1.0) -> nn.Sequential:
    """An MLP without a gate, with a share of the inner width of one that has one."""
    dim, hidden = mlp.down.weight.shape
    hidden = round(share * hidden)
    return nn.Sequential(nn.Linear(dim, hidden), mlp.activation, nn.Linear(hidden, dim))


def make_plain(stage: Stage) -> None:
    """Turn the blocks and the embeddings of a new stage into plain ones, with other initial weights."""
    model = stage.transformer
    model.embed = Sinusoids(model.embed)
    if not stage.config.is_base:
        model.source_embed = Sinusoids(model.source_embed)
    for module in list(stage.modules()):
        if isinstance(module, Block):
            module.mlp = ungated(module.mlp)
        elif isinstance(module, Attention):
            module.query_norm = module.key_norm = nn.Identity()
    for module in stage.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()
