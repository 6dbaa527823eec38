"""manifest.json: an entry an attempt, only of those whose checks have passed."""

import json
import shlex

import pytest
import torch

from tests.helpers.files import contents
from tests.helpers.runs import MAINS, PLAN
from tests.helpers.scripts import TINY, expect_error, expect_exit
from train_autoencoder import Options
from utils.core.files import UserError
from utils.core.options import parse_options
from utils.runs.folders import OutputFolder
from utils.runs.manifest import FINISHED, from_here, read_attempts
from utils.training.gradient import GradientLearner


@pytest.fixture
def folder(tmp_path):
    return OutputFolder(tmp_path / "run")


def test_an_attempt_holds_what_was_asked_with_what_and_how_it_ended(begun, train, folder):
    begun("autoencoder")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        train("autoencoder", "run", *PLAN, "--resume")
    finally:
        torch.set_num_threads(threads)
    first, second = read_attempts(folder)
    assert (first.script, first.outcome, second.outcome) == ("train_autoencoder.py", FINISHED, FINISHED)
    assert first.config == json.loads((TINY / "autoencoder.json").read_text()) | {
        "num_enc_res_blocks": 1, "num_dec_res_blocks": 1, "weight_decay": 2e-5
    }  # fmt: skip
    assert (first.device, first.threads, second.threads) == ("cpu", threads, threads + 1)
    line = f"began with {threads} threads, now there are {threads + 1}"
    assert line in folder.log("train_autoencoder.py").read_text()
    assert first.versions["torch"] == torch.__version__
    assert first.begin < first.end <= second.begin
    assert first.seconds > 0
    assert not first.arguments["resume"] and second.arguments["resume"]
    words = shlex.split(first.command)
    assert words[:2] == ["python", "train_autoencoder.py"]
    typed = vars(parse_options(Options, "", words[2:]))
    assert {name: str(value) for name, value in typed.items()} == {
        k: from_here(str(v)) for k, v in first.arguments.items()
    }


@pytest.mark.parametrize("flags", [["--resume", "--seed", 1], ["--config-path", "no-such.json"], ["--device", "x"]])
def test_a_refused_attempt_changes_nothing(flags, begun, command, capsys):
    path = begun("autoencoder")
    before = contents(path)
    expect_error(capsys, MAINS["autoencoder"], command("autoencoder", "run", *PLAN, *flags))
    assert contents(path) == before


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UserError("map.npy: not a feature map"), "failed: UserError: map.npy: not a feature map"),
        (KeyboardInterrupt(), "stopped by SIGINT"),
        (SystemExit(143), "stopped by SIGTERM"),
    ],
)
def test_what_ends_an_attempt_is_kept_and_until_then_how_far_it_came(error, outcome, command, folder, monkeypatch):
    seen, original = [], GradientLearner.update

    def update(self, batch, step, share):
        seen.extend(read_attempts(folder))
        if step == 1:
            raise error
        return original(self, batch, step, share)

    monkeypatch.setattr(GradientLearner, "update", update)
    expect_exit(MAINS["autoencoder"], command("autoencoder", "run", "--max-step", 2, "--checkpoint-step", 1))
    assert [attempt.outcome for attempt in read_attempts(folder)] == [outcome]
    assert [attempt.outcome for attempt in seen] == ["running", "running"]
    assert seen[0].seconds == 0 < seen[1].seconds  # a killed one lasted until its last checkpoint
