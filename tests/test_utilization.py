import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.utilization import MatrixProducts, bare_seconds


def products(step):
    """Multiply-adds of the products of a step, by the shapes of their operands, times how often each ran."""
    with MatrixProducts() as found:
        step()
    return sum(times * math.prod(left.shape) * right.shape[-1] for (left, right), times in found.counts.items())


def test_a_linear_layer_costs_three_products_of_its_size():
    layer = nn.Linear(5, 7)
    x = torch.randn(3, 11, 5, requires_grad=True)
    assert products(lambda: layer(x)) == 33 * 5 * 7
    assert products(lambda: layer(x).sum().backward()) == 3 * 33 * 5 * 7


@pytest.mark.parametrize("causal", [False, True])
def test_attention_costs_two_products_forward_and_four_backward(causal):
    q, k, v = (torch.randn(2, 3, 8, 4, requires_grad=True) for _ in range(3))
    one = 2 * 3 * 8 * 8 * 4 * (0.5 if causal else 1)

    def forward():
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    assert products(forward) == 2 * one
    assert products(lambda: forward().sum().backward()) == (2 + 4) * one


def test_products_are_recorded_in_the_precision_that_they_run_in():
    layer, x = nn.Linear(5, 7), torch.randn(3, 5)
    with MatrixProducts() as found, torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert {operand.dtype for pair in found.counts for operand in pair} == {torch.bfloat16}


def test_equal_products_are_timed_once_and_nothing_takes_none():
    layer, x = nn.Linear(256, 256), torch.randn(512, 256)
    with MatrixProducts() as found:
        layer(layer(x))
    assert list(found.counts.values()) == [2]
    assert bare_seconds(lambda: torch.ones(3) + 1) == 0
    assert bare_seconds(lambda: layer(x).sum().backward()) > 0  # a gradient of one number, expanded
