"""How much memory a training step needs: what is counted, how large batches follow, and what a learner says of it."""

import argparse
import gc
import json
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import utils.training.gradient
from tests.helpers import stages
from tests.helpers.deaths import results
from tests.helpers.runs import COUNT, MAINS, PLAN
from tests.helpers.scripts import expect_error, run_main
from utils.core.files import UserError
from utils.runtime import device as device_module
from utils.runtime.device import peak_memory, reset_peak_memory, usable_memory
from utils.runtime.footprint import Footprint, PeakMemory, count_flops, count_footprint, count_step
from utils.training.gradient import GradientLearner, GradientTask
from utils.training.loop import most_checkpoints

CPU = torch.device("cpu")
ACTIONS = st.tuples(st.sampled_from(["make", "free", "view", "change", "double"]), st.integers(1, 50))


@given(st.lists(ACTIONS, max_size=30))
def test_the_peak_is_that_of_a_list_of_what_is_alive(actions):
    old = torch.zeros(1000)
    held, peak = [], 0  # pairs of a tensor and of its size, a view's being that of what it is of
    with PeakMemory() as counter:
        for action, number in actions:
            index = number % len(held) if held else None
            if action == "make":
                held.append((torch.zeros(number), 4 * number))
            elif index is None:
                old.add_(1)  # what was there before does not count
                old[:5].mul_(2)
            elif action == "double":
                held.append((held[index][0] * 2, held[index][0].nbytes))
            elif action == "free":
                del held[index]
            elif action == "view":
                held[index] = (held[index][0][:1], held[index][1])
            else:
                held[index][0].mul_(2)
            alive = sum(size for _, size in held)
            peak = max(peak, alive)
            assert counter.now == alive
    assert counter.peak == peak


def test_a_gradient_step_needs_what_was_kept_for_it():
    weight = torch.ones(10, requires_grad=True)
    with PeakMemory() as counter:
        x = torch.ones(100, 10)  # 4,000 bytes, kept for the gradient of the weight
        loss = (x * weight).square().sum()  # the product is kept, its square goes once it is summed
        loss.backward()
    assert counter.peak >= 3 * 4000
    del x, loss
    gc.collect()
    assert counter.now == 40  # the gradient


FLOAT32 = torch.autocast("cpu", torch.bfloat16, enabled=False)


def squares(model, batch):
    return {"loss": model(batch).square().mean()}


@pytest.mark.parametrize("number", [0, 1])
def test_tensors_without_numbers_need_what_real_ones_need(number):
    cells = {"cell": 2, "head_features": 8} if number else {}
    stage = stages.build(number, condition_noise=0.2, dropout=0.1, **cells).train()
    stage.init_embeddings(*stages.CODEBOOKS[number : number + 2])
    tokens = stages.tokens_for(number, 6)
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    needed, operations = count_step(stage, lambda model, batch: model(*batch), tokens, FLOAT32)
    assert all(value.equal(before[name]) for name, value in stage.state_dict().items())
    assert all(weight.grad is None for weight in stage.parameters())
    with PeakMemory() as counter:
        assert count_flops(lambda: stage(*tokens)["loss"].backward()) == operations
    assert needed == counter.peak


@pytest.mark.parametrize("size", [1, 7, 16])
def test_a_footprint_is_counted_for_the_batch_and_grows_with_what_is_no_gradient(size):
    model = nn.Linear(1000, 10)
    gradients = sum(weight.nbytes for weight in model.parameters())
    footprint = count_footprint(model, squares, torch.zeros(size, 1000), FLOAT32, 500, gradients)
    needed = count_step(model, squares, torch.zeros(size, 1000), FLOAT32)[0]
    assert footprint.of(size) == 500 + needed
    assert footprint.of(2 * size) == 500 + gradients + 2 * (needed - gradients)
    assert footprint.flops_per_item == 2 * 2 * 1000 * 10  # the images need no gradient


def test_the_largest_part_that_fits_divides_the_batch():
    footprint = Footprint(standing=1000, size=12, batch=1200, per_item=100, flops_per_item=0)
    assert [footprint.of(size) for size in (1, 12, 24)] == [1100, 2200, 3400]
    fits = {1099: 0, 1100: 1, 1399: 3, 1400: 4, 1599: 4, 1600: 6, 9999: 6}
    assert {memory: footprint.largest_part(memory) for memory in fits} == fits


def test_a_container_may_use_its_free_memory_and_that_of_its_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(device_module, "CGROUP", tmp_path)
    monkeypatch.setattr(device_module, "size_in", lambda path, name: 2**50 if name == "MemAvailable" else 7)
    for name, text in {
        "max": "1000",
        "current": "900",
        "stat": "anon 300\nactive_file 200\ninactive_file 400\n",
    }.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert usable_memory(CPU) == 1000 - 900 + 200 + 400 + 7
    (tmp_path / "memory.stat").unlink()
    assert usable_memory(CPU) == 1000 - 900 + 7
    (tmp_path / "memory.max").write_text("max\n")
    assert usable_memory(CPU) == 2**50 + 7


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is reset on Linux alone")
def test_a_process_has_used_what_it_holds_and_its_peak_is_counted_anew():
    held = torch.ones(2**26)  # 256 MiB
    before = peak_memory(CPU)
    assert held.nbytes <= before < 2**40 and 2**26 < usable_memory(CPU) < 2**44
    del held
    reset_peak_memory()
    assert peak_memory(CPU) < before - 2**27


@pytest.mark.counts_memory
@pytest.mark.parametrize("name", ["autoencoder", "transformer_1"])
def test_a_batch_that_does_not_fit_is_refused_before_anything_changes(name, begun, command, monkeypatch, capsys):
    folder, main, needs = begun(name), MAINS[name], {}
    before = results(folder)

    def refused(size):
        asked = command(name, "run", *PLAN, "--overwrite", "--batch-size", size)
        line = expect_error(capsys, main, asked)
        assert results(folder) == before
        return line

    def count(task):
        needs[task.options.batch_size] = COUNT(task).of(task.options.batch_size)
        raise UserError("enough")

    with monkeypatch.context() as patched:
        patched.setattr(GradientTask, "footprint", count)
        for size in (6, 12):
            refused(size)
    assert needs[6] < needs[12]
    usable = (needs[6] + needs[12]) / 2 / utils.training.gradient.HEADROOM
    monkeypatch.setattr(utils.training.gradient, "usable_memory", lambda device: usable)
    line = refused(12)
    assert f"{name}.json" in line and "--batch-size 6 --grad-accum-step 2" in line
    run_main(main, *command(name, "other", "--max-step", 1, "--batch-size", 6, "--grad-accum-step", 2))
    monkeypatch.setattr(utils.training.gradient, "usable_memory", lambda device: 1)
    refused(12)


def test_a_compiled_model_is_not_refused(monkeypatch):
    monkeypatch.setattr(utils.training.gradient, "usable_memory", lambda device: 0)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    values = {"batch_size": 4, "step_size": 4, "precision": "fp32", "ema_decay": 0, "config_path": "c.json"}
    for compiled in (True, False):
        options = argparse.Namespace(**values, compile=compiled)
        config = argparse.Namespace(model_lr=0.1, weight_decay=0.001)
        learner = GradientLearner(nn.Linear(5, 7), lambda m, x: {"loss": m(x).mean()}, config, options, 10, CPU)
        if compiled:
            # Weights, two moments of AdamW, and their gradients; more for the images.
            assert learner.footprint(torch.zeros(4, 5)).of(4) > 4 * 42 * 4
        else:
            with pytest.raises(UserError, match=r"c\.json"):
                learner.footprint(torch.zeros(4, 5))


@pytest.mark.counts_memory
@pytest.mark.parametrize("name", ["autoencoder", "codebook_1"])
def test_a_training_says_what_it_will_take_after_twenty_steps(name, train, tmp_path):
    train(name, "out", "--max-step", 22, "--checkpoint-step", 11, "--keep-checkpoint", 1)
    attempt = json.loads((tmp_path / "out/run.json").read_text())["attempts"][-1]
    plan, folder = attempt["plan"], tmp_path / "out/models_checkpoint"
    saved = (folder / "latest.pt").stat().st_size
    assert 0 < plan["seconds_per_step"] < 60
    assert 0 < plan["seconds_per_checkpoint"] < 60
    assert plan["checkpoint"] <= saved <= plan["checkpoint"] + 100_000
    assert attempt["peak_memory"] > 2**20
    assert (plan["memory"] is None) == (name == "codebook_1")
    assert plan["batch"] == (None if name == "codebook_1" else 12)


def test_checkpoints_that_stay_are_counted():
    plans = {(22, 2, None): 11, (23, 2, None): 12, (22, 2, 3): 5, (4, 2, 3): 2}
    assert {plan: most_checkpoints(*plan) for plan in plans} == plans
