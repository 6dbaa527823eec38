"""Runs that die on the way, and what they leave."""

import json

import torch

from tests.helpers.files import contents
from utils.training.metrics import read_rows

TIMES = ("digest", "files")  # keys of what covers such numbers, and of timestamps of files
CLOCK = ("_per_second", "data_wait")  # ends of the names of numbers that depend on the clock


def dying(original, at):
    """`original`, which fails as by Ctrl-C at its call number `at`, from 0."""
    calls = iter(range(at + 1))

    def call(*args, **kwargs):
        if next(calls) == at:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    return call


def results(folder):
    """The content of every file of a step by its name, but of locks and of those that tell of the attempts."""
    files = {path.relative_to(folder).as_posix(): content for path, content in contents(folder).items()}
    return {
        name: content
        for name, content in files.items()
        if name != "manifest.json" and not name.endswith((".log", ".lock"))
    }


def same(first, second):
    """Whether two checkpoints are equal to the bit, except for clock times and the digest, which covers them."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        first, second = (
            {key: value for key, value in content.items() if key not in TIMES and not str(key).endswith(CLOCK)}
            for content in (first, second)
        )
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def differences(first, second):
    """The differences between two folders, but for what tells of times: logs, records, cards, cached tokens."""
    names = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (first, second)]
    names = [
        {name for name in each if name.name not in ("manifest.json", "README.md", "tokens")}
        - {name for name in each if name.suffix == ".log" or name.parent.name == "tokens"}
        for each in names
    ]
    equal = {name for name in names[0] & names[1] if is_same(first / name, second / name)}
    return [
        *(f"{name} is only in one" for name in sorted(names[0] ^ names[1])),
        *(f"{name} differs" for name in sorted(names[0] & names[1] - equal)),
    ]


def is_same(first, second):
    """Whether two files are equal, except for clock times."""
    if first.is_dir() or first.read_bytes() == second.read_bytes():
        return True
    if first.suffix == ".pt":
        return same(*(torch.load(path, weights_only=True) for path in (first, second)))
    if first.suffix == ".jsonl":
        return same(read_rows(first), read_rows(second))
    return first.read_bytes()[:1] == b"{" and same(*(json.loads(path.read_bytes()) for path in (first, second)))
