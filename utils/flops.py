"""How many floating point operations a training step needs."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

# PyTorch's counter knows the fused attention of a GPU; that of the CPU takes the same arguments.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def count_flops(step: Callable[[], object]) -> int:
    """Run `step()` and count the floating point operations of its matrix products and convolutions.

    A multiplication and an addition are two operations. Elementwise work does not count. Attention counts two products
    forward and four backward, or five backward where a fused kernel computes the scores again; what is computed again
    for an activation checkpoint counts again, too. A causal mask does not matter: the whole square of scores counts.
    """
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        step()
    return counter.get_total_flops()
