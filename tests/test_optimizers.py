"""Rates from width to width: what a step moves, worked out by hand."""

import math

import pytest
import torch
from torch import nn

from utils.training.optimizers import HEAD, VECTORS, build_optimizers


class Model(nn.Module):
    """One weight of each kind, without a bias at the hidden matrix."""

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(5, width)
        self.hidden = nn.Linear(width, 2 * width, bias=False)
        self.head = nn.Linear(width, 7)


def moved(width, rate, decay=0.0, share=1.0):
    """How far each number of the model moves in the first step along a gradient of ones, and the weights before."""
    torch.manual_seed(0)
    model = Model(width)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizers = build_optimizers(model, [model.hidden.weight], rate, decay, torch.float32)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = share * rate * group["scale"]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers.values():
        optimizer.step()
    return {name: before[name] - value.detach() for name, value in model.named_parameters()}, before


@pytest.mark.parametrize("width", [8, 64, 256])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_each_kind_of_weight_has_its_rate(width, share):
    steps, _ = moved(width, 0.02, share=share)
    expected = {"embed.weight": VECTORS, "head.bias": VECTORS, "head.weight": HEAD / width}
    for name, scale in expected.items():
        assert torch.allclose(steps[name], torch.tensor(share * 0.02 * scale), rtol=1e-3)
    spectral = torch.linalg.svdvals(steps["hidden.weight"])[0]  # of an orthogonal matrix 1; five rounds come near it
    assert 0.6 < spectral / (share * 0.02 * math.sqrt(2)) < 1.3


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_weight_decay_follows_the_schedule_and_not_the_peak_rate(rate, share):
    with_decay, before = moved(16, rate, 0.01, share)
    without, _ = moved(16, rate, 0.0, share)
    if not rate:
        assert all(step.abs().max() == 0 for step in with_decay.values())
        return
    for name, value in before.items():
        expected = torch.zeros(()) if name == "head.bias" else share * 0.01 * value
        assert torch.allclose(with_decay[name] - without[name], expected, atol=1e-6), name
