import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.transformer import attend
from utils.runtime.footprint import count_flops


@pytest.mark.parametrize(
    ("layer", "shape", "one"),
    [
        (nn.Linear(5, 7), (3, 11, 5), 2 * 33 * 5 * 7),
        (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 8, 8), 2 * (2 * 8 * 8) * (4 * 3 * 3) * 6),
    ],
)
def test_a_layer_needs_three_products_of_its_size(layer, shape, one):
    x = torch.randn(shape, requires_grad=True)
    assert count_flops(lambda: layer(x)) == one
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * one
    assert count_flops(lambda: layer(x.detach()).sum().backward()) == 2 * one  # as of a first layer
    with torch.autocast("cpu", torch.bfloat16):
        assert count_flops(lambda: layer(x).sum().backward()) == 3 * one
    assert count_flops(lambda: torch.ones(3).exp() + 1) == 0  # elementwise work does not count


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("attention", "backward"), [(F.scaled_dot_product_attention, 5), (attend, 4)])
def test_attention_needs_two_products_forward_and_four_or_five_backward(attention, backward, is_causal):
    """The fused kernel computes the scores again, plain products keep them."""
    q, k, v = (torch.randn(2, 3, length, 4, requires_grad=True) for length in (8, 10, 10))
    one = 2 * 2 * 3 * 8 * 10 * 4
    assert count_flops(lambda: attention(q, k, v, is_causal=is_causal)) == 2 * one
    assert count_flops(lambda: attention(q, k, v, is_causal=is_causal).sum().backward()) == (2 + backward) * one


def test_a_mask_and_half_precision_do_not_change_the_count_of_fused_attention():
    q, k, v = (torch.randn(2, 3, 8, 4, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    mask = torch.ones(8, 8, dtype=torch.bool).tril()
    step = lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()  # noqa: E731
    assert count_flops(step) == 7 * 2 * 2 * 3 * 8 * 8 * 4
