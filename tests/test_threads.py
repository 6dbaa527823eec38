"""What is chosen before torch is imported, and that a user's own choice stands."""

import os

import pytest

from utils.runtime import threads

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@pytest.fixture
def chosen(monkeypatch):
    """A function: what is set in an environment, on a machine of so many cores of which some are busy."""

    def choose(environment, cores=4, busy=0.0):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(threads, "available_cores", lambda: cores)
        monkeypatch.setattr(threads, "busy_cores", lambda: busy)
        threads.choose()
        return {name: os.environ[name] for name in NAMES if name in os.environ and name not in environment}

    return choose


@pytest.mark.parametrize(
    ("environment", "cores", "busy", "expected"),
    [
        ({}, 4, 0.0, {"GOMP_SPINCOUNT": threads.SPINS}),
        ({}, 4, 0.4, {"GOMP_SPINCOUNT": threads.SPINS}),
        ({}, 4, 1.1, {"GOMP_SPINCOUNT": threads.SPINS, "OMP_NUM_THREADS": "3"}),
        ({}, 2, 5.0, {"GOMP_SPINCOUNT": threads.SPINS, "OMP_NUM_THREADS": "1"}),
        ({}, 1, 1.0, {"GOMP_SPINCOUNT": threads.SPINS}),
        ({"OMP_NUM_THREADS": "4"}, 4, 3.0, {"GOMP_SPINCOUNT": threads.SPINS}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, 4, 0.0, {}),
        ({"GOMP_SPINCOUNT": "7", "MKL_NUM_THREADS": "2"}, 4, 3.0, {}),
    ],
)
def test_the_environment_is_completed_and_never_overruled(environment, cores, busy, expected, chosen):
    assert chosen(environment, cores, busy) == expected
