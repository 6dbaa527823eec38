import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.bits import bits_before, given_bits, label_bits
from models.stage import KIND
from tests.helpers.stages import CODEBOOKS, build, codebook
from utils.core.files import UserError
from utils.runs.checkpoint import save_checkpoint


def test_what_a_base_stage_is_given_costs_what_the_training_images_say():
    built = codebook(4, 4)
    built.counts.copy_(torch.tensor([0, 2, 1, 1]))
    symbols = torch.tensor([[1, 0, 2], [0, 0, 1]])  # no training image has the second condition, or both labels
    counted = torch.tensor([[0, 2], [0, 2], [1, 2], [2, 2]])  # labels a, a, b and none: three sets
    new = 3 / 7 * 2.5 / 5 * 1.5 / 5
    shares = {"condition": (2.5 / 6, 0.5 / 6), "label": (2 / 7, new)}
    expected = {name: -sum(math.log2(share) for share in pair) / 2 for name, pair in shares.items()}
    result = given_bits(built, symbols, counted, 2)
    assert result == pytest.approx(expected)
    assert given_bits(built, symbols[:, :1]) == {"condition": result["condition"]}
    assert given_bits(built, symbols[:0]) == {}
    built.counts.zero_()
    assert given_bits(built, symbols) == {}


@given(st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=8))
def test_the_code_of_label_sets_can_be_decoded(counted):
    rows = lambda sets: torch.tensor([[*sorted(one), *[4] * (4 - len(one))] for one in sets])  # noqa: E731
    every = rows([{number for number in range(4) if which >> number & 1} for which in range(16)])
    costs = torch.tensor([label_bits(rows(counted), row[None], 4) for row in every])
    assert costs.isfinite().all()
    assert (2.0 ** -costs.double()).sum().item() <= 1 + 1e-6
    expected = -math.log2(counted.count(counted[0]) / (len(counted) + len(set(map(frozenset, counted)))))
    assert label_bits(rows(counted), rows(counted[:1]), 4) == pytest.approx(expected)


def test_the_bits_before_a_cascade_stage_are_those_of_the_checkpoint_of_the_one_before(tmp_path):
    marks = {"lr_codebook": CODEBOOKS[0].fingerprint, "hr_codebook": CODEBOOKS[1].fingerprint}
    path, stage = tmp_path / "stage.pt", build(0)
    for validation, expected in (({"image_bits": 12.5}, 12.5), ({}, None), (None, None)):
        fingerprint = save_checkpoint(path, KIND, stage.config, stage.state_dict(), marks)
        (tmp_path / "measured.json").write_text(json.dumps({} if validation is None else {fingerprint: validation}))
        assert bits_before(CODEBOOKS[1], path) == expected
    assert bits_before(CODEBOOKS[1], None) is None
    with pytest.raises(UserError, match=r"stage\.pt: was made with another codebook"):
        bits_before(CODEBOOKS[2], path)
