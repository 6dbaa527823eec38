"""Runs other programs, one after the other: passes each signal on to them once, and pauses and ends with them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from utils.core.files import UserError
from utils.runtime.parent import watch_parent

ATTENDANT = "CASCADE_ATTENDANT"  # variable with the process id of the attendant, for the programs that it runs
GROUPS = hasattr(os, "killpg")  # else Ctrl-C reaches every process of a console by itself
STOPS = [each for each in signal.Signals if each.name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGBREAK")]


class Attendant:
    """Runs programs and receives the signals meanwhile, so that no program outlives this process."""

    def __init__(self) -> None:
        self.child: subprocess.Popen | None = None
        self.is_starting = False
        self.stop = 0  # the status to end with, once a signal has come

    def run(self, command: list[str | Path], *, env: Mapping[str, str] = os.environ, **options: object) -> int:
        """Run a program to its end; return its status, or 128 and the number of the signal that ended it.

        A script stops also when this process is killed: `is_attended`.
        """
        if self.stop:
            sys.exit(self.stop)
        sys.stdout.flush()
        self.is_starting = True
        try:
            # In a group of its own it gets Ctrl-C once, through `receive`: a trainer saves at the first signal and ends
            # at once at the second. Such a group must not read the terminal.
            more = {"process_group": 0} if GROUPS else {}
            more["env"] = {**env, ATTENDANT: str(os.getpid())}
            self.child = subprocess.Popen([*map(str, command)], stdin=subprocess.DEVNULL, **more, **options)
        finally:
            self.is_starting = False
        if GROUPS and self.stop:  # the signal came before the program was there
            self.child.send_signal(self.stop - 128)
        status = self.child.wait()
        self.child = None
        return status if status >= 0 else 128 - status

    def check(self, command: list[str | Path], **options: object) -> None:
        if status := self.run(command, **options):
            sys.exit(status)

    def receive(self, number: int, _: object) -> None:
        self.stop = 128 + number
        if number == getattr(signal, "SIGHUP", None):
            signal.signal(number, signal.SIG_IGN)  # a shell and the kernel both send it where a terminal is lost
        if self.child is None and not self.is_starting:
            sys.exit(self.stop)
        if self.child is not None and GROUPS:
            self.child.send_signal(number)

    def pause(self, *_: object) -> None:
        """Pause the program and this process, as Ctrl-Z asks; `fg` and `bg` wake both."""
        if paused := self.child:
            os.killpg(paused.pid, signal.SIGTSTP)
        os.kill(os.getpid(), signal.SIGSTOP)
        if paused and self.child:
            os.killpg(paused.pid, signal.SIGCONT)


@contextmanager
def attending() -> Iterator[Attendant]:
    """An attendant that receives the signals in this block, but for those that are ignored already, as under nohup."""
    attendant = Attendant()
    handlers = dict.fromkeys(STOPS, attendant.receive)
    if GROUPS:  # under `stty tostop` a program that is not in the foreground would be paused as it prints
        handlers |= {signal.SIGTSTP: attendant.pause, signal.SIGTTOU: signal.SIG_IGN}
    handlers = {number: each for number, each in handlers.items() if signal.getsignal(number) != signal.SIG_IGN}
    before = {number: signal.signal(number, each) for number, each in handlers.items()}
    try:
        yield attendant
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def escape_names() -> None:
    """Print a name that is not UTF-8 with backslashes instead of failing."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def is_attended() -> bool:
    return os.environ.get(ATTENDANT) == str(os.getppid())


def main(function: Callable[[], None]) -> None:
    """Call `function`; an expected error becomes one line on stderr and exit status 2."""
    escape_names()
    if is_attended():
        watch_parent(signal.SIGTERM)
    try:
        function()
    except (UserError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
