"""The accelerator's path, as far as it can be followed without one."""

import pytest
import torch

from models.autoencoder import Autoencoder, AutoencoderConfig
from models.map_learner import draw_keys
from tests.helpers.scripts import TINY
from utils.config import load_config
from utils.device import choose_device
from utils.gradient import GradientLearner, GradientOptions


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_the_chosen_gpu_is_the_one_that_is_measured_and_pinned_for(name, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device(name) == torch.device(name)
    assert chosen == [torch.device(name)]


def test_choosing_the_cpu_touches_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: pytest.fail(f"set {device}"))
    assert choose_device("cpu") == torch.device("cpu")


def test_the_draws_of_a_map_are_made_where_its_errors_are(monkeypatch):
    """Values of a meta tensor cannot come from another device, nor be copied back to one."""
    made, original = [], torch.rand_like
    monkeypatch.setattr(torch, "rand", lambda *_, **__: pytest.fail("drawn elsewhere"))
    monkeypatch.setattr(torch, "rand_like", lambda like: made.append(like.device) or original(like))
    assert draw_keys(torch.ones(5, device="meta")).device == torch.device("meta")
    assert made == [torch.device("meta")]


def test_the_averaged_weights_never_wait_for_the_device(tmp_path):
    """The counter that torch passes on would be read from the device; reading one that holds no number fails."""
    config = load_config(TINY / "autoencoder.json", AutoencoderConfig)
    unread = dict.fromkeys(("dataset_path", "config_path", "out_dir"), tmp_path)
    learner = GradientLearner(
        Autoencoder(config), lambda model, batch: {}, config, GradientOptions(**unread), 10, torch.device("cpu")
    )
    averaged, current = [torch.zeros(3)], [torch.ones(3)]
    learner.average.n_averaged.fill_(8)
    learner._average(averaged, current, torch.empty((), device="meta"))
    assert averaged[0].tolist() == pytest.approx([1 - 9 / 18] * 3)
