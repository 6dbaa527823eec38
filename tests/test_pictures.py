"""The pictures of the README and the docs are those that docs/pictures.py makes of a run."""

import torch

import generate_images
from docs import pictures
from utils.data.images import read_image, save_image
from utils.runs.folders import RunFolder

BY_HAND = {"report.png"}  # a screenshot
BY_HAND |= {"peers.png", "peers_few.png", "quality.png", "auto_hour.png"}  # of runs that took long
BY_HAND |= {"playground.png", "playground_dark.png", "playground_phone.png"}  # screenshots, of a browser
BY_LABEL = {"openmoji_labels.png"}  # which the tiny run has not learned


def test_every_picture_is_made_anew_from_a_run(run_with_images, tmp_path, monkeypatch):
    run, images = run_with_images, tmp_path / "images"
    (run / "evaluation").mkdir()
    save_image(torch.zeros(3, 8, 8), run / "evaluation/pairs.png")
    images.mkdir()
    kept = {path.name for path in pictures.IMAGES.iterdir()}
    for name, value in {"IMAGES": images, "SHOWN": (0, 1), "WALK": (0, 1), "EARLY": (10, 10, 10)}.items():
        monkeypatch.setattr(pictures, name, value)
    monkeypatch.setattr(generate_images, "STEPS", 2)
    pictures.copy_pictures(*[RunFolder(run)] * 5)
    pictures.generate_pictures(RunFolder(run), tmp_path / "scratch")
    pictures.draw_distances(RunFolder(run))
    pictures.draw_portraits(RunFolder(run), tmp_path / "scratch")
    assert {path.name for path in images.iterdir()} == kept - BY_HAND - BY_LABEL
    # Two faces of 32 pixels and their frames, a gap, and ten rows of what was made of them.
    assert read_image(images / "avatars_completed.png").shape == (3, 36 + pictures.GAP + 10 * 34 + 2, 2 * 34 + 2)
