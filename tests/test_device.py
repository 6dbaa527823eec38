"""The accelerator's path, as far as it can be followed without one."""

import pytest
import torch
from torch.cuda._utils import _get_device_index
from torch.optim.swa_utils import AveragedModel

from models.autoencoder import Autoencoder, AutoencoderConfig
from tests.helpers.scripts import TINY
from utils.core.config import load_config
from utils.runtime.device import choose_device
from utils.training.gradient import GradientLearner, GradientOptions


@pytest.mark.parametrize(("name", "expected"), [("cuda", []), ("cuda:0", [0]), ("cuda:1", [1]), ("cpu", [])])
def test_a_gpu_given_by_number_becomes_the_current_one(name, expected, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(_get_device_index(device)))
    assert choose_device(name) == torch.device(name)
    assert chosen == expected


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_averaged_weights_are_those_of_torch(decay, tmp_path):
    """That the host does not wait for it is tested in tests/test_accelerator.py."""
    config = load_config(TINY / "autoencoder.json", AutoencoderConfig)
    unread = dict.fromkeys(("dataset_path", "config_path", "out_dir"), tmp_path)
    options = GradientOptions(**unread, ema_decay=decay)
    model = Autoencoder(config)
    learner = GradientLearner(model, lambda model, batch: {}, config, options, 10, torch.device("cpu"))
    reference = AveragedModel(
        model, avg_fn=lambda mine, theirs, n: torch.lerp(mine, theirs, 1 - min(decay, (1 + int(n)) / (10 + int(n))))
    )
    for step in range(12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        learner._update_average(step)
        reference.update_parameters(model)
    for mine, theirs in zip(learner.average.parameters(), reference.module.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
