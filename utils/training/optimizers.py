"""Which optimizer moves which weights, and how fast: one rate that stays right from width to width.

Each kind of weight moves so that its share in what a layer gives does not depend on the width (Yang et al. 2023, "A
spectral condition for feature learning"). `model_lr` is the rate of the matrices that Muon moves.
"""

from collections.abc import Collection

import torch
from torch import nn

from utils.training.muon import Muon

# AdamW's rates, as multiples of Muon's; in a stage 128 wide they equal the fixed rates that the demo had before.
VECTORS = 0.4  # of embeddings, biases and gains: each number moves alike at any width
HEAD = 50.0  # of other matrices, divided by their inputs, whose steps add up
TOKENS = 2048  # of a training step whose peak rate is `model_lr`

Optimizers = dict[str, torch.optim.Optimizer]  # by their keys in a checkpoint


def build_optimizers(
    model: nn.Module, by_muon: Collection[nn.Parameter], rate: float, decay: float, dtype: torch.dtype
) -> Optimizers:
    """AdamW for a model, and Muon, which multiplies in `dtype`, for the matrices `by_muon`, if there are any.

    A group's rate is `rate` times its `scale`. At the peak rate a step takes the share `decay` from each matrix or
    embedding, whatever that rate is.
    """
    muon = set(by_muon)
    others = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter not in muon]
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [p for p in others if p.ndim >= 2 and p not in embeddings]
    groups = [_group([p for p in others if p in embeddings], VECTORS, rate, decay)]
    groups += [_group([p for p in others if p.ndim < 2], VECTORS, rate, 0.0)]
    groups += [_group([matrix], HEAD / matrix[0].numel(), rate, decay) for matrix in matrices]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    optimizers: Optimizers = {"optimizer": torch.optim.AdamW(groups, rate, betas=(0.9, 0.99), fused=fused)}
    if muon:
        optimizers["muon"] = Muon([_group(list(by_muon), 1.0, rate, decay)], rate, dtype)
    return optimizers


def _group(parameters: list[nn.Parameter], scale: float, rate: float, decay: float) -> dict:
    # Both optimizers take `lr` times `weight_decay` from a weight, and `lr` is at most `rate` times `scale`.
    decay = decay / (rate * scale) if rate > 0 else 0.0
    return {"params": parameters, "scale": scale, "lr": rate * scale, "weight_decay": decay}
