"""How every script ends: an expected error or a signal becomes one line and an exit status."""

import signal
import sys
from collections.abc import Callable

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
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
