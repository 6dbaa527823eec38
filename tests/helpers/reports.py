"""A run to report on: the tiny trained one with an evaluation, an animation, and names that look like markup."""

import json
import shutil

from PIL import Image

from tests.helpers.files import edited
from utils.runs.checkpoint import fingerprints_of
from utils.runs.folders import RunFolder

HOSTILE = "</script><script>alert(1)</script>"


def distances(name, kernel):
    row = {"name": name, "precision": 0.5, "recall": 0.25, "edges": 1.5, "frechet": 100 * kernel}
    return row | {"kernel": kernel, "kernel_low": 0.9 * kernel, "kernel_high": 1.1 * kernel}


EVALUATION = {
    "extractor": "a network of the tests",
    "num_images": 8,
    "num_held_out": 8,
    "num_training": 32,
    "seed": 0,
    "settings": {},
    "reconstruction": [
        {"name": "autoencoder", "psnr": 21.7, "ssim": 0.81},
        {"name": "after codebook_cond", "psnr": 11.3, "ssim": 0.41},
        {"name": "after codebook_2", "psnr": 18.9, "ssim": 0.74},
    ],
    "bits": [{"name": "condition", "tokens": 1, "bits": 2.5}, {"name": "stage 0", "tokens": 4, "bits": 17.25}],
    "distances": [
        distances("training images", 0.0123),
        distances("reconstructions", 0.0456),
        distances("quantized reconstructions", 0.0789),
        distances("samples", 0.8765),
    ],
    "novelty": {
        "threshold": 3.0,
        "samples": {"median_distance": 4.5, "share": 0.375},
        "share_low": 0.25,
        "share_high": 0.5,
        "held_out": {"median_distance": 6.5, "share": 0.0125},
        "pairs": "pairs.png",
        "nearest": [
            {"sample": 2, "image_path": f"data/{HOSTILE}.png", "distance": 1.75},
            {"sample": 5, "image_path": "images/b.png", "distance": 2.5, "original_path": "Zürich/IMG 1.HEIC"},
        ],
        "layout": {
            "threshold": 0.125,
            "samples": {"median_distance": 0.25, "share": 0.625},
            "share_low": 0.5,
            "share_high": 0.75,
            "held_out": {"median_distance": 0.5, "share": 0.0125},
            "pairs": "",
            "nearest": [{"sample": 2, "image_path": f"data/{HOSTILE}.png", "distance": 0.0}],
            "layout": None,
        },
    },
    "missing": [f"stage 1: {HOSTILE}"],
    "seconds": 12.0,
    "decoder": "autoencoder",
    "levels": [
        {
            "name": "stage 0",
            "kernel": 0.345,
            "kernel_low": 0.335,
            "kernel_high": 0.355,
            "precision": 0.25,
            "recall": 0.5,
            "floor": 0.0023,
            "floor_low": -0.001,
            "floor_high": 0.0056,
            "floor_precision": 0.875,
            "floor_recall": 0.75,
            "num_drawn": 8,
            "bits": 14.7,
            "bits_low": 13.5,
            "bits_high": 15.9,
            "test_bits": 17.25,
        }
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
