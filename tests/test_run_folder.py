"""A run's names, how many stages it has, and what is missing."""

import pytest

from utils.runs.chain import missing_in
from utils.runs.folders import OutputFolder, RunFolder


@pytest.mark.parametrize(
    ("folders", "planned", "expected"),
    [((), 0, 1), (("codebook_cond",), 0, 1), (("codebook_1",), 0, 2), (("transformer_3",), 2, 4), ((), 2, 2)],
)
def test_stages_are_counted_by_what_is_planned_and_what_is_there(folders, planned, expected, write_json, tmp_path):
    for name in folders:
        (tmp_path / name).mkdir()
    if planned:
        write_json(tmp_path / "generate.json", {str(number): {} for number in range(planned)})
    run = RunFolder(tmp_path)
    assert run.num_stages == expected
    names = ["autoencoder", "feature_maps", "codebook_cond"]
    names += [f"{kind}_{number}" for kind in ("codebook", "transformer") for number in range(expected)]
    assert list(missing_in(run)) == [*names, "generated"]


def test_checkpoints_are_resumed_from_the_highest_step_and_a_persons_copies_are_not(tmp_path):
    step = OutputFolder(tmp_path)
    step.checkpoints.mkdir()
    ours = ["latest.pt", "model_10.pt", "model_9.pt"]
    for name in (*ours, "model_11.pt.bak", "model_.pt", "my_model_12.pt", "codebook_13.pt", "best.pt"):
        (step.checkpoints / name).touch()
    assert [path.name for path in step.resumable_checkpoints("model")] == ours
    step.latest.unlink()
    assert [path.name for path in step.resumable_checkpoints("model")] == ours[1:]
