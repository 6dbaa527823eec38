"""What a GPU would refuse or wait for, without one: fake tensors on a device that does not exist."""

import json
import subprocess
import sys

import pytest
from torch.utils import backend_registration

from tests.helpers.accelerator import CHECKS, WALKS
from utils.runs.chain import ROOT

TOKENS = {0: 2, 1: 8}  # that a walk of a stage writes after those that are kept


@pytest.fixture(scope="module")
def waits():
    """Of each walk how often the host waits for the device, or its error."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this version of torch cannot make up a device")
    command = [sys.executable, "-m", "tests.helpers.accelerator"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", [name for name in WALKS if not name.startswith(("sample", "bits"))])
def test_no_step_mixes_devices_or_waits(waits, name):
    assert waits[name] == 0


@pytest.mark.parametrize("name", [name for name in WALKS if name.startswith("sample")])
def test_a_token_waits_at_most_once(waits, name):
    most = TOKENS[int(name[-1])] if "beam" in name or "blocks" in name else 0
    assert waits[name] <= most


def test_a_batch_of_the_evaluation_waits_once(waits):
    assert waits["bits"] == 1


@pytest.mark.parametrize("name", CHECKS)
def test_what_must_not_be_is_found(waits, name):
    error, number = CHECKS[name][1:]
    assert str(waits[name]).startswith(error) if error else waits[name] == number
