"""Walks through the code on a device that does not exist, with tensors that hold no numbers (PyTorch's fake tensors).

Those refuse to mix devices, and they cannot say what the host would wait for: a number, a truth, how many are not zero.
What the code asks of them nevertheless is answered from `ANSWERS`, and counted, as are copies to the host.

    python -m tests.helpers.accelerator    # prints of each walk its number of waits, or what it ended with
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from evaluation.likelihood import stage_bits
from models.autoencoder import Autoencoder, AutoencoderConfig
from models.codebook import Codebook, CodebookConfig
from models.som import learner as map_learner
from models.som.learner import MapLearner
from models.stage import Stage, StageConfig
from tests.helpers.stages import TRANSFORMER, zeros
from train_autoencoder import reconstruction_loss
from utils.data.batches import to_device
from utils.sampling import SamplingConfig
from utils.training.gradient import GradientLearner, GradientOptions

DEVICE, NAME = "walk:0", "walk"
IMAGES = 4
ANSWERS = {"tolist": lambda self: [0] * len(self), "item": lambda _: 1.0, "__float__": lambda _: 1.0}
NOISY = replace(TRANSFORMER, condition_noise=0.1, condition_dropout=0.1, dropout=0.1)
AUTOENCODER = AutoencoderConfig(
    model_lr=1e-3, num_layers=2, image_channel=3, min_channel=8, max_channel=16, latent_channel=4,
    num_enc_res_blocks=1, num_dec_res_blocks=1, hidden_activation_type="silu", use_final_enc_activation=True,
    encoder_activation_type="tanh", use_final_dec_activation=True, decoder_activation_type="tanh",
    latent_noise=0.1, loss="l1", edge_weight=1.0,
)  # fmt: skip


class Backend(backend_registration._DummyBackendModule):
    """What autocast asks of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class Waits(TorchDispatchMode):
    """Counts the copies from the device to the host, and what else the host has to wait for."""

    number = 0

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device.type == NAME and result.device.type == "cpu":
            self.number += 1
        return result


@contextmanager
def on_device() -> Iterator[Waits]:
    """Tensors are fake in this block; those that name no device are on the CPU."""
    waits = Waits()

    def asked(answer: Callable) -> Callable:
        def method(tensor: FakeTensor) -> object:
            waits.number += tensor.device.type == NAME
            return answer(tensor)

        return method

    answers = {name: asked(answer) for name, answer in ANSWERS.items()}
    keep_mode = mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, create=True)
    no_constants = mock.patch.object(fake_tensor, "CONSTANT_NUMEL_LIMIT", 0)  # which would be copied to the device
    with FakeTensorMode(), waits, keep_mode, no_constants, mock.patch.multiple(FakeTensor, create=True, **answers):
        yield waits


def build(module: type, *args: object) -> nn.Module:
    """A module on the device."""
    with torch.device(DEVICE):
        return module(*args)


def stage(number: int, **changes: object) -> Stage:
    """Stage 0, with two labels an image, writes 2×2 tokens from a condition; stage 1 writes 4×4 tokens from those."""
    coarse, fine = (codebook(patch, 6) for patch in ((4, 2), (2, 1))[number])
    labels = () if number else (("cat", "dog"), 2, 8)
    config = replace(NOISY, use_labels=not number, condition_noise=0.1 * number, **changes)
    outcome = build(Stage, StageConfig.between(config, coarse, fine, Path("c.pt"), not number, *labels))
    outcome.init_embeddings(coarse, fine)
    return outcome


def codebook(patch: int, units: int) -> Codebook:
    """A codebook of feature maps (4, 4, 4)."""
    return build(Codebook, CodebookConfig(0.1, 4, 4, 4, patch, patch, units, 10))


def learner(model: nn.Module, compute: Callable, config: object, weights: object) -> GradientLearner:
    """A learner that accumulates gradients and averages weights."""
    paths = dict.fromkeys(("dataset_path", "config_path", "out_dir"), Path("unread"))
    options = GradientOptions(**paths, batch_size=IMAGES // 2, grad_accum_step=2, precision="fp32")
    return GradientLearner(model, compute, config, options, 100, torch.device(DEVICE), weights, 16)


def stage_learner(number: int, **changes: object) -> tuple[Stage, GradientLearner]:
    model = stage(number, **changes)
    return model, learner(model, lambda model, batch: model(*batch), NOISY, model.transformer.block_weights)


def train_stage(number: int, **changes: object) -> None:
    model, trained = stage_learner(number, **changes)
    trained.update(to_device(zeros(model.config, IMAGES), torch.device(DEVICE)), 0)


def autoencoder_learner(*, quantized: bool) -> GradientLearner:
    model, book = build(Autoencoder, AUTOENCODER), codebook(1, 8) if quantized else None
    return learner(model, lambda *args: reconstruction_loss(*args, model.loss, book), AUTOENCODER, model.kernels)


def train_autoencoder(*, quantized: bool) -> None:
    autoencoder_learner(quantized=quantized).update(torch.zeros(IMAGES, 3, 16, 16, device=DEVICE), 0)


def train_map(step: int) -> None:
    """Of 60 steps, 15 an epoch, the radius is 0 from the 12th."""
    book, maps = codebook(1, 9), torch.zeros(IMAGES, 4, 4, 4, device=DEVICE)
    outcome = MapLearner(book, 15, 60, sample=torch.zeros(80, 4, device=DEVICE))
    outcome.last_radius = outcome.radius(step - 1) if step else outcome.last_radius
    arrange = mock.Mock(side_effect=lambda coordinates, *_, **__: coordinates)
    with mock.patch.multiple(map_learner, arrange=arrange, PairCounts=mock.Mock()):  # which are the host's work
        outcome.update(maps, step)


def sample(number: int, changes: dict | None = None, **settings: float) -> None:
    """Write tokens after some that are kept: a row of two, or two rows of four."""
    outcome, config = stage(number, **changes or {}).eval(), SamplingConfig(**settings)
    coarse = zeros(outcome.config, IMAGES)[0].to(DEVICE)
    draws = torch.zeros(IMAGES, outcome.config.fine.length, config.num_beam)
    kept = torch.zeros(IMAGES, (2, 8)[number], dtype=torch.int64, device=DEVICE)
    outcome.sample(coarse, config, draws, kept=kept)


def bits() -> None:
    maps = torch.zeros(IMAGES, 4, 4, 4)
    stage_bits(stage(1).eval(), codebook(2, 6), codebook(1, 6), maps, torch.arange(IMAGES), IMAGES)


TOP, GUIDED = {"top_k": 3, "top_p": 0.9}, {"guidance_scale": 2.0}
CELLS = {"cell": 2, "head_features": 8}
BLOCKS = {"num_beam": 4, "beam_width": 2, "keep_beam": 2}
CLASSIC = {"num_beam": 4, "beam_width": 1, "keep_beam": 4}
WALKS = {
    "train the base stage": lambda: train_stage(0),
    "train a cascade stage": lambda: train_stage(1),
    "train a stage that writes cells": lambda: train_stage(1, **CELLS),
    "train an autoencoder": lambda: train_autoencoder(quantized=False),
    "train a decoder": lambda: train_autoencoder(quantized=True),
    "train a map at a radius": lambda: train_map(0),
    "balance a map": lambda: train_map(12),
    "train a map at radius 0": lambda: train_map(20),
    "train a map to the end of an epoch": lambda: train_map(44),
    **{f"sample {name} from stage {number}": lambda number=number, settings=settings: sample(number, **settings)
       for number, rules in enumerate((
           {"plainly": {}, "from the top": TOP, "guided": GUIDED, "in blocks": BLOCKS,
            "by classic beam search": CLASSIC},
           {"plainly": {}, "in guided blocks from the top": TOP | GUIDED | BLOCKS}))
       for name, settings in rules.items()},
    "sample cells in blocks from stage 1": lambda: sample(1, CELLS, **BLOCKS),
    "bits": bits,
}  # fmt: skip


def on_both() -> torch.Tensor:
    return torch.zeros(2, device=DEVICE) + torch.zeros(2)


def on_one() -> torch.Tensor:
    return torch.arange(3, device=DEVICE)


# What a walk must notice: with the error or the number of waits that it gives.
CHECKS = {
    "a mix of devices": (on_both, "FakeTensorDeviceMismatchError", None),
    "a shape that depends on numbers": (lambda: on_one().nonzero(), "DynamicOutputShapeException", None),
    "a decision that depends on numbers": (lambda: bool(on_one().sum() > 0), "DataDependentOutputException", None),
    "numbers on the host": (lambda: (on_one().tolist(), float(on_one()[0]), on_one().cpu()), None, 3),
}


def main() -> None:
    """Walk all ways, and print a line in JSON: of each its number of waits, or its error."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    outcome = {}
    for name, walk in (WALKS | {name: check[0] for name, check in CHECKS.items()}).items():
        with on_device() as waits:
            try:
                walk()
                outcome[name] = waits.number
            except Exception as error:
                outcome[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
