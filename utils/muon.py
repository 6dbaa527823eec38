"""Muon: steps of equal size in all directions of a matrix (Jordan et al. 2024, "Muon: an optimizer for hidden layers").

A few directions dominate the gradient of a layer. Muon steps along the orthogonal matrix nearest to the momentum, so
that the other directions are learned as fast.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5  # from the paper: singular values end up around 1, not exactly at 1
RMS = 0.2  # that of a usual AdamW step, so that both share a learning rate (Liu et al. 2025, "Muon is scalable")


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices (N, M, D) → approximately U Vᵀ of their singular value decompositions U S Vᵀ, by Newton–Schulz steps."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT).mT
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices only.

    Unlike `torch.optim.Muon` it batches matrices of one shape, and it multiplies in `dtype`. `torch.optim.Muon` always
    uses bfloat16, which is slow on a CPU without native support (docs/experiments.md has the numbers).
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        """One step down the gradients."""
        for group in self.param_groups:
            same_shape = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    same_shape[matrix.shape].append(matrix)
            for matrices in same_shape.values():
                self._update(matrices, group)

    def _update(self, matrices: list[nn.Parameter], group: dict) -> None:
        momentum, directions = group["momentum"], []
        for matrix in matrices:
            state = self.state[matrix]
            if not state:
                state["momentum"] = torch.zeros_like(matrix)
            state["momentum"].lerp_(matrix.grad, 1 - momentum)
            directions.append(matrix.grad.lerp(state["momentum"], momentum))
        found = orthogonalize(torch.stack(directions).to(self.dtype)).to(matrices[0].dtype)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, list(found), alpha=-group["lr"] * RMS * max(matrices[0].shape) ** 0.5)
