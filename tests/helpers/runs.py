"""The trainers on the tiny cascade, and what they leave."""

import json

import torch

import train_autoencoder
import train_codebook
import train_quantized_transformer
from tests.helpers.scripts import TINY
from utils.core.size import Size
from utils.data.split import Bounds
from utils.runs.chain import Recipe
from utils.training.metrics import read_rows

MAINS = {
    "autoencoder": train_autoencoder.main,
    "codebook_1": train_codebook.main,
    "transformer_0": train_quantized_transformer.main,
    "transformer_1": train_quantized_transformer.main,
}
GRADIENT = ["autoencoder", "transformer_0", "transformer_1"]
FRACTIONS = ("--val-fraction", 0.1, "--test-fraction", 0.1)  # of 40 faces 7 and 5
BOUNDS = Bounds(0.1, 0.2)
WEIGHTS = "models_checkpoint/latest.pt"
PRUNED = "models_checkpoint/pruned_codebook.pt"
PLAN = ("--max-step", 4, "--checkpoint-step", 2)


SPLIT = {"val_fraction": 0.1, "test_fraction": 0.1}
TRAINING = SPLIT | {"batch_size": 16}
SMALL = Recipe(
    TINY,
    {
        "autoencoder": TRAINING | {"max_step": 40, "warmup_step": 5, "flip": True},
        "feature_maps": {"batch_size": 16, "flip": True, "num_files_folder": 30},
        "codebook": TRAINING | {"max_epoch": 2},
        "prune": TRAINING | {"prune_threshold": 1},
        **{f"transformer_{number}": TRAINING | {"max_step": 10, "test_num_sample": 4} for number in range(3)},
        "generate": {"num_images": 4, "batch_size": 4},
    },
    image_size=Size(32, 32),
)


def recipe_json(settings, **more):
    """The text of a recipe.json with these sections; mirror images are one setting of all."""
    sections = {name: {key: own[key] for key in own if key != "flip"} for name, own in settings.items()}
    return json.dumps(more | sections | {"flip": any("flip" in own for own in settings.values())})


def latest(folder):
    return torch.load(folder / WEIGHTS, weights_only=True)


def rows(folder, key=None):
    """The lines of metrics.jsonl, all or those that hold a key."""
    return [row for row in read_rows(folder / "metrics.jsonl") if key is None or key in row]
