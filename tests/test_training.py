"""The training loop, by itself and through the scripts that call it."""

import argparse
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

import train_autoencoder
import train_codebook
import train_quantized_transformer
from evaluation.likelihood import start_bits
from models.autoencoder import Autoencoder
from models.codebook import Codebook
from models.som.statistics import take_census
from models.stage import Stage
from tests.helpers.deaths import differences, same
from tests.helpers.files import edited
from tests.helpers.runs import BOUNDS, MAINS, PLAN, PRUNED, WEIGHTS, latest, rows
from tests.helpers.scripts import CODEBOOKS, TINY, expect_error, run_main
from utils.core.files import UserError
from utils.core.options import parse_options
from utils.data.batches import EpochSampler
from utils.data.dataset import FeatureMapDataset, ImageDataset
from utils.data.split import Bounds, position
from utils.runs.checkpoint import measured
from utils.runtime.distributed import Share
from utils.runtime.draws import drawing
from utils.training.checkpoint_folder import CheckpointFolder
from utils.training.gradient import GradientLearner, GradientOptions, learning_rate
from utils.training.metrics import Metrics
from utils.training.optimizers import TOKENS
from utils.training.task import TrainingOptions


def options(**changes):
    paths = dict.fromkeys(("dataset_path", "config_path", "out_dir"), Path("unused"))
    return GradientOptions(**paths, **{"lr_step": 100, "warmup_step": 0, "max_epoch": 3} | changes)


@given(st.integers(1, 500), st.floats(1e-6, 1), st.integers(1, 60), st.integers(0, 40), st.data())
def test_both_schedules_warm_up_and_one_halves_and_the_other_ends_at_zero(total, base, lr_step, warmup, data):
    step = data.draw(st.integers(0, total))
    warm, halved = min(1, (step + 1) / (warmup + 1)), base
    for _ in range(lr_step, step + 1, lr_step):
        halved /= 2
    by_step = options(lr_step=lr_step, warmup_step=warmup)
    assert learning_rate(step, total, base, by_step) == pytest.approx(halved * warm)
    cosine = options(lr_schedule="cosine", warmup_step=warmup)
    expected = base * math.cos(math.pi / 2 * step / total) ** 2 * warm
    assert learning_rate(step, total, base, cosine) == pytest.approx(expected, abs=1e-12)
    assert learning_rate(total, total, base, cosine) == pytest.approx(0, abs=1e-12)
    early = options(lr_schedule="cosine", warmup_step=warmup, schedule_step=total)
    assert learning_rate(step, step + 1, base, early) == learning_rate(step, total, base, cosine)


@pytest.mark.parametrize("name", ["autoencoder", "transformer_1"])
def test_a_start_takes_over_averaged_weights(name, train, tiny_run, tmp_path, write_json):
    """At a rate of 0, and with a gradient of next to nothing."""
    still = write_json(tmp_path / "still.json", json.loads((TINY / f"{name}.json").read_text()) | {"model_lr": 0})
    still = ("--max-step", 1, "--config-path", still, "--grad-clip", 1e-12)
    after = train(name, "run", *still, "--model-path", tiny_run / name / WEIGHTS)
    assert same(after["model"], latest(tiny_run / name)["ema"])
    steps = {int(state["step"]) for state in after["optimizer"]["state"].values()}
    assert (after["step"], steps) == (1, {1})
    assert all(state["momentum"].abs().max() < 1e-9 for state in after["muon"]["state"].values())
    assert Bounds.saved(after) == pytest.approx(BOUNDS)


def test_a_decoder_learns_from_quantized_maps_and_its_encoder_stays(train, tiny_run, faces, tmp_path, for_decoder):
    content = train("autoencoder", "run", "--max-step", 30, *for_decoder)
    before, after = (Autoencoder.load(path / WEIGHTS) for path in (tiny_run / "autoencoder", tmp_path / "run"))
    assert after.origin == before.origin and after.fingerprint != before.fingerprint
    codebook = Codebook.load(for_decoder[-1])
    assert content["trained_from"] == before.origin | {"hr_codebook": codebook.fingerprint}
    dataset = ImageDataset(faces)
    images = dataset[dataset.split(BOUNDS).validation]
    fmap = codebook.lookup(codebook.find_bmu(before.encode(images)))
    with torch.no_grad():
        errors = [(model.decode(fmap) - images).abs().mean() for model in (before, after)]
        assert torch.equal(after(images, codebook), after.decode(fmap))
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("change", ["--flip", "--permute-colours", None])
def test_a_random_half_of_the_images_of_a_step_is_changed_however_they_are_divided(change, command):
    words = [str(word) for word in command("autoencoder", "run") if word != "--flip"] + ([change] if change else [])
    options = parse_options(train_autoencoder.Options, "", words)
    task = train_autoencoder.AutoencoderTask(options, torch.device("cpu"))
    task.build({})
    images = task.dataset[np.arange(8)]

    def seen(step, *shares):
        """The images that a model is given in a step."""
        batches = []
        for first, number in shares:
            with drawing(0, step, Share(first, number, 8), task.device):
                task.loss(lambda batch, _: batches.append(batch) or batch, images[first : first + number])
        return torch.cat(batches)

    others = {"--flip": [images.flip(-1)], None: []}.get(change)
    if others is None:
        others = [images[:, list(order)] for order in itertools.permutations(range(3))]
    steps = [seen(step, (0, 8)) for step in range(20)]
    kept = [(step == images).flatten(1).all(1) for step in steps]
    for step, same_as_before in zip(steps, kept, strict=True):
        matches = torch.stack([(step == other).flatten(1).all(1) for other in (*others, images)])
        assert matches.any(0).all() and same_as_before.sum() >= (4 if change else 8)
    assert all(any((step == other).flatten(1).all(1).any() for step in steps) for other in others)
    assert len({tuple(each.tolist()) for each in kept}) > 10 or not change
    assert torch.equal(seen(3, (0, 3), (3, 5)), steps[3])


def test_what_begins_from_weights_that_have_seen_mirror_images_goes_on_with_them(
    command, tiny_run, for_decoder, tmp_path
):
    start = {"new": (), "warm": ("--model-path", tiny_run / "autoencoder" / WEIGHTS), "decoder": for_decoder}
    for out, more in start.items():
        words = [word for word in command("autoencoder", out, "--max-step", 1, *more) if word != "--flip"]
        run_main(MAINS["autoencoder"], *words)
        assert latest(tmp_path / out)["flip"] == (out != "new")
    words = [word for word in command("autoencoder", "warm", "--max-step", 2, "--resume") if word != "--flip"]
    run_main(MAINS["autoencoder"], *words)
    assert latest(tmp_path / "warm")["step"] == 2 and Autoencoder.load(tmp_path / "warm" / WEIGHTS).flip


def test_a_loss_that_is_no_number_stops_with_one_line_and_saves_nothing(begun, command, tmp_path, monkeypatch, capsys):
    before, original, calls = latest(begun("autoencoder")), Autoencoder.loss, []

    def broken(*arguments):
        calls.append(arguments)
        return original(*arguments) * (math.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(Autoencoder, "loss", broken)
    words = command("autoencoder", "run", "--max-step", 9, "--resume", "--save-minutes", 1e-9)
    assert "step 6" in expect_error(capsys, MAINS["autoencoder"], words)
    after = latest(tmp_path / "run")
    assert after["step"] == before["step"] + 1 and all(part.isfinite().all() for part in after["model"].values())


def test_weights_that_are_no_numbers_are_not_saved(command, tmp_path, monkeypatch, capsys):
    original = Autoencoder.loss

    def finite_with_a_broken_gradient(model, output, target):
        return original(model, output, target) + 0 * (0 * output.sum()).abs().sqrt()

    monkeypatch.setattr(Autoencoder, "loss", finite_with_a_broken_gradient)
    line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", "--max-step", 1))
    assert "step 1" in line
    assert not (tmp_path / "run" / WEIGHTS).exists()


@pytest.fixture(scope="module")
def two_epochs(arguments, tmp_path_factory):
    """What an autoencoder leaves that learns from 28 images for two epochs, in steps of three batches of four."""
    out = tmp_path_factory.mktemp("epochs") / "run"
    flags = ("--max-epoch", 2, "--batch-size", 4, "--grad-accum-step", 3, "--lr-schedule", "cosine")
    flags += ("--checkpoint-step", 1, "--ema-decay", 0, "--grad-clip", 1e-3)
    run_main(MAINS["autoencoder"], *arguments("autoencoder", out, *flags))
    return out


def test_an_accumulated_step_is_one_step_of_all_its_items_and_max_epoch_the_end(two_epochs):
    assert [row["epoch"] for row in rows(two_epochs, "train_loss")] == [0, 0, 0, 1, 1, 1]
    assert latest(two_epochs)["step"] == 6
    assert "ema" not in latest(two_epochs)


def test_the_schedule_flags_decide_the_rate(two_epochs):
    base = json.loads((TINY / "autoencoder.json").read_text())["model_lr"] * math.sqrt(12 * 8 * 8 / TOKENS)
    shares = [min(1, (step + 1) / 4) * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    rates = [row["learning_rate"] for row in rows(two_epochs, "train_loss")]
    assert rates == pytest.approx([base * share for share in shares])


def test_the_gradient_is_clipped(two_epochs):
    first = torch.load(two_epochs / "models_checkpoint/model_1.pt", weights_only=True)
    # After one step the first moment of Adam is a tenth of the gradient, the momentum of Muon a twentieth.
    gradient = [state["exp_avg"].flatten() * 10 for state in first["optimizer"]["state"].values()]
    gradient += [state["momentum"].flatten() * 20 for state in first["muon"]["state"].values()]
    assert rows(two_epochs)[0]["gradient_norm"] > 1e-2
    assert torch.cat(gradient).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_the_share_of_a_step_that_waits_for_data_is_measured(tmp_path, monkeypatch):
    metrics = Metrics(TrainingOptions(**dict.fromkeys(("dataset_path", "config_path", "out_dir"), tmp_path)), 10)
    now = [0.0]
    monkeypatch.setattr("utils.training.metrics.time.perf_counter", lambda: now[0])

    def loader():
        for _ in range(4):
            now[0] += 0.25
            yield torch.zeros(2)

    metrics.open(0)
    for step, batch in enumerate(metrics.timed(loader(), torch.device("cpu")), 1):
        now[0] += 1
        metrics.add({"loss": 1.0}, len(batch))
        if step % 2 == 0:
            assert metrics.close(step)["data_wait"] == pytest.approx(0.2)


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_an_autoencoder_is_measured_by_its_loss_and_in_decibels(loss, whole, train, faces, tmp_path, write_json):
    folder, config = whole("autoencoder"), json.loads((TINY / "autoencoder.json").read_text())
    if loss != config["loss"]:
        path = write_json(tmp_path / "config.json", config | {"loss": loss})
        train("autoencoder", "run", "--max-step", 2, "--config-path", path)
        folder = tmp_path / "run"
    dataset, model = ImageDataset(faces), Autoencoder.load(folder / WEIGHTS)
    images = dataset[dataset.split(BOUNDS).validation]
    decoded, row = model(images).detach(), rows(folder, "val_psnr")[-1]
    assert row["val_loss"] == pytest.approx(model.loss(decoded, images).item(), rel=1e-5)
    assert row["val_psnr"] == pytest.approx(10 * math.log10(4 / F.mse_loss(decoded, images).item()), rel=1e-5)


def test_the_bits_of_an_image_add_up_through_the_cascade(tiny_run, whole):
    base, following = (rows(tiny_run / f"transformer_{number}", "val_bits")[-1] for number in (0, 1))
    assert base["stage_bits"] == pytest.approx(base["val_loss"] / math.log(2) * 4)  # a grid of 2×2
    maps = FeatureMapDataset(tiny_run / "feature_maps/dataset.json")
    book = Codebook.load(tiny_run / CODEBOOKS[0] / PRUNED)
    shares = book.counts.double() + 0.5
    used = book.find_bmu(maps[maps.split(BOUNDS).validation])
    condition = float(-(shares / shares.sum())[used].log2().mean())
    assert base["image_bits"] == pytest.approx(condition + base["stage_bits"])
    assert following["stage_bits"] == pytest.approx(following["val_bits"] * 16)
    assert following["image_bits"] == pytest.approx(base["image_bits"] + following["stage_bits"])
    assert "image_bits" not in rows(whole("transformer_1"), "val_bits")[-1]  # which knows no stage before it


@pytest.fixture
def labelled(command, tiny_run, tmp_path, write_json):
    """A function: the arguments that train a base stage into a folder, with labels by the number and hash of images."""

    def build(out, label_of, *more):
        maps, names = tmp_path / out / "maps/dataset.json", {}
        shutil.copytree(tiny_run / "feature_maps", maps.parent)
        with edited(maps) as content:
            for record in content["_default"].values():
                number = names.setdefault(record["image_key"], len(names))
                record["labels"] = label_of(number, position(record["image_key"]))
        config = json.loads((TINY / "transformer_0.json").read_text()) | {"use_labels": True}
        data = ("--dataset-path", maps, "--config-path", write_json(tmp_path / out / "config.json", config))
        return command("transformer_0", f"{out}/run", "--max-step", 1, *data, *more)

    return build


def test_labels_are_those_of_the_training_images_and_cost_bits(labelled, tiny_run, tmp_path, capsys):
    def label_of(number, place):
        return ["held out"] if place < BOUNDS.test else [["even"], ["odd", "even"], ["odd"], []][number % 4]

    run_main(MAINS["transformer_0"], *labelled("new", label_of))
    content = latest(tmp_path / "new/run")
    assert content["config"]["labels"] == ("even", "odd")
    maps = FeatureMapDataset(tmp_path / "new/maps/dataset.json")
    split = maps.split(BOUNDS)
    own = [sorted(maps.label(index)) for index in split.training]
    assert counted(content["model"]) == [own.count(labels) for labels in (["even"], ["even", "odd"], ["odd"], [])]
    row = rows(tmp_path / "new/run", "image_bits")[-1]
    book = Codebook.load(tiny_run / CODEBOOKS[0] / PRUNED)
    code = (book.counts.double() + 0.5) / (book.counts.double() + 0.5).sum()
    condition = -code[book.find_bmu(maps[split.validation])].log2().mean().item()
    label = -math.log2(own.count([]) / (len(own) + 4))  # one that only held-out images have is left out
    assert row["image_bits"] == pytest.approx(condition + label + row["stage_bits"])
    stage = Stage.load(tmp_path / "new/run" / WEIGHTS, book, Codebook.load(tiny_run / CODEBOOKS[1] / PRUNED))
    evaluated = start_bits(stage, book, maps, split.validation, split.training, batch_size=3)
    assert evaluated == pytest.approx({"condition": condition, "label": label})

    # Weights of other labels are refused; counts are those of the new data.
    weights = ("--model-path", tmp_path / "new/run" / WEIGHTS)
    words = labelled("pets", lambda number, _: ["cat"][number % 2 :], *weights)
    assert str(weights[1]) in expect_error(capsys, MAINS["transformer_0"], words)
    assert not (tmp_path / "pets/run/manifest.json").exists()
    run_main(MAINS["transformer_0"], *labelled("more", lambda number, _: [["odd", "even"][number % 3 == 0]], *weights))
    maps = FeatureMapDataset(tmp_path / "more/maps/dataset.json")
    own, content = [maps.label(index) for index in split.training], latest(tmp_path / "more/run")
    for state in (content["model"], content["ema"]):
        assert counted(state) == [own.count(["even"]), 0, own.count(["odd"]), 0]


def counted(state):
    """Of a checkpoint with two labels: how many training images have the first, both, the second, and none."""
    numbers = dict.fromkeys([(0,), (0, 1), (1,), ()], 0)
    for number, _, *labels in state["label_sets"].tolist():
        if number:
            numbers[tuple(label for label in labels if label < 2)] += number
    return list(numbers.values())


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss_that_is_a_number(train, tmp_path, monkeypatch):
    losses = iter([math.nan, 3.0, 1.0, math.nan, 1.5, 0.5])
    monkeypatch.setattr(train_quantized_transformer, "mean_over", lambda *_: {"val_loss": next(losses), "val_bits": 0})
    for max_step, best in ((4, 3), (5, 3), (6, 6)):
        flags = ("--checkpoint-step", 1, "--log-step", 10, "--max-step", max_step, "--resume")
        train("transformer_1", "run", *flags)
        path = tmp_path / "run/models_checkpoint/best.pt"
        content = torch.load(path, weights_only=True)
        assert content["step"] == best
        assert measured(path, content["fingerprint"])["val_loss"] == {3: 1.0, 6: 0.5}[best]


@pytest.mark.parametrize("name", ["autoencoder", "transformer_0"])
def test_with_nothing_held_out_the_best_is_the_newest_and_previews_show_training_images(name, train, tmp_path):
    train(name, "run", "--max-step", 2, "--checkpoint-step", 1, "--val-fraction", 0)
    path = tmp_path / "run/models_checkpoint/best.pt"
    best = torch.load(path, weights_only=True)
    assert (best["step"], measured(path, best["fingerprint"])) == (2, {})
    assert rows(tmp_path / "run", "val_loss") == []
    assert list((tmp_path / "run/images").iterdir())


def test_the_temperature_of_previews_changes_only_the_drawn_tokens(train, tmp_path):
    for name, temperature in (("cold", 1e-4), ("warm", 1)):
        train("transformer_1", name, "--max-step", 1, "--temperature", temperature)
    cold, warm = latest(tmp_path / "cold"), latest(tmp_path / "warm")
    assert all(torch.equal(cold["ema"][key], value) for key, value in warm["ema"].items())
    for path in (tmp_path / "cold/images").iterdir():
        is_drawn = path.name.startswith("high_res_recon")
        assert (path.read_bytes() != (tmp_path / "warm/images" / path.name).read_bytes()) == is_drawn


@pytest.mark.parametrize("name", ["autoencoder", "codebook_1", "transformer_1"])
def test_what_cannot_be_measured_is_saved_all_the_same(name, command, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise UserError("map.npy: not a feature map")

    for script in (train_autoencoder, train_codebook, train_quantized_transformer):
        monkeypatch.setattr(script, "mean_over", fail)
    assert "map.npy" in expect_error(capsys, MAINS[name], command(name, "run", "--max-step", 2, "--log-step", 9))
    assert latest(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize("size", [1, 4, 7])
def test_accumulation_over_parts_that_are_not_equal_gives_the_gradients_of_the_whole_batch(size):
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
        sums = learner.backward(model, (x, y))
        gradients.append(torch.cat([model.weight.grad.flatten(), model.bias.grad]))
        numbers.append(torch.stack([sums["loss"], sums["largest"]]))
    assert torch.allclose(*gradients, atol=1e-6)
    assert torch.allclose(*numbers, atol=1e-6)
    assert not numbers[0].requires_grad


def test_workers_change_nothing(train, whole):
    assert same(train("autoencoder", "run", *PLAN, "--num-workers", 2), latest(whole("autoencoder")))


def test_bfloat16_is_near_float32(train, whole, tmp_path):
    train("autoencoder", "run", "--max-step", 2, "--precision", "bf16")
    low, high = ([row["train_loss"] for row in rows(out)[:2]] for out in (tmp_path / "run", whole("autoencoder")))
    assert low != high
    assert low == pytest.approx(high, rel=0.02)


def test_compile_compiles_and_the_checkpoint_is_as_without(train, whole, monkeypatch):
    plain = torch.load(whole("autoencoder") / "models_checkpoint/model_2.pt", weights_only=True)
    original, compiled = torch.compile, []

    def compile_eagerly(model):
        compiled.append(model)
        return original(model, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    after = train("autoencoder", "run", "--max-step", 2, "--compile")
    assert len(compiled) == 1
    assert after["model"].keys() == plain["model"].keys()
    assert all(torch.allclose(value, plain["model"][name], atol=1e-5) for name, value in after["model"].items())


def test_activation_checkpoints_change_no_gradient(train, write_json, tmp_path, monkeypatch):
    """Also where blocks drop channels at random: they draw the same twice."""
    config = json.loads((TINY / "transformer_1.json").read_text()) | {"dropout": 0.1}
    plan = ("--config-path", write_json(tmp_path / "config.json", config), "--max-step", 2)
    plain, calls, original = train("transformer_1", "plain", *plan), [], checkpoint
    monkeypatch.setattr("models.transformer.checkpoint", lambda *a, **k: calls.append(a) or original(*a, **k))
    assert same(train("transformer_1", "run", *plan, "--use-activation-checkpoint"), plain)
    blocks = config["num_enc_layers"] + config["num_dec_layers"]
    assert len(calls) == 2 * blocks


def test_a_codebook_is_measured_at_the_end(whole, tiny_run):
    folder = whole("codebook_1")
    statistics = latest(folder)["statistics"]
    assert rows(folder, "topographic_error") == [{"step": 4, **statistics}]
    assert statistics["psnr_before_quantization"] > statistics["psnr_after_quantization"]
    maps = FeatureMapDataset(tiny_run / "feature_maps/dataset.json")
    codebook = Codebook.load(folder / WEIGHTS)
    census = take_census(codebook, [maps[maps.split(BOUNDS).training]])
    assert codebook.counts.equal(census.counts), "of the training maps alone"
    assert census.statistics(codebook)["topographic_error"] == pytest.approx(statistics["topographic_error"], abs=1e-3)


def test_a_data_error_saves_first_and_a_resume_continues(command, train, faces, tmp_path, monkeypatch, capsys):
    path = shutil.copytree(faces.parent, tmp_path / "data") / "dataset.json"
    more = ("--dataset-path", path, "--max-step", 5)
    expected = train("autoencoder", "expected", *more)
    images = ImageDataset(path)
    batches = [*EpochSampler(images.split(BOUNDS).training, 12, 0, 0, 3)]
    name = images.records[int(batches[2][0])]["image_fpath"]  # of the third batch
    original = GradientLearner.update

    def update(self, batch, step, share):
        if step == 1:
            (path.parent / name).write_bytes(b"garbage")
        return original(self, batch, step, share)

    with monkeypatch.context() as patched:
        patched.setattr(GradientLearner, "update", update)
        line = expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", *more))
    assert f"{path.parent / name}: not an image" in line
    assert latest(tmp_path / "run")["step"] == 2
    shutil.copy2(faces.parent / name, path.parent / name)
    assert same(train("autoencoder", "run", *more, "--resume"), expected)


@pytest.mark.parametrize("name", ["autoencoder", "codebook_1"])
def test_saves_between_checkpoints_change_no_result(name, whole, train, tmp_path, monkeypatch):
    saves = []
    original = CheckpointFolder.save

    def save(self, step, **options):
        saves.append((step, options.get("latest_only", False)))
        return original(self, step, **options)

    monkeypatch.setattr(CheckpointFolder, "save", save)
    train(name, "run", *PLAN, "--save-minutes", 1e-9)
    assert saves[:4] == [(1, True), (2, False), (3, True), (4, False)]
    assert differences(tmp_path / "run", whole(name)) == []
