"""Ends this process when its parent dies, for which the system sends no signal."""

import os
import threading
import time


def watch_parent(number: int, seconds: float = 1.0) -> None:
    """From now on, send this process a signal once its parent has died, and look for that every so many seconds."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, name="parent", daemon=True).start()
