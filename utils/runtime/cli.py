"""How every script begins and ends: it meets the other processes of its job; errors become one line and a status."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Event, Timer

import torch

from utils.core.files import UserError
from utils.runtime import distributed
from utils.runtime.child import escape_names, is_attended
from utils.runtime.device import keep_memory
from utils.runtime.parent import watch_parent

FAULTS = {  # words in the messages of PyTorch, and advice
    "allocate memory": "out of memory: lower --batch-size (with as much more --grad-accum-step nothing else changes)",
    "DataLoader worker": "a process that loads data was killed, perhaps for lack of memory: lower --num-workers",
    "/torch_": "too little shared memory for loaded data: give --num-workers 0, or mount a larger /dev/shm",
}


def stop_signals() -> list[signal.Signals]:
    """The signals to stop: of Ctrl-C, a scheduler, and a lost terminal unless it is ignored, as by nohup."""
    hangup = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # not on every system
    return [signal.SIGINT, signal.SIGTERM, *(each for each in hangup if signal.getsignal(each) != signal.SIG_IGN)]


@contextmanager
def stopping_after(seconds: float | None) -> Iterator[Event]:
    """Ask this process to stop, as SIGTERM does, so many seconds from now; the event tells whether that has come."""
    is_late = Event()

    def stop() -> None:
        is_late.set()
        signal.raise_signal(signal.SIGTERM)

    timer = Timer(seconds or 0.0, stop)
    if seconds is not None:
        timer.start()
    try:
        yield is_late
    finally:
        timer.cancel()


def has(*packages: str) -> bool:
    return all(find_spec(package) for package in packages)


def need(requirements: str, *packages: str) -> None:
    """Raise `UserError` unless these packages are installed, which the file of `requirements` lists."""
    for package in packages:
        if not has(package):
            raise UserError(f"{package} is not installed: pip install -r {requirements}")


def run(main: Callable[[], None]) -> None:
    """Call `main`; an expected error becomes one line on stderr and exit status 2, a signal 128 and its number."""
    for number in stop_signals():
        if number != signal.SIGINT:  # which is a KeyboardInterrupt
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    keep_memory()
    escape_names()
    try:
        distributed.connect()
        if distributed.num_processes() > 1 or is_attended():
            watch_parent(signal.SIGTERM)  # torchrun or a chain, without which nobody would end this process
        main()
        if distributed.num_processes() > 1:
            distributed.barrier()
            distributed.leave(0)
    except (KeyboardInterrupt, SystemExit, UserError, OSError, RuntimeError, MemoryError) as error:
        if distributed.num_processes() > 1:
            for number in stop_signals():  # torchrun sends them to the processes that are left
                signal.signal(number, signal.SIG_IGN)
        end_with(error)


def end_with(error: BaseException) -> None:
    """Print what has ended this process, unless another one does, and end it."""
    cause: BaseException | None = error
    while cause is not None and not distributed.is_lost(cause):
        cause = cause.__context__  # torchrun's signal may interrupt the handling of a lost process
    if cause is not None:
        say(distributed.LOST)
        distributed.leave(2)
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        distributed.leave(130)
    if isinstance(error, UserError | OSError):
        say(str(error))
        distributed.leave(2)
    if isinstance(error, SystemExit) and distributed.num_processes() > 1:
        distributed.leave(error.code)
    if (fault := fault_of(error)) is not None:
        say(fault)
        distributed.leave(1)
    raise error


def fault_of(error: BaseException) -> str | None:
    """The line for an error of the machine, with the setting to lower; None for any other error."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    for words, advice in FAULTS.items():
        if words in str(error):
            return f"{advice}; what was saved is intact ({reason})"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"{FAULTS['allocate memory']}; what was saved is intact ({reason})"
    return None


def say(error: str) -> None:
    """Print an error in one line, unless another process of the job does."""
    try:
        error = distributed.settle(error)
    except RuntimeError as lost:  # the others cannot be asked any more
        if not distributed.is_lost(lost):
            raise
    if error is not None:
        print("error:", " ".join(error.split()), file=sys.stderr)
