"""What a process has used, and what a training says that it will take."""

import json
import sys

import pytest
import torch

from utils.runtime.device import peak_memory, reset_peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is reset on Linux alone")
def test_a_process_has_used_what_it_holds_and_its_peak_is_counted_anew():
    held = torch.ones(2**26)  # 256 MiB
    before = peak_memory(CPU)
    assert held.nbytes <= before < 2**40
    del held
    reset_peak_memory()
    assert peak_memory(CPU) < before - 2**27


@pytest.mark.parametrize("name", ["autoencoder", "codebook_1"])
def test_a_training_says_what_it_will_take_after_twenty_steps(name, train, tmp_path):
    train(name, "out", "--max-step", 22, "--checkpoint-step", 11, "--keep-checkpoint", 1)
    attempt = json.loads((tmp_path / "out/manifest.json").read_text())["attempts"][-1]
    plan, folder = attempt["plan"], tmp_path / "out/models_checkpoint"
    saved = (folder / "latest.pt").stat().st_size
    assert 0 < plan["seconds_per_step"] < 60
    assert 0 < plan["seconds_per_checkpoint"] < 60
    assert plan["checkpoint"] <= saved <= plan["checkpoint"] + 100_000
    assert attempt["peak_memory"] > 2**20
