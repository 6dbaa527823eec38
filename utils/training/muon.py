"""Muon: steps of equal size in all directions of a matrix (Jordan et al. 2024, "Muon: an optimizer for hidden layers").

A few directions dominate the gradient of a layer. Muon steps along the orthogonal matrix nearest to the momentum, so
that the other directions are learned as fast.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5  # from the paper: singular values end up around 1, not exactly at 1
WIDE = 3  # columns for each row from which the small products of `orthogonalize_wide` are faster


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Matrices (N, M, D) → approximately U Vᵀ of their singular value decompositions U S Vᵀ, by Newton–Schulz steps.

    It multiplies in `dtype`, but wide matrices always in float32.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT, dtype).mT
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if x.shape[2] >= WIDE * x.shape[1]:
        return orthogonalize_wide(x)
    a, b, c = COEFFICIENTS
    x = x.to(dtype)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(matrices.dtype)


def orthogonalize_wide(x: torch.Tensor) -> torch.Tensor:
    """The same steps for matrices (N, M, D) of norm 1 where D is much larger than M.

    Each step multiplies x by a polynomial of its (M, M) Gram matrix. So the polynomials are multiplied with each other
    first, and x is read twice instead of ten times.
    """
    a, b, c = COEFFICIENTS

    def polynomial_of(gram: torch.Tensor) -> torch.Tensor:
        polynomial = b * gram + c * gram @ gram
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        return polynomial

    gram = x @ x.mT
    product = polynomial = polynomial_of(gram)
    for _ in range(ROUNDS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = polynomial_of(gram)
        product = polynomial @ product
    return product @ x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices, and for the kernels of convolutions.

    A matrix (out, in) moves by `lr`·√max(1, out / in) in all directions; a kernel is a matrix of as many rows as it has
    output channels. Unlike `torch.optim.Muon` it batches matrices of one shape, and it multiplies in `dtype`.
    `torch.optim.Muon` always uses bfloat16, which is slow on a CPU without native support (docs/experiments.md has the
    numbers).
    """

    def __init__(
        self, parameters: Iterable, lr: float, dtype: torch.dtype = torch.float32, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            same_shape = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    same_shape[weight.shape].append(weight)
            for weights in same_shape.values():
                self._update(weights, group)

    def _update(self, weights: list[nn.Parameter], group: dict) -> None:
        momentum, directions = group["momentum"], []
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(weight.grad, 1 - momentum)
            directions.append(weight.grad.lerp(state["momentum"], momentum).flatten(1))
        orthogonal = orthogonalize(torch.stack(directions), self.dtype)
        rows, columns = orthogonal.shape[1:]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        steps = [step.view_as(weight) for step, weight in zip(orthogonal, weights, strict=True)]
        torch._foreach_add_(weights, steps, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)
