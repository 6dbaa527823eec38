"""A run to report on: the tiny trained one with an evaluation, an animation, and names that look like markup."""

import json
import shutil

from PIL import Image

from tests.helpers.files import edited
from utils.runs.checkpoint import fingerprints_of
from utils.runs.folders import RunFolder

HOSTILE = "</script><script>alert(1)</script>"


def spans(value, margin, *names):
    """A value with an interval under each of these names."""
    return {
        f"{name}{end}": value + sign * margin for name in names for end, sign in (("", 0), ("_low", -1), ("_high", 1))
    }


def distances(name, kernel):
    row = {"name": name, "precision": 0.5, "recall": 0.25}
    return row | spans(kernel, 0.1 * kernel, "kernel")


def novelty(threshold, median, share, nearest, pairs="", layout=None):
    near = {"median_distance": median, "share": share}
    held_out = {"median_distance": median + 2, "share": 0.0125}
    outcome = {"threshold": threshold, "samples": near, "held_out": held_out, "nearest": nearest, "pairs": pairs}
    return outcome | {"share_low": share - 0.125, "share_high": share + 0.125, "layout": layout}


COPY = {"sample": 2, "image_path": f"data/{HOSTILE}.png"}
NAMED = {"sample": 5, "image_path": "images/b.png", "distance": 2.5, "original_path": "Zürich/IMG 1.HEIC"}
SHARES = {"precision": 0.25, "recall": 0.5, "floor_precision": 0.875, "floor_recall": 0.75}
BITS = spans(14.7, 1.2, "bits") | {"test_bits": 17.25}


EVALUATION = {
    "extractor": "a network of the tests",
    "num_images": 8,
    "num_held_out": 8,
    "num_training": 32,
    "seed": 0,
    "settings": {},
    "reconstruction": [
        {"name": "autoencoder", "psnr": 21.7},
        {"name": "after codebook_cond", "psnr": 11.3},
        {"name": "after codebook_2", "psnr": 18.9},
    ],
    "bits": [{"name": "condition", "tokens": 1, "bits": 2.5}, {"name": "stage 0", "tokens": 4, "bits": 17.25}],
    "distances": [
        distances("training images", 0.0123),
        distances("reconstructions", 0.0456),
        distances("quantized reconstructions", 0.0789),
        distances("samples", 0.8765),
    ],
    "novelty": novelty(
        3.0,
        4.5,
        0.375,
        [COPY | {"distance": 1.75}, NAMED],
        "pairs.png",
        novelty(0.125, 0.25, 0.625, [COPY | {"distance": 0.0}]),
    ),
    "missing": [f"stage 1: {HOSTILE}"],
    "seconds": 12.0,
    "decoder": "autoencoder",
    "levels": [
        {"name": "stage 0", "num_drawn": 8}
        | spans(0.345, 0.01, "kernel")
        | spans(0.0023, 0.0033, "floor")
        | SHARES
        | BITS
    ],
}


def make_run(tiny_run, folder):
    """A copy of the tiny run in `folder` with all that a report can show."""
    run = folder / "<b>run&"
    shutil.copytree(tiny_run, run)
    folder = RunFolder(run)
    folder.evaluation.path.mkdir()
    settings = json.loads(folder.generation.read_text())
    known = {"settings": settings, "models": fingerprints_of(folder)}
    folder.evaluation.results.write_text(json.dumps(EVALUATION | known))
    Image.new("RGB", (64, 34), "white").save(folder.evaluation.pairs)
    frames = [Image.new("RGB", (66, 66), colour) for colour in ("white", "grey", "black")]
    frames[0].save(folder.generated.animation("webp"), save_all=True, append_images=frames[1:], duration=200, loop=0)
    change_attempt(folder.autoencoder, arguments={"dataset_path": HOSTILE})
    return run


def change_attempt(step, number=-1, **changes):
    """Change values of an attempt at a step, of the newest by default, or entries of its arguments and its config."""
    with edited(step.record) as content:
        attempt = content["attempts"][number]
        for key, value in changes.items():
            attempt[key] = (attempt[key] or {}) | value if isinstance(value, dict) else value
