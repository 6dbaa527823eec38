"""The cores that this process may use."""

import os


def available_cores() -> int:
    """Their number, which a scheduler or `taskset` may make smaller than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
