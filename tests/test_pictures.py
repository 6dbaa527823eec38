"""scripts/pictures.py draws pictures of the README from a finished run."""

import torch

from scripts import pictures
from tests.helpers.scripts import run_main
from utils.data.images import read_image, save_image
from utils.runs.chain import ROOT


def test_the_pictures_are_drawn_from_a_run(run_with_images, tmp_path, monkeypatch):
    (run_with_images / "evaluation").mkdir()
    save_image(torch.zeros(3, 8, 8), run_with_images / "evaluation/pairs.png")
    (out := tmp_path / "images").mkdir()
    monkeypatch.setattr(pictures, "SHOWN", (0, 1))
    run_main(pictures.main, run_with_images, out)
    drawn = {path.name for path in out.iterdir()}
    assert len(drawn) == 12 and drawn <= {path.name for path in (ROOT / "docs/images").iterdir()}
    # Two faces of 32 pixels and their frames, a gap, and four rows of what was generated of them.
    assert read_image(out / "avatars_completed.png").shape == (3, 36 + 8 + 4 * 34 + 2, 2 * 34 + 2)
