"""The machine and its processes: devices, threads, signals, progress, random draws.

Every script imports this package first. From then on Ctrl-C ends it without a traceback, also amid the other imports.
"""

import sys
from types import TracebackType


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that nobody has caught."""
    if kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _show
