"""How OpenMP's threads wait and how many there are, chosen before torch is imported, which reads it once.

A thread that has done its share waits for the others by spinning, up to 30 ms, which costs other processes their time.
docs/scaling.md#times shows what each choice takes beside other work. Every script imports this first, so it also names
a Python without torch, and from then on Ctrl-C ends the script without a traceback, also amid the other imports.
"""

import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from utils.runtime.cores import available_cores

SPINS = "10000"  # about 0.1 ms, enough for the gaps between two operations
STAT = Path("/proc/stat")
BEFORE = dict(os.environ)


def busy_seconds() -> float:
    """Seconds of all cores that were not idle since the machine started; waiting for a disk counts as idle."""
    ticks = [int(number) for number in STAT.read_text().splitlines()[0].split()[1:]]
    return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def busy_cores() -> float:
    """Cores that other processes keep busy right now; 0 where that is unknown."""
    if not STAT.exists():
        return 0.0
    before, start = busy_seconds(), time.perf_counter()
    time.sleep(0.1)
    return (busy_seconds() - before) / (time.perf_counter() - start)


def choose() -> str:
    """Set the environment unless the user has; return what was chosen, for the log."""
    chosen = []
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = SPINS
        chosen.append(f"GOMP_SPINCOUNT={SPINS}")
    if not os.environ.keys() & {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}:
        cores, busy = available_cores(), busy_cores()
        if round(busy) >= 1 and cores > 1:
            os.environ["OMP_NUM_THREADS"] = number = str(max(1, cores - round(busy)))
            chosen.append(f"OMP_NUM_THREADS={number}, since other work keeps {busy:.1f} cores busy")
    return ", ".join(chosen) or "as the environment says"


def inherited() -> dict[str, str]:
    """The environment for another process, which chooses for itself."""
    own = {"GOMP_SPINCOUNT", "OMP_NUM_THREADS"} - BEFORE.keys()
    return {name: value for name, value in os.environ.items() if name not in own}


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _show
if find_spec("torch") is None:  # the import that follows would end in a traceback
    advice = "activate the project's environment, or make one (README.md, Set up by hand)"
    print(f"error: {sys.executable} has no PyTorch; {advice}", file=sys.stderr)
    sys.exit(2)
CHOICE = choose()
