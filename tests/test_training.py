"""The training loop, by itself and through the scripts that call it."""

import argparse
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.checkpoint import checkpoint

import train_autoencoder
import train_codebook
import train_quantized_transformer
from evaluation.likelihood import start_bits
from models.autoencoder import Autoencoder
from models.codebook import Codebook
from models.som.statistics import take_census
from models.stage import Stage
from models.transformer import Grid, Transformer, TransformerConfig
from scripts.soak import same
from tests.helpers.runs import BOUNDS, GRADIENT, MAINS, PRUNED, WEIGHTS, latest, rows
from tests.helpers.scripts import CODEBOOKS, TINY, expect_error, run_main
from utils.core.config import load_config
from utils.core.files import UserError
from utils.data.dataset import FeatureMapDataset, ImageDataset
from utils.data.images import save_grid
from utils.data.split import Bounds, position
from utils.runs.checkpoint import measured
from utils.training.gradient import GradientLearner, GradientOptions, learning_rate
from utils.training.loop import catch_stop
from utils.training.metrics import Metrics
from utils.training.optimizers import TOKENS
from utils.training.task import TrainingOptions


def options(**changes):
    paths = dict.fromkeys(("dataset_path", "config_path", "out_dir"), Path("unused"))
    return GradientOptions(**paths, **{"lr_step": 100, "warmup_step": 0, "max_epoch": 3} | changes)


@given(st.integers(0, 500), st.floats(1e-6, 1), st.integers(1, 60), st.integers(0, 40))
def test_the_step_schedule_warms_up_and_halves(step, base, lr_step, warmup):
    expected = base
    for _ in range(lr_step, step + 1, lr_step):
        expected /= 2
    if step < warmup:
        expected *= (step + 1) / (warmup + 1)
    args = options(lr_step=lr_step, warmup_step=warmup)
    assert learning_rate(step, 1000, base, args) == pytest.approx(expected)


@given(st.integers(1, 500), st.floats(1e-6, 1), st.integers(0, 40), st.data())
def test_the_cosine_schedule_warms_up_and_ends_at_zero(total, base, warmup, data):
    step = data.draw(st.integers(0, total))
    expected = base * math.cos(math.pi / 2 * step / total) ** 2 * min(1, (step + 1) / (warmup + 1))
    args = options(lr_schedule="cosine", warmup_step=warmup)
    assert learning_rate(step, total, base, args) == pytest.approx(expected, abs=1e-12)
    assert learning_rate(total, total, base, args) == pytest.approx(0, abs=1e-12)


@given(st.integers(1, 100), st.integers(1, 20), st.integers(1, 5), st.none() | st.integers(1, 200))
def test_steps_are_planned_to_the_last_epoch_or_max_step(items, batch_size, epochs, max_step):
    one_by_one = epochs * len(range(0, items, batch_size))
    args = options(batch_size=batch_size, max_epoch=epochs, max_step=max_step)
    assert args.planned_steps(items) == (one_by_one if max_step is None else min(one_by_one, max_step))


@pytest.mark.parametrize(("number", "wait"), [(signal.SIGINT, 0), (signal.SIGTERM, 10), (signal.SIGHUP, 10)])
def test_a_second_signal_acts_as_usual_once_it_can_be_no_echo_of_the_first(number, wait, monkeypatch):
    seen, now = [], 0.0
    monkeypatch.setattr("utils.training.loop.time.monotonic", lambda: now)
    signal.signal(number, lambda *_: seen.append("usual"))
    usual = signal.getsignal(number)
    with catch_stop() as stop:
        os.kill(os.getpid(), number)
        if wait:
            os.kill(os.getpid(), number)
        assert (set(stop), seen) == ({number}, [])
        now += wait
        os.kill(os.getpid(), number)
        assert seen == ["usual"]
    assert signal.getsignal(number) is usual


def test_a_base_stage_with_a_stage_before_it_is_refused(command, capsys):
    line = expect_error(capsys, MAINS["transformer_0"], command("transformer_0", "run", "--previous-path", "x.pt"))
    assert "--train-base-model has no stage before it: leave out --previous-path x.pt" in line


@pytest.mark.parametrize("name", ["autoencoder", "transformer_1"])
def test_load_optim_needs_model_path(name, command, capsys):
    line = expect_error(capsys, MAINS[name], command(name, "run", "--load-optim"))
    assert "--load-optim" in line
    assert "--model-path" in line


@pytest.mark.parametrize("name", ["autoencoder", "transformer_1"])
def test_model_path_starts_from_the_averaged_weights_and_a_new_optimizer(name, train, tiny_run, tmp_path, write_json):
    still = write_json(tmp_path / "still.json", json.loads((TINY / f"{name}.json").read_text()) | {"model_lr": 0})
    start = latest(tiny_run / name)
    found = train(name, "run", "--max-step", 1, "--config-path", still, "--model-path", tiny_run / name / WEIGHTS)
    assert same(found["model"], start["ema"])
    assert {int(state["step"]) for state in found["optimizer"]["state"].values()} == {1}
    assert found["step"] == 1


@pytest.mark.parametrize("name", ["autoencoder", "transformer_1"])
def test_load_optim_starts_from_the_weights_and_their_optimizer(name, train, tiny_run, tmp_path, write_json):
    still = write_json(tmp_path / "still.json", json.loads((TINY / f"{name}.json").read_text()) | {"model_lr": 0})
    start = latest(tiny_run / name)
    more = ("--config-path", still, "--model-path", tiny_run / name / WEIGHTS, "--load-optim")
    found = train(name, "run", "--max-step", 1, *more)
    assert same(found["model"], start["model"])
    assert {int(state["step"]) for state in found["optimizer"]["state"].values()} == {start["step"] + 1}


@pytest.mark.parametrize("more", [[], ["--load-optim"]])
def test_the_momentum_of_muon_is_loaded_with_the_optimizer_and_only_then(more, train, tiny_run):
    start = latest(tiny_run / "transformer_1")
    no_gradient = ("--max-step", 1, "--grad-clip", 1e-12, "--model-path", tiny_run / "transformer_1" / WEIGHTS)
    found = train("transformer_1", "run", *no_gradient, *more)
    for index, state in start["muon"]["state"].items():
        expected = state["momentum"] * (0.95 if more else 0)
        assert torch.allclose(found["muon"]["state"][index]["momentum"], expected, atol=1e-9)


@pytest.fixture
def for_decoder(tiny_run):
    """The flags that train the decoder of the tiny run alone, on maps quantized by its finest codebook."""
    codebook = tiny_run / CODEBOOKS[-1] / PRUNED
    return ("--encoder-path", tiny_run / "autoencoder" / WEIGHTS, "--hr-codebook-path", codebook)


def test_a_decoder_learns_from_quantized_maps_and_its_encoder_stays(train, tiny_run, faces, tmp_path, for_decoder):
    found = train("autoencoder", "run", "--max-step", 30, *for_decoder)
    before, after = (Autoencoder.load(path / WEIGHTS) for path in (tiny_run / "autoencoder", tmp_path / "run"))
    assert after.origin == before.origin and after.fingerprint != before.fingerprint
    codebook = Codebook.load(for_decoder[-1])
    assert found["trained_from"] == before.origin | {"hr_codebook": codebook.fingerprint}
    dataset = ImageDataset(faces)
    images = dataset[dataset.split(BOUNDS).validation]
    fmap = codebook.lookup(codebook.find_bmu(before.encode(images)))
    with torch.no_grad():
        errors = [(model.decode(fmap) - images).abs().mean() for model in (before, after)]
        assert torch.equal(after(images, codebook), after.decode(fmap))
    assert errors[1] < 0.95 * errors[0]


def test_a_decoder_resumes_exactly(train, for_decoder):
    whole = train("autoencoder", "whole", "--max-step", 6, *for_decoder)
    train("autoencoder", "parts", "--max-step", 6, "--checkpoint-step", 3, *for_decoder)
    parts = train("autoencoder", "parts", "--max-step", 6, "--resume", *for_decoder)
    assert same(whole["model"], parts["model"])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--encoder-path", "a.pt"], ("--encoder-path and --hr-codebook-path",)),
        (["--hr-codebook-path", "c.pt"], ("--encoder-path and --hr-codebook-path",)),
        (["--encoder-path", "a.pt", "--hr-codebook-path", "c.pt", "--model-path", "m.pt"], ("--model-path",)),
        (["--encoder-path", "a.pt", "--hr-codebook-path", "c.pt"], ("a.pt: no such checkpoint",)),
    ],
)
def test_what_a_decoder_cannot_learn_from_is_refused(more, words, command, capsys):
    line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", *more))
    assert all(word in line for word in words)


def test_a_decoder_refuses_images_of_another_size_and_to_remove_its_encoder(
    command, train, faces, for_decoder, tmp_path, capsys
):
    folder = tmp_path / "smaller"
    shutil.copytree(faces.parent, folder)
    for path in folder.rglob("*.png"):
        Image.open(path).resize((16, 16)).save(path)
    more = (*for_decoder, "--dataset-path", folder / "dataset.json", "--verify")
    line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", *more))
    assert str(for_decoder[-1]) in line and "(4, 4, 4)" in line
    train("autoencoder", "own", "--max-step", 1)
    more = ("--encoder-path", tmp_path / "own" / WEIGHTS, *for_decoder[2:], "--overwrite")
    for flags in (more, (*more, "--resume")):
        line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "own", *flags))
        assert "encoder" in line or "--overwrite would remove it" in line
    assert (tmp_path / "own" / WEIGHTS).is_file()


def test_a_decoder_and_a_codebook_of_another_encoder_are_refused(command, train, for_decoder, tmp_path, capsys):
    train("autoencoder", "other", "--max-step", 1, "--seed", 1)
    more = ("--encoder-path", tmp_path / "other" / WEIGHTS, *for_decoder[2:])
    line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", *more))
    assert str(for_decoder[-1]) in line and "encoder" in line


def test_weights_of_another_width_are_refused_by_name(command, tiny_run, tmp_path, write_json, capsys):
    config = json.loads((TINY / "autoencoder.json").read_text()) | {"latent_channel": 3}
    path = tiny_run / "autoencoder" / WEIGHTS
    more = ("--config-path", write_json(tmp_path / "other.json", config), "--model-path", path)
    assert str(path) in expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", *more))


@pytest.mark.parametrize("file", ["latest.pt", "pruned_codebook.pt"])
def test_codebook_path_goes_on_at_radius_0(file, train, tiny_run, tmp_path):
    start = torch.load(tiny_run / "codebook_1/models_checkpoint" / file, weights_only=True)
    found = train(
        "codebook_1", "run", "--max-step", 2, "--codebook-path", tiny_run / "codebook_1/models_checkpoint" / file
    )
    assert [row["radius"] for row in rows(tmp_path / "run", "train_loss")] == [0, 0]
    assert found["model"]["units"].shape == start["model"]["units"].shape
    assert sorted(found["model"]["coordinates"].tolist()) == sorted(start["model"]["coordinates"].tolist())
    assert found["model"]["counts"].sum() == 56 * 16, "of the training maps alone"


def test_codebook_path_of_another_config_is_refused_by_name(command, tiny_run, capsys):
    path = tiny_run / "codebook_2" / WEIGHTS
    line = expect_error(capsys, MAINS["codebook_1"], command("codebook_1", "run", "--codebook-path", path))
    assert str(path) in line
    assert str(TINY / "codebook_1.json") in line


def test_a_loss_that_is_no_number_stops_with_one_line_and_saves_nothing(command, train, tmp_path, monkeypatch, capsys):
    before = train("autoencoder", "run", "--max-step", 1)
    original, calls = Autoencoder.loss, []

    def broken(*arguments):
        calls.append(arguments)
        return original(*arguments) * (math.nan if len(calls) == 3 else 1)  # the first call counts memory

    monkeypatch.setattr(Autoencoder, "loss", broken)
    line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", "--max-step", 9, "--resume"))
    assert "train_loss is nan at step 3" in line
    assert "'model_lr'" in line
    assert same(latest(tmp_path / "run"), before)


def test_the_advice_after_such_a_loss_can_be_followed(command, tmp_path, write_json, capsys):
    config = json.loads((TINY / "autoencoder.json").read_text()) | {"model_lr": 1e38}
    high = ("--config-path", write_json(tmp_path / "high.json", config))
    plan = ("--max-step", 9, "--checkpoint-step", 1)
    line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", *plan, *high))
    assert "lower 'model_lr'" in line
    assert "resume" not in line  # which would refuse another 'model_lr'


def test_weights_that_are_no_numbers_are_not_saved(command, tmp_path, monkeypatch, capsys):
    original = Autoencoder.loss

    def finite_with_a_broken_gradient(model, output, target):
        return original(model, output, target) + 0 * (0 * output.sum()).abs().sqrt()

    monkeypatch.setattr(Autoencoder, "loss", finite_with_a_broken_gradient)
    line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", "--max-step", 1))
    assert "step 1" in line
    assert not (tmp_path / "run" / WEIGHTS).exists()


def test_max_epoch_ends_a_run(train, tmp_path):
    assert train("autoencoder", "run", "--max-epoch", 2)["step"] == 2 * 3  # 28 images in batches of 12
    assert [row["epoch"] for row in rows(tmp_path / "run", "train_loss")] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ("--lr-schedule", "cosine", "--warmup-step", 0),
            [0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)],
        ),
        (("--lr-schedule", "step", "--lr-step", 2, "--warmup-step", 0), [1, 1, 0.5, 0.5]),
        (("--warmup-step", 3), [0.25, 0.5, 0.75, 1]),
    ],
)
def test_the_schedule_flags_decide_the_rate(flags, expected, train, tmp_path):
    train("autoencoder", "run", "--max-step", 4, *flags)
    base = json.loads((TINY / "autoencoder.json").read_text())["model_lr"] * math.sqrt(12 * 8 * 8 / TOKENS)
    found = [row["learning_rate"] for row in rows(tmp_path / "run", "train_loss")]
    assert found == pytest.approx([base * share for share in expected])


@pytest.mark.parametrize(("device", "wait", "words"), [("meta", 0.4, ["29 %"]), ("meta", 0.04, []), ("cpu", 0.4, [])])
def test_a_gpu_that_waits_for_data_is_told_of_once(device, wait, words, tmp_path, monkeypatch, caplog):
    paths = dict.fromkeys(("dataset_path", "config_path", "out_dir"), tmp_path)
    metrics = Metrics(TrainingOptions(**paths), 10)
    now = [0.0]
    monkeypatch.setattr("utils.training.metrics.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("utils.training.metrics.wait_for", lambda device: None)  # there is none

    def loader():
        for _ in range(4):
            now[0] += wait
            yield torch.zeros(2)

    metrics.begin(0)
    for step, batch in enumerate(metrics.timed(loader(), torch.device(device)), 1):
        now[0] += 1
        metrics.add({"loss": 1.0}, len(batch))
        if step % 2 == 0:
            assert metrics.close(step)["data_wait"] == pytest.approx(wait / (1 + wait))
    assert re.findall(r"\d+ %", caplog.text) == words


def test_metrics_hold_what_is_promised(train, tmp_path):
    train("autoencoder", "a", "--max-step", 2)
    train("transformer_0", "b", "--max-step", 2)
    train("codebook_1", "c", "--max-step", 2)
    keys = {"step", "epoch", "train_loss", "gradient_norm", "learning_rate"}
    first, second, validation = rows(tmp_path / "a")
    assert set(first) == set(second) == keys | {"images_per_second", "tflops_per_second", "data_wait"}
    assert first["images_per_second"] > 0
    assert {"step", "epoch", "val_loss"} <= set(validation)
    first, last, validation = rows(tmp_path / "b")
    trained = keys | {"train_bits", "train_accuracy", "tokens_per_second", "tflops_per_second", "data_wait"}
    measured = {"val_loss", "val_bits", "val_accuracy", "val_images", "stage_bits", "image_bits"}
    assert set(first) == trained | measured  # a log line; the last one has its own line of validation
    assert set(last) == trained
    assert set(validation) == {"step", "epoch"} | measured
    assert min(first["tokens_per_second"], first["tflops_per_second"]) > 0
    assert {"quantization_error", "topographic_error", "units_used", "perplexity"} <= set(rows(tmp_path / "c")[-1])


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_an_autoencoder_is_measured_by_its_loss_and_in_decibels(loss, train, faces, tmp_path, write_json):
    config = json.loads((TINY / "autoencoder.json").read_text()) | {"loss": loss}
    train("autoencoder", "run", "--max-step", 2, "--config-path", write_json(tmp_path / "config.json", config))
    dataset = ImageDataset(faces)
    images = dataset[dataset.split(BOUNDS).validation]
    model = Autoencoder.load(tmp_path / "run" / WEIGHTS)
    made = model(images).detach()
    found = rows(tmp_path / "run", "val_psnr")[-1]
    assert found["val_loss"] == pytest.approx(model.loss(made, images).item(), rel=1e-5)
    assert found["val_psnr"] == pytest.approx(10 * math.log10(4 / F.mse_loss(made, images).item()), rel=1e-5)


def test_the_bits_of_an_image_add_up_through_the_cascade(train, tiny_run, tmp_path):
    train("transformer_0", "base", "--max-step", 2)
    base = rows(tmp_path / "base", "val_bits")[-1]
    assert base["stage_bits"] == pytest.approx(base["val_loss"] / math.log(2) * 4)  # a grid of 2×2
    maps = FeatureMapDataset(tiny_run / "feature_maps/dataset.json")
    book = Codebook.load(tiny_run / CODEBOOKS[0] / PRUNED)
    shares = book.counts.double() + 0.5
    used = book.find_bmu(maps[maps.split(BOUNDS).validation])
    condition = float(-(shares / shares.sum())[used].log2().mean())
    assert base["image_bits"] == pytest.approx(condition + base["stage_bits"])
    train("transformer_1", "next", "--max-step", 2, "--previous-path", tmp_path / "base" / WEIGHTS)
    last = rows(tmp_path / "next", "val_bits")[-1]
    assert last["stage_bits"] == pytest.approx(last["val_bits"] * 16)
    assert last["image_bits"] == pytest.approx(base["image_bits"] + last["stage_bits"])
    train("transformer_1", "alone", "--max-step", 1)
    assert "image_bits" not in rows(tmp_path / "alone", "val_bits")[-1]


@pytest.fixture
def labelled(command, tiny_run, tmp_path, write_json):
    """A function: the arguments that train a base stage into a folder, with labels by the number and hash of images."""

    def build(out, label_of, *more):
        maps, names = tmp_path / out / "maps/dataset.json", {}
        shutil.copytree(tiny_run / "feature_maps", maps.parent)
        content = json.loads(maps.read_text())
        for record in content["_default"].values():
            number = names.setdefault(record["image_key"], len(names))
            record["labels"] = label_of(number, position(record["image_key"]))
        config = json.loads((TINY / "transformer_0.json").read_text()) | {"use_labels": True}
        path = write_json(tmp_path / out / "config.json", config)
        data = ("--dataset-path", write_json(maps, content), "--config-path", path)
        return command("transformer_0", f"{out}/run", "--max-step", 1, *data, *more)

    return build


def test_labels_are_those_of_the_training_images_and_cost_bits(labelled, tiny_run, tmp_path):
    def label_of(number, place):
        return ["held out"] if place < BOUNDS.test else [["even"], ["odd"], []][number % 3]

    run_main(MAINS["transformer_0"], *labelled("new", label_of))
    found = latest(tmp_path / "new/run")
    assert found["config"]["labels"] == ("even", "odd")
    maps = FeatureMapDataset(tmp_path / "new/maps/dataset.json")
    split = maps.split(BOUNDS)
    own = [maps.label(index) for index in split.training]
    shares = [own.count(labels) + 0.5 for labels in (["even"], ["odd"], [])]
    assert found["model"]["label_usage"].sum(1).tolist() == [share - 0.5 for share in shares[:2]]
    row = rows(tmp_path / "new/run", "image_bits")[-1]
    book = Codebook.load(tiny_run / CODEBOOKS[0] / PRUNED)
    code = (book.counts.double() + 0.5) / (book.counts.double() + 0.5).sum()
    condition = -code[book.find_bmu(maps[split.validation])].log2().mean().item()
    label = -math.log2(shares[2] / sum(shares))  # one that only held-out images have counts as none
    assert row["image_bits"] == pytest.approx(condition + label + row["stage_bits"])
    stage = Stage.load(tmp_path / "new/run" / WEIGHTS, book, Codebook.load(tiny_run / CODEBOOKS[1] / PRUNED))
    evaluated = start_bits(stage, book, maps, split.validation, split.training, batch_size=3)
    assert evaluated == pytest.approx({"condition": condition, "label": label})


def test_weights_of_other_labels_are_refused_and_counts_are_those_of_the_new_data(labelled, tmp_path, capsys):
    run_main(MAINS["transformer_0"], *labelled("ab", lambda number, _: [["a", "b"][number % 2]]))
    weights = ("--model-path", tmp_path / "ab/run" / WEIGHTS)
    others = labelled("pets", lambda number, _: [["cat", "dog"][number % 2]], *weights)
    line = expect_error(capsys, MAINS["transformer_0"], others)
    assert f"{weights[1]}: was trained with the labels a, b, this data set has cat, dog; give data" in line
    assert not (tmp_path / "pets/run/run.json").exists()
    run_main(MAINS["transformer_0"], *labelled("ba", lambda number, _: [["a", "a", "b"][number % 3]], *weights))
    maps = FeatureMapDataset(tmp_path / "ba/maps/dataset.json")
    own = [maps.label(index) for index in maps.split(BOUNDS).training]
    found = latest(tmp_path / "ba/run")
    for state in (found["model"], found["ema"]):
        assert state["label_usage"].sum(1).tolist() == [own.count(["a"]), own.count(["b"])]


@pytest.mark.parametrize("name", ["autoencoder", "codebook_1"])
def test_what_the_weights_of_a_start_have_seen_is_no_test_image(name, train, tiny_run, tmp_path):
    """The source chose by images up to 0.1 and learned from those above 0.2."""
    start = ("--codebook-path" if name == "codebook_1" else "--model-path", tiny_run / name / WEIGHTS)
    for out, fractions, expected in (("same", (0.1, 0.1), (0.1, 0.2)), ("other", (0.05, 0.3), (0.1, 0.2))):
        flags = ("--val-fraction", fractions[0], "--test-fraction", fractions[1])
        found = train(name, out, "--max-step", 1, *start, *flags)
        assert Bounds.saved(found) == pytest.approx(expected)
        log = (tmp_path / out / "train.log").read_text()
        assert ("held out other images, so test images are now those with hashes from 0.1 to 0.2" in log) is (
            out == "other"
        )
        again = train(name, out, "--max-step", 2, "--resume", *flags)
        assert again["step"] == 2 and again["bounds"] == found["bounds"]


def test_a_previous_stage_with_another_codebook_is_refused_by_name(command, tiny_run, capsys):
    path = tiny_run / "transformer_1" / WEIGHTS
    line = expect_error(capsys, MAINS["transformer_1"], command("transformer_1", "run", "--previous-path", path))
    assert f"{path}: was made with another codebook" in line


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(train, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 1.5, 0.5])
    monkeypatch.setattr(train_quantized_transformer, "mean_over", lambda *_: {"val_loss": next(losses), "val_bits": 0})
    often = ("--checkpoint-step", 1, "--log-step", 10)
    train("transformer_1", "run", "--max-step", 3, *often)
    best = tmp_path / "run/models_checkpoint/best.pt"
    found = torch.load(best, weights_only=True)
    assert (found["step"], measured(best, found["fingerprint"])["val_loss"]) == (2, 1.0)
    train("transformer_1", "run", "--max-step", 4, *often, "--resume")
    assert torch.load(best, weights_only=True)["step"] == 2
    train("transformer_1", "run", "--max-step", 5, *often, "--resume")
    assert torch.load(best, weights_only=True)["step"] == 5


@pytest.mark.parametrize("name", ["transformer_1", "codebook_1"])
def test_old_checkpoints_make_room_for_new_ones_if_asked(name, train, tmp_path):
    plan = ("--checkpoint-step", 1, "--keep-checkpoint", 2)
    train(name, "run", "--max-step", 3, *plan)
    train(name, "run", "--max-step", 5, *plan, "--resume")
    folder = tmp_path / "run/models_checkpoint"
    kind = "codebook" if name == "codebook_1" else "model"
    files = {"latest.pt": 5, f"{kind}_4.pt": 4, f"{kind}_5.pt": 5}
    if kind == "model":
        validated = [row for row in rows(tmp_path / "run", "val_loss") if "train_loss" not in row]
        assert [row["step"] for row in validated] == [1, 2, 3, 4, 5]
        files["best.pt"] = min(validated, key=lambda row: row["val_loss"])["step"]
    assert {path.name for path in folder.iterdir()} == {"measured.json", *files}
    assert {file: torch.load(folder / file, weights_only=True)["step"] for file in files} == files


def test_with_nothing_held_out_the_best_is_the_newest(train, tmp_path):
    train("transformer_0", "run", "--max-step", 2, "--checkpoint-step", 1, "--val-fraction", 0)
    path = tmp_path / "run/models_checkpoint/best.pt"
    best = torch.load(path, weights_only=True)
    assert (best["step"], measured(path, best["fingerprint"])) == (2, {})


def test_a_loss_that_is_no_number_is_never_the_best(train, tmp_path, monkeypatch):
    losses = iter([math.nan, 3.0, math.nan])
    monkeypatch.setattr(train_quantized_transformer, "mean_over", lambda *_: {"val_loss": next(losses), "val_bits": 0})
    train("transformer_1", "run", "--max-step", 3, "--checkpoint-step", 1, "--log-step", 10)
    assert torch.load(tmp_path / "run/models_checkpoint/best.pt", weights_only=True)["step"] == 2


@pytest.mark.parametrize("name", MAINS)
def test_what_cannot_be_measured_is_saved_all_the_same(name, command, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise UserError("map.npy: not a feature map")

    for script in (train_autoencoder, train_codebook, train_quantized_transformer):
        monkeypatch.setattr(script, "mean_over", fail)
    line = expect_error(capsys, MAINS[name], command(name, "run", "--max-step", 2, "--log-step", 9))
    assert line == "error: map.npy: not a feature map"
    assert latest(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize("name", GRADIENT)
def test_accumulation_gives_the_gradients_of_the_whole_batch(name, train, tiny_run):
    def plan(size, parts):
        return ("--max-step", 1, "--batch-size", size, "--grad-accum-step", parts, "--grad-clip", 1e9)

    # Adam's first moment after one step is a tenth of the gradient, Muon's momentum a twentieth. Of a new transformer
    # the head alone would have a gradient.
    start = ("--model-path", tiny_run / name / WEIGHTS)
    whole, parts = (train(name, f"{size}", *plan(size, n), *start) for size, n in ((12, 1), (4, 3)))
    for optimizer, moment in (("optimizer", "exp_avg"), ("muon", "momentum")):
        for index, state in whole.get(optimizer, {"state": {}})["state"].items():
            assert state[moment].abs().max() > 0
            assert torch.allclose(parts[optimizer]["state"][index][moment], state[moment], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("size", [1, 4, 7, 10])
def test_so_do_parts_that_are_not_equal(size):
    torch.manual_seed(0)
    x, y = torch.randn(10, 3), torch.randn(10, 2)
    gradients, numbers = [], []
    for batch_size in (size, 10):
        model = torch.nn.Linear(3, 2)
        torch.nn.init.ones_(model.weight), torch.nn.init.zeros_(model.bias)
        args = options(batch_size=batch_size, precision="fp32", ema_decay=0)
        config = argparse.Namespace(model_lr=0.1, weight_decay=0.001)

        def measure(model, batch):
            error = (model(batch[0]) - batch[1]).square()
            return {"loss": error.mean(), "largest": error.amax(1).mean()}

        learner = GradientLearner(model, measure, config, args, 10, torch.device("cpu"))
        found = learner.backward(model, (x, y))
        gradients.append(torch.cat([model.weight.grad.flatten(), model.bias.grad]))
        numbers.append(torch.stack([found["loss"], found["largest"]]))
    assert torch.allclose(*gradients, atol=1e-6)
    assert torch.allclose(*numbers, atol=1e-6)
    assert not numbers[0].requires_grad


def test_an_accumulated_step_is_one_step_of_all_its_items(train, tmp_path):
    train("autoencoder", "run", "--max-epoch", 2, "--batch-size", 4, "--grad-accum-step", 3)
    assert [row["epoch"] for row in rows(tmp_path / "run", "train_loss")] == [0, 0, 0, 1, 1, 1]  # of 28 images by 12


def test_without_an_average_there_is_none(train):
    found = train("autoencoder", "run", "--max-step", 2, "--ema-decay", 0)
    assert "ema" not in found


def test_the_average_is_of_the_weights_and_short_at_first(train, tmp_path):
    train("autoencoder", "run", "--max-step", 3, "--checkpoint-step", 1, "--ema-decay", 0.2)
    steps = [torch.load(tmp_path / f"run/models_checkpoint/model_{n}.pt", weights_only=True) for n in (1, 2, 3)]
    expected = {name: value.double() for name, value in steps[0]["model"].items()}
    assert same(steps[0]["ema"], steps[0]["model"])
    for content, decay in zip(steps[1:], (2 / 11, 0.2), strict=True):
        expected = {name: decay * expected[name] + (1 - decay) * content["model"][name] for name in expected}
        for name, value in content["ema"].items():
            assert torch.allclose(value.double(), expected[name], atol=1e-6)


def test_the_gradient_is_clipped(train, tmp_path):
    found = train("autoencoder", "run", "--max-step", 1, "--grad-clip", 1e-3)
    # After one step the first moment of Adam is a tenth of the gradient, the momentum of Muon a twentieth.
    gradient = [state["exp_avg"].flatten() * 10 for state in found["optimizer"]["state"].values()]
    gradient += [state["momentum"].flatten() * 20 for state in found["muon"]["state"].values()]
    assert rows(tmp_path / "run")[0]["gradient_norm"] > 1e-2
    assert torch.cat(gradient).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_workers_change_nothing_and_the_seed_does(train):
    plan = ("--max-step", 3)
    alone = train("autoencoder", "a", *plan, "--num-workers", 0)
    assert same(train("autoencoder", "b", *plan, "--num-workers", 2), alone)
    assert not same(train("autoencoder", "c", *plan, "--seed", 1)["model"], alone["model"])


def test_bfloat16_is_near_float32(train, tmp_path):
    train("autoencoder", "a", "--max-step", 2, "--precision", "bf16")
    train("autoencoder", "b", "--max-step", 2, "--precision", "fp32")
    low, high = ([row["train_loss"] for row in rows(tmp_path / out, "train_loss")] for out in "ab")
    assert low != high
    assert low == pytest.approx(high, rel=0.02)


def test_compile_compiles_and_the_checkpoint_is_as_without(train, monkeypatch):
    plain = train("autoencoder", "a", "--max-step", 2)
    original, compiled = torch.compile, []

    def compile_eagerly(model):
        compiled.append(model)
        return original(model, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    found = train("autoencoder", "b", "--max-step", 2, "--compile")
    assert len(compiled) == 1
    assert found["model"].keys() == plain["model"].keys()
    assert all(torch.allclose(value, plain["model"][name], atol=1e-5) for name, value in found["model"].items())


def test_activation_checkpoints_do_not_change_gradients():
    config = load_config(TINY / "transformer_1.json", TransformerConfig)
    config = TransformerConfig(**vars(config) | {"dropout": 0.1})
    torch.manual_seed(0)
    model = Transformer(config, Grid(4, 4, 7), 8, Grid(2, 2, 5))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    inputs, source = torch.randint(8, (3, 16)), torch.randint(5, (3, 4))
    calls, original = [], checkpoint
    gradients = []
    for use in (False, True):
        model.use_activation_checkpoint = use
        model.zero_grad()
        torch.manual_seed(1)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("models.transformer.checkpoint", lambda *a, **k: calls.append(a) or original(*a, **k))
            model(inputs, source).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        assert len(calls) == (3 if use else 0)  # a block of the encoder, two of the decoder
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])
    assert all(map(torch.equal, *gradients))


def test_the_flag_for_activation_checkpoints_changes_no_result(train, monkeypatch):
    plan = ("--max-step", 2, "--temperature", 0.5)
    plain = train("transformer_1", "a", *plan)
    calls, original = [], checkpoint
    monkeypatch.setattr("models.transformer.checkpoint", lambda *a, **k: calls.append(a) or original(*a, **k))
    assert same(train("transformer_1", "b", *plan, "--use-activation-checkpoint"), plain)
    assert calls


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("autoencoder", {"ground_truth", "recon"}),
        ("codebook_1", {"image_plot", "quant_image_plot", "comparison", "atlas", "u_matrix"}),
        ("transformer_1", {"ground_truth", "low_res_cond", "high_res_example", "high_res_recon"}),
    ],
)
def test_every_checkpoint_has_its_pictures(name, pictures, train, tmp_path):
    train(name, "run", "--max-step", 3, "--checkpoint-step", 2)
    found = {path.name for path in (tmp_path / "run/images").iterdir()}
    at_the_end = {"hit_map_3.png"} if name == "codebook_1" else set()
    assert found == {f"{picture}_{step}.png" for picture in pictures for step in (2, 3)} | at_the_end
    checkpoints = {path.name for path in (tmp_path / "run/models_checkpoint").iterdir()}
    prefix = "codebook" if name == "codebook_1" else "model"
    best = set() if name == "codebook_1" else {"best.pt"}
    assert checkpoints == {f"{prefix}_2.pt", f"{prefix}_3.pt", "latest.pt", "measured.json"} | best


def test_a_codebook_is_compared_with_the_originals(train, tiny_run, tmp_path):
    """Three rows: the images, decoded as they are, and after quantization."""
    train("codebook_1", "run", "--max-step", 1)
    maps = FeatureMapDataset(tiny_run / "feature_maps/dataset.json")
    shown = maps.unflipped(maps.split(BOUNDS).validation)[:10]
    with torch.no_grad():
        decoded = Autoencoder.load(tiny_run / "autoencoder" / WEIGHTS).decode(maps[shown])
    save_grid(torch.cat((maps.images(shown, 4), decoded)), tmp_path / "expected.png", columns=len(shown))
    expected, found = (
        np.asarray(Image.open(path)) for path in (tmp_path / "expected.png", tmp_path / "run/images/comparison_1.png")
    )
    assert found.shape[0] == 3 * 34 + 2
    assert (np.abs(found[: 2 * 34].astype(int) - expected[: 2 * 34]) <= 1).all()


def test_a_codebook_is_measured_at_the_end(train, tiny_run, tmp_path):
    found = train("codebook_1", "run", "--max-step", 3)
    statistics = found["statistics"]
    keys = {"quantization_error", "share_of_variance", "topographic_error", "units", "units_used", "entropy_bits"}
    keys |= {"perplexity", "most_used", "least_used", "psnr_before_quantization", "psnr_after_quantization"}
    assert set(statistics) == keys
    assert rows(tmp_path / "run", "topographic_error") == [{"step": 3, **statistics}]
    log = (tmp_path / "run/train.log").read_text()
    assert f"topographic error  {statistics['topographic_error']:.4g}" in re.sub(" {2,}", "  ", log)
    maps = FeatureMapDataset(tiny_run / "feature_maps/dataset.json")
    codebook = Codebook.load(tmp_path / "run" / WEIGHTS)
    census = take_census(codebook, [maps[maps.split(BOUNDS).training]])
    assert codebook.counts.equal(census.counts), "of the training maps alone"
    assert census.statistics(codebook)["topographic_error"] == pytest.approx(statistics["topographic_error"], abs=1e-3)


def test_a_codebook_trains_where_the_images_are_gone(train, tiny_run, tmp_path):
    shutil.copytree(tiny_run / "feature_maps", tmp_path / "moved/maps")
    found = train("codebook_1", "run", "--max-step", 1, "--dataset-path", tmp_path / "moved/maps/dataset.json")
    assert "psnr_after_quantization" not in found["statistics"]
    assert "their PSNR is not measured" in (tmp_path / "run/train.log").read_text()
    assert Image.open(tmp_path / "run/images/comparison_1.png").height == 2 * 34 + 2


def test_with_nothing_held_out_previews_show_training_images(train, tmp_path):
    train("autoencoder", "run", "--max-step", 1, "--val-fraction", 0)
    assert rows(tmp_path / "run", "val_loss") == []
    assert len(list((tmp_path / "run/images").iterdir())) == 2
    log = (tmp_path / "run/train.log").read_text()
    assert re.search(r"no image is a validation image.*--val-fraction", log)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_lost_in_training_is_named(workers, command, faces, tmp_path, capsys):
    path = shutil.copytree(faces.parent, tmp_path / "data") / "dataset.json"
    records = json.loads(path.read_text())["_default"].values()
    lost = [record["image_fpath"] for record in records if position(record["image_fpath"]) >= BOUNDS.test][1:]
    for name in lost:
        (path.parent / name).write_bytes(b"garbage")
    more = ("--dataset-path", path, "--num-workers", workers)
    line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", *more))
    assert line.startswith(tuple(f"error: {path.parent / name}: not an image" for name in lost))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_saves_also_while_others_load(number, command, tmp_path):
    flags = ("--num-workers", 2, "--max-step", 10**6, "--checkpoint-step", 10**6)
    argv = [str(word) for word in command("autoencoder", "run", *flags)]
    script = Path(__file__).parent.parent / "train_autoencoder.py"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, script, *argv], text=True, start_new_session=True, **pipes)
    metrics = tmp_path / "run/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert latest(tmp_path / "run")["step"] >= 1
