"""The accelerator's path, as far as it can be followed without one."""

import pytest
import torch
from torch.cuda._utils import _get_device_index
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode

from models.autoencoder import Autoencoder, AutoencoderConfig
from tests.helpers.scripts import TINY
from utils.core.config import load_config
from utils.runtime.device import choose_device
from utils.training.gradient import GradientLearner, GradientOptions


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_the_chosen_gpu_is_the_one_that_is_measured_and_pinned_for(name, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(_get_device_index(device)))
    assert choose_device(name) == torch.device(name)
    assert chosen == ([] if name == "cuda" else [int(name[-1])])


def test_choosing_the_cpu_touches_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: pytest.fail(f"set {device}"))
    assert choose_device("cpu") == torch.device("cpu")


class Untouched(TorchFunctionMode):
    """Fails where a number is read from a tensor, or a tensor is copied to another device: both wait for a GPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        assert name not in ("item", "tolist", "__bool__", "__int__", "__float__", "to", "cpu", "numpy"), name
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_averaged_weights_are_those_of_torch_and_never_wait_for_the_device(decay, tmp_path):
    config = load_config(TINY / "autoencoder.json", AutoencoderConfig)
    unread = dict.fromkeys(("dataset_path", "config_path", "out_dir"), tmp_path)
    options = GradientOptions(**unread, ema_decay=decay)
    model = Autoencoder(config)
    learner = GradientLearner(model, lambda model, batch: {}, config, options, 10, torch.device("cpu"))
    reference = AveragedModel(
        model, avg_fn=lambda mine, theirs, n: torch.lerp(mine, theirs, 1 - min(decay, (1 + int(n)) / (10 + int(n))))
    )
    for _ in range(12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        with Untouched():
            learner._update_average()
        reference.update_parameters(model)
    for mine, theirs in zip(learner.average.parameters(), reference.module.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
