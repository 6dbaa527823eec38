"""Small transformers in float64 with no weight at zero, for the tests of several files."""

import torch
from hypothesis import strategies as st

from models.transformer import Grid, Transformer, TransformerConfig

DEFAULTS = {
    "model_lr": 1e-3, "use_sliding_window": False, "sliding_window": 4, "num_enc_layers": 1, "num_dec_layers": 2,
    "self_attn_heads": 2, "cross_attn_heads": 2, "in_dim": 16, "hidden_dim": 12, "hidden_activation": "silu",
}  # fmt: skip
FINE, COARSE = Grid(3, 4, 9), Grid(2, 2, 5)
WINDOWS = [None, 2, 3, 5, 12, 40]

seeds = st.integers(0, 2**31)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def config(window=None, **changes):
    if window is not None:
        changes |= {"use_sliding_window": True, "sliding_window": window}
    return TransformerConfig(**DEFAULTS | changes)


def awake(module, seed=0):
    """The module in float64 with no weight at zero, so that every path through it carries something."""
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            start = 0 if parameter.ndim > 1 else 1
            parameter.copy_(start + scale * torch.randn(parameter.shape, generator=generator(seed)))
            seed += 1
    return module.double().eval()


def build(window=None, fine=FINE, coarse=None, num_inputs=20, **changes):
    return awake(Transformer(config(window, **changes), fine, num_inputs, coarse))
