"""What is kept of each attempt at a step: an entry of `run.json` beside its results, and a log."""

from utils.threads import CHOICE

import dataclasses
import json
import logging
import platform
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch

from utils.config import build_config, read_json
from utils.files import replace_file
from utils.options import StepOptions
from utils.run_folder import StepFolder

log = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "numpy", "pillow")
RUNNING, FINISHED = "running", "finished"


@dataclass(frozen=True)
class Attempt:
    """One attempt at a step: what was asked for, with what, when, and how it ended."""

    script: str
    arguments: dict
    config: dict | None  # of the model, where the script has one
    versions: dict
    device: str
    threads: int  # of a CPU
    begin: str  # ISO 8601
    end: str  # while it runs, and of one that was killed: when it last saved something
    outcome: str  # `RUNNING`, `FINISHED`, "stopped by SIGTERM" or "failed: " and why

    def __post_init__(self) -> None:
        for name in ("begin", "end"):
            try:
                _time(getattr(self, name))
            except ValueError:
                raise ValueError(f"{name!r} is {getattr(self, name)!r}, expected a time in ISO 8601") from None

    @property
    def start(self) -> datetime:
        """When it began."""
        return _time(self.begin)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (_time(self.end) - self.start).total_seconds()

    @property
    def command(self) -> str:
        """What to type to do the same again."""
        words = ["python", self.script]
        for key, value in self.arguments.items():
            if value is not None and value is not False and value != []:
                values = value if isinstance(value, list) else [] if value is True else [value]
                words += [f"--{key.replace('_', '-')}", *map(str, values)]
        return shlex.join(words)


@dataclass(frozen=True)
class Record:
    """The content of a `run.json`, the oldest attempt first."""

    attempts: tuple[Attempt, ...] = ()


def read_attempts(folder: StepFolder) -> list[Attempt]:
    """All attempts at a step, the oldest first, or none without a `run.json`; raises `UserError` naming a wrong key."""
    if not folder.record.exists():
        return []
    return list(build_config(Record, read_json(folder.record), str(folder.record)).attempts)


def touch(folder: StepFolder, outcome: str = RUNNING) -> None:
    """Note in `run.json` that the newest attempt has come so far."""
    if attempts := read_attempts(folder):
        _write(folder, [*attempts[:-1], dataclasses.replace(attempts[-1], end=_now(), outcome=outcome)])


def _write(folder: StepFolder, attempts: list[Attempt]) -> None:
    content = dataclasses.asdict(Record(tuple(attempts)))
    with replace_file(folder.record) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def attempt(script: str, options: StepOptions, device: torch.device, config: object = None) -> Iterator[None]:
    """Log to stdout and to a file, and keep in `run.json` what is done in this block and how it ends.

    Enter the block once all checks have passed: a refused attempt leaves the folder as it was.
    """
    folder, begin = StepFolder(options.out_dir), _now()
    arguments = json.loads(json.dumps(dataclasses.asdict(options), default=str))
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    setup = (config and dataclasses.asdict(config), versions, str(device), torch.get_num_threads())
    begun = Attempt(Path(script).name, arguments, *setup, begin, begin, RUNNING)
    _write(folder, [*read_attempts(folder), begun])
    handlers = [logging.StreamHandler(sys.stdout), logging.FileHandler(folder.log(begun.script))]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)
    log.info("arguments %s", json.dumps(arguments))
    log.info("%d threads: %s", begun.threads, CHOICE)
    try:
        yield
    except BaseException as error:
        touch(folder, _outcome(error))
        raise
    touch(folder, FINISHED)


def _outcome(error: BaseException) -> str:
    """How an attempt ended that this error ended."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by SIGINT"
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        return f"stopped by {signal.Signals(error.code - 128).name}"
    return f"failed: {type(error).__name__}: {error}"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone()


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
