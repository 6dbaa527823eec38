"""Which units prune_codebook.py leaves, and what it tells and draws."""

import json
from argparse import Namespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prune_codebook
from models.codebook import Codebook
from prune_codebook import choose
from tests.helpers.codebooks import generator
from tests.helpers.deaths import same
from tests.helpers.runs import BOUNDS, FRACTIONS
from tests.helpers.scripts import expect_error, run_main
from utils.core.files import UserError
from utils.data.split import Bounds

LATEST, PRUNED = "models_checkpoint/latest.pt", "models_checkpoint/pruned_codebook.pt"


def wanted(keep=None, threshold=10):
    return Namespace(keep=keep, prune_threshold=threshold, codebook_path="c.pt")


@given(seed=st.integers(0, 2**31), units=st.integers(2, 40), data=st.data())
def test_the_most_used_units_are_kept(seed, units, data):
    number = data.draw(st.integers(2, units))
    counts = torch.randint(0, 9, (units,), generator=generator(seed))
    keep = choose(wanted(number), counts)
    assert int(keep.sum()) == number
    assert counts[keep].min() >= counts[~keep].max() if number < units else keep.all()
    ranked = sorted(range(units), key=lambda unit: (-counts[unit], unit))  # of equals, the first ones
    assert keep.nonzero().flatten().tolist() == sorted(ranked[:number])


def test_a_threshold_keeps_what_is_used_so_often():
    assert choose(wanted(threshold=3), torch.tensor([5, 2, 3, 0])).tolist() == [True, False, True, False]
    with pytest.raises(UserError, match="--prune-threshold 4"):
        choose(wanted(threshold=4), torch.tensor([5, 2, 3, 0]))


def test_keep_leaves_so_many_and_the_decoder_tells_what_is_lost(tiny_run, tmp_path):
    flags = ["--device", "cpu", "--dataset-path", tiny_run / "feature_maps/dataset.json", *FRACTIONS]
    flags += ["--codebook-path", tiny_run / "codebook_1" / LATEST, "--out-dir", tmp_path, "--keep", 5]
    run_main(prune_codebook.main, *flags, "--decoder-path", tiny_run / "autoencoder" / LATEST)
    content = torch.load(tmp_path / PRUNED, weights_only=True)
    before, after = content["statistics_before"], content["statistics"]
    assert (before["units"], after["units"]) == (16, 5)
    assert before["quantization_error"] < after["quantization_error"]
    assert before["psnr_before_quantization"] == after["psnr_before_quantization"] > after["psnr_after_quantization"]
    whole, pruned = Codebook.load(tiny_run / "codebook_1" / LATEST), Codebook.load(tmp_path / PRUNED)
    assert pruned.counts.sum() == whole.counts.sum() == 56 * 16, "of the training maps alone"
    assert Bounds.saved(content) == pytest.approx(BOUNDS)
    kept = choose(wanted(5), whole.counts)
    assert torch.equal(pruned.units, whole.units[kept])
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    step = torch.load(tiny_run / "codebook_1" / LATEST, weights_only=True)["step"]
    assert row == {"step": step, **{f"pruned_{key}": value for key, value in after.items()}}


def test_the_same_pruning_is_repeated_and_another_only_replaces_it_if_it_is_told_to(tiny_run, tmp_path, capsys):
    """It leaves one row beside those of the training, whose step it has."""
    command = ["--dataset-path", tiny_run / "feature_maps/dataset.json", "--device", "cpu", *FRACTIONS]
    command += ["--codebook-path", tiny_run / "codebook_1" / LATEST, "--out-dir", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.jsonl").write_text('{"step": 1, "epoch": 0, "loss": 2.0}\n{"step": 3, "ep')
    result = []
    for _ in range(2):
        run_main(prune_codebook.main, *command, "--keep", 5)
        rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
        result.append((rows, torch.load(tmp_path / "out" / PRUNED, weights_only=True)))
    assert same(*result)
    assert [("loss" in row, "pruned_units" in row) for row in result[0][0]] == [(True, False), (False, True)]
    before = (tmp_path / "out" / PRUNED).read_bytes()
    assert "--keep" in expect_error(capsys, prune_codebook.main, [*command, "--keep", 6])
    other = [*command, "--keep", 5, "--codebook-path", tiny_run / "codebook_2" / LATEST]
    assert "codebook" in expect_error(capsys, prune_codebook.main, other)
    assert (tmp_path / "out" / PRUNED).read_bytes() == before
    run_main(prune_codebook.main, *command, "--keep", 6, "--overwrite")
    assert len(Codebook.load(tmp_path / "out" / PRUNED)) == 6
