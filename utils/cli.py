"""How every script ends: an expected error or a signal becomes one line and an exit status."""

import signal
import sys
from collections.abc import Callable

from utils.device import keep_memory
from utils.files import UserError


def run(main: Callable[[], None]) -> None:
    """Call `main`; an expected error becomes one line on stderr and exit status 2, Ctrl-C and SIGTERM 130 and 143."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    keep_memory()
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
