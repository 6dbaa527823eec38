"""How every script begins and ends: it meets the other processes of its job; errors become one line and a status."""

import signal
import sys
from collections.abc import Callable

from utils import distributed
from utils.device import keep_memory
from utils.files import UserError


def stop_signals() -> list[signal.Signals]:
    """What asks this process to stop: Ctrl-C, a scheduler, and a lost terminal unless it is ignored, as by nohup."""
    hangup = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # not on every system
    return [signal.SIGINT, signal.SIGTERM, *(each for each in hangup if signal.getsignal(each) != signal.SIG_IGN)]


def run(main: Callable[[], None]) -> None:
    """Call `main`; an expected error becomes one line on stderr and exit status 2, a signal 128 and its number."""

    def stop(number: int, _: object) -> None:
        sys.exit(128 + number)

    for number in stop_signals():
        if number != signal.SIGINT:  # which is a KeyboardInterrupt
            signal.signal(number, stop)
    keep_memory()
    try:
        distributed.start()
        main()
        distributed.end()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        distributed.leave(130)
    except SystemExit as error:
        if distributed.num_processes() == 1:
            raise
        distributed.leave(error.code)
    except (UserError, OSError) as error:
        say(str(error))
        distributed.leave(2)
    except RuntimeError as error:
        if not distributed.is_lost(error):
            raise
        say(distributed.LOST)
        distributed.leave(2)


def say(error: str) -> None:
    """Print an error in one line, unless another process of the job does."""
    try:
        error = distributed.settle(error)
    except RuntimeError as lost:  # the others cannot be asked any more
        if not distributed.is_lost(lost):
            raise
    if error is not None:
        print("error:", " ".join(error.split()), file=sys.stderr)
