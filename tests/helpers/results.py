"""Compares what two runs have written, but for what tells of the clock and of the attempts."""

import torch

from utils.training.metrics import read_rows

CLOCK = ("_per_second", "data_wait", "digest")  # ends of names of what depends on the clock


def same(first, second):
    """Whether the contents of two files are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        first, second = ({k: v for k, v in part.items() if not str(k).endswith(CLOCK)} for part in (first, second))
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def paths_of(folder):
    """Every file by its name, but logs, locks and records of attempts."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".log", ".lock"))
    return {path.relative_to(folder).as_posix(): path for path in files if path.name != "run.json"}


def content_of(path):
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    return read_rows(path) if path.suffix == ".jsonl" else path.read_bytes()


def differences(first, second):
    """The names of files that are in one of two folders only, or differ."""
    first, second = paths_of(first), paths_of(second)
    both = first.keys() & second.keys()
    differing = {name for name in both if not same(content_of(first[name]), content_of(second[name]))}
    return sorted(differing | (first.keys() ^ second.keys()))
