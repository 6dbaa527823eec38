"""The trainers on the tiny cascade, and comparisons of what runs leave."""

import torch

import train_autoencoder
import train_codebook
import train_quantized_transformer
from utils.metrics import read_rows

MAINS = {
    "autoencoder": train_autoencoder.main,
    "codebook_1": train_codebook.main,
    "transformer_0": train_quantized_transformer.main,
    "transformer_1": train_quantized_transformer.main,
}
GRADIENT = ["autoencoder", "transformer_0", "transformer_1"]
WEIGHTS = "models_checkpoint/latest.pt"
PRUNED = "models_checkpoint/pruned_codebook.pt"
CLOCK = ("_per_second",)  # ends of the names of numbers that are clock times


def latest(folder):
    return torch.load(folder / WEIGHTS, weights_only=True)


def rows(folder, key=None):
    """The lines of metrics.jsonl, all or those that hold a key."""
    return [row for row in read_rows(folder / "metrics.jsonl") if key is None or key in row]


def same(first, second):
    """Whether two checkpoints hold the same, to the last bit, but for clock times and the digest, which covers them."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        first, second = (
            {key: value for key, value in content.items() if key != "digest" and not str(key).endswith(CLOCK)}
            for content in (first, second)
        )
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second
