"""Muon against singular value decompositions and a step worked out by hand."""

import pytest
import torch
from torch import nn

from utils.training.muon import COEFFICIENTS, ROUNDS, Muon, orthogonalize, orthogonalize_wide


def matrices(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 10), (2, 6, 40), (2, 40, 6)])
def test_a_matrix_comes_near_to_the_orthogonal_one_of_its_decomposition(shape, dtype, tolerance):
    given = matrices(*shape)
    u, _, vh = torch.linalg.svd(given, full_matrices=False)
    inner = u.mT @ orthogonalize(given, dtype) @ vh.mT  # diagonal, of the new singular values
    values = torch.diagonal(inner, dim1=1, dim2=2)
    assert (inner - torch.diag_embed(values)).abs().max() < tolerance
    assert values.min() > 0.3 and values.max() < 1.3


@pytest.mark.parametrize("deviations", [0, 3, 6])
def test_wide_matrices_end_where_step_after_step_would_end(deviations):
    """Also where singular values differ by orders of magnitude, as those of gradients do."""
    x = matrices(2, 8, 100) * torch.logspace(0, -deviations, 8)[:, None]
    x /= x.norm(dim=(1, 2), keepdim=True)
    a, b, c = COEFFICIENTS
    expected = x.double()
    for _ in range(ROUNDS):
        gram = expected @ expected.mT
        expected = a * expected + (b * gram + c * gram @ gram) @ expected
    assert (orthogonalize_wide(x) - expected).abs().max() < 1e-3


def test_the_size_of_a_gradient_does_not_matter_and_none_gives_no_step():
    given = matrices(1, 5, 7)
    assert torch.allclose(orthogonalize(given), orthogonalize(1e4 * given), atol=1e-5)
    assert torch.equal(orthogonalize(torch.zeros(1, 5, 7)), torch.zeros(1, 5, 7))


def test_steps_are_those_of_one_matrix_after_the_other():
    shapes = [(4, 6), (6, 4), (4, 6), (3, 3), (3, 2, 2, 3), (12, 1, 1, 2)]
    parameters = [nn.Parameter(matrices(*shape, seed=number)) for number, shape in enumerate(shapes)]
    expected, means = [p.detach().clone() for p in parameters], [torch.zeros(shape) for shape in shapes]
    still = nn.Parameter(matrices(3, 4))  # it has no gradient
    optimizer = Muon([*parameters, still], lr=0.1, weight_decay=0.5)
    optimizer.param_groups[0]["momentum"] = 0.8
    for step in range(3):
        for number, parameter in enumerate(parameters):
            gradient = matrices(*shapes[number], seed=10 * step + number)
            parameter.grad = gradient
            means[number] = 0.8 * means[number] + 0.2 * gradient
            matrix = (0.2 * gradient + 0.8 * means[number]).flatten(1)
            moved = orthogonalize(matrix[None])[0] * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
            expected[number] = expected[number] * (1 - 0.1 * 0.5) - 0.1 * moved.view(shapes[number])
        optimizer.step()
    for parameter, value in zip(parameters, expected, strict=True):
        assert torch.allclose(parameter.detach(), value, atol=1e-5)
    assert torch.equal(still, matrices(3, 4))
