import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.bits import bits_before, code_bits, given_bits
from models.stage import KIND
from tests.helpers.stages import CODEBOOKS, build, codebook
from utils.core.files import UserError
from utils.runs.checkpoint import save_checkpoint


def test_what_a_base_stage_is_given_costs_what_the_training_images_say():
    built = codebook(4, 4)
    built.counts.copy_(torch.tensor([0, 2, 1, 1]))
    symbols = torch.tensor([[1, 2], [0, 0]])  # the second condition and the first label are those of no training image
    shares = {"condition": (2.5 / 6, 0.5 / 6), "label": (1.5 / 5.5, 0.5 / 5.5)}
    expected = {name: -sum(math.log2(share) for share in pair) / 2 for name, pair in shares.items()}
    result = given_bits(built, symbols, torch.tensor([0, 3, 1]))
    assert result == pytest.approx(expected)
    assert given_bits(built, symbols[:, :1], None) == {"condition": result["condition"]}
    assert given_bits(built, symbols[:0], None) == {}
    built.counts.zero_()
    assert given_bits(built, symbols, None) == {}


@given(st.lists(st.integers(0, 50), min_size=2, max_size=6).filter(any))
def test_the_code_of_conditions_is_a_code_and_near_the_entropy_of_what_it_counted(counts):
    counts = torch.tensor(counts) * 1000
    costs = torch.tensor([code_bits(counts, torch.tensor([unit])) for unit in range(len(counts))])
    assert (2.0**-costs).sum().item() == pytest.approx(1, abs=1e-5)
    entropy = float(torch.special.entr(counts / counts.sum()).sum()) / math.log(2)
    used = torch.repeat_interleave(torch.arange(len(counts)), counts)
    assert code_bits(counts, used) == pytest.approx(entropy, abs=0.02)


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
