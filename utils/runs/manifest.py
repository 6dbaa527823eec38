"""The attempts at a step: an entry of `manifest.json` for each, beside the results, and a log."""

from utils.runtime.threads import CHOICE

import dataclasses
import json
import logging
import os
import platform
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from utils.core.config import build_config, read_json
from utils.core.files import UserError, write_file
from utils.core.lock import lock
from utils.core.options import ScriptOptions, fixed_options, words_of
from utils.core.provenance import check, options_key, plain
from utils.runs.checkpoint import fingerprint_in
from utils.runs.folders import SUFFIX, OutputFolder
from utils.runtime import distributed
from utils.runtime.device import peak_memory

log = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "numpy", "pillow")
RUNNING, FINISHED = "running", "finished"
# Options that results do not depend on.
IDLE = ("log_step", "num_workers", "keep_checkpoint", "save_minutes", "tensorboard", "resume")
IDLE += ("device", "overwrite", "verify", "out_dir", "model")
printed = ContextVar("printed", default=logging.INFO)  # the level from which on a log line is also printed


@dataclass(frozen=True)
class Attempt:
    script: str
    arguments: dict
    config: dict | None  # of the model, where the script has one
    versions: dict
    device: str
    threads: int  # of a CPU
    begin: str  # ISO 8601
    end: str  # while it runs, and of one that was killed: when it last saved something
    outcome: str  # `RUNNING`, `FINISHED`, "stopped by SIGTERM" or "failed: " and why
    inputs: dict | None = None  # fingerprints of the inputs, `data` that of the data set
    models: dict | None = None  # fingerprints of the checkpoints that it was given, by their paths from its folder
    plan: dict | None = None  # of a training: utils/training/loop.py
    peak_memory: int | None = None  # bytes of the device, of one that has finished
    goes_on: bool | None = None  # whether it kept what an earlier one had done; None: not noted

    def __post_init__(self) -> None:
        for name in ("begin", "end"):
            try:
                datetime.fromisoformat(getattr(self, name))
            except ValueError:
                raise ValueError(f"{name!r} is {getattr(self, name)!r}, expected a time in ISO 8601") from None

    @property
    def start(self) -> datetime:
        return datetime.fromisoformat(self.begin).astimezone()

    @property
    def seconds(self) -> float:
        return (datetime.fromisoformat(self.end).astimezone() - self.start).total_seconds()

    @property
    def command(self) -> str:
        return shlex.join(["python", self.script, *map(from_here, words_of(self.arguments))])


def from_here(word: object) -> str:
    """A path as one from the current folder: an absolute one would tell others about the machine."""
    with suppress(ValueError):  # of another drive of Windows
        return os.path.relpath(word) if Path(word).is_absolute() else str(word)
    return str(word)


@dataclass(frozen=True)
class Record:
    attempts: tuple[Attempt, ...] = ()


def read_attempts(folder: OutputFolder) -> list[Attempt]:
    """All attempts at a step, the oldest first, none without a manifest; raises `UserError` naming a wrong key."""
    if not folder.record.exists():
        return []
    return list(build_config(Record, read_json(folder.record), str(folder.record)).attempts)


def newest(folder: OutputFolder, script: str) -> Attempt | None:
    """The newest attempt of a script at a step; a manifest that cannot be read has none."""
    with suppress(UserError):
        return next((each for each in reversed(read_attempts(folder)) if each.script == f"{script}.py"), None)
    return None


def is_finished(folder: OutputFolder, script: str) -> bool:
    """Whether the newest attempt of a script at a step has run to its end."""
    last = newest(folder, script)
    return last is not None and last.outcome == FINISHED


def models_of(folder: Path, paths: Iterable[object]) -> dict[str, str | None]:
    """The fingerprints of those of the paths that are checkpoints, by their paths from a folder."""
    files = (path for path in paths if isinstance(path, Path) and path.suffix in (".pt", SUFFIX) and path.is_file())
    return {Path(os.path.relpath(path, folder)).as_posix(): fingerprint_in(path) for path in files}


def key_of(arguments: dict, config: dict | None) -> dict:
    """What the results of a step depend on but for its inputs: its options, and the keys of its config in quotes."""
    options = {name: value for name, value in arguments.items() if name not in IDLE and not name.endswith("_path")}
    quoted = {repr(name) if name.isidentifier() else name: value for name, value in flat(config or {}).items()}
    return options | quoted


def check_result(
    step: OutputFolder, script: str, key: dict, data: dict | None, paths: Iterable[Path], **how: Any
) -> None:
    """Raise `UserError` if the newest attempt of a script at a step had another key, data or checkpoints.

    `paths` are the checkpoints that it would be given; `how` is as in `provenance.check`. What an older version has not
    noted is not compared, nor are inputs that are still to be made.
    """
    last = newest(step, script)
    then, models = plain(key_of(last.arguments, last.config)), last.models or {}
    now = {name: value for name, value in plain(key).items() if name in then}
    then = {name: then[name] for name in now} | models
    now |= models | models_of(step.path, [*paths, *(step.path / name for name in models)])
    if data is not None:
        then, now = {**then, "data": (last.inputs or {}).get("data")}, {**now, "data": data}
    check(step.path, then, now, **how)


def note_data(folder: OutputFolder, script: str, data: dict) -> None:
    """Note that the newest attempt of a script has read files that have these timestamps now."""
    attempts = read_attempts(folder)
    number = max(number for number, each in enumerate(attempts) if each.script == f"{script}.py")
    if (inputs := attempts[number].inputs or {}).get("data") != data:
        attempts[number] = dataclasses.replace(attempts[number], inputs=inputs | {"data": data})
        _write(folder, attempts)


def flat(config: dict) -> dict:
    """A config whose nested configs stand among its own keys."""
    parts = (value if isinstance(value, dict) else {key: value} for key, value in config.items())
    return {name: value for part in parts for name, value in part.items()}


def note(folder: OutputFolder, **known: object) -> None:
    """Note in `manifest.json` that the newest attempt has come so far, and other fields that are known now."""
    if distributed.is_main() and (attempts := read_attempts(folder)):
        _write(folder, [*attempts[:-1], dataclasses.replace(attempts[-1], end=_now(), **known)])


def _write(folder: OutputFolder, attempts: list[Attempt]) -> None:
    write_file(folder.record, json.dumps(dataclasses.asdict(Record(tuple(attempts))), indent=1) + "\n")


class CurrentAttempt:
    """An attempt that may still be refused: until `begin` is called, the folder stays as it was."""

    def __init__(self, script: str, options: ScriptOptions) -> None:
        self.script, self.options, self.folder = Path(script).name, options, OutputFolder(options.out_dir)
        self.arguments = plain(dataclasses.asdict(options))
        self.since, self.device = _now(), None  # the device once it has begun

    def begin(
        self,
        device: torch.device,
        config: object = None,
        inputs: dict | None = None,
        models: Iterable[Path] = (),
        *,
        goes_on: bool | None = None,
    ) -> None:
        """Add the attempt to the manifest and begin to log, in process 0, once all processes have passed their checks.

        `models` are checkpoints that it reads beside those of its options.
        """
        self.agree(config, inputs)
        self.device = device
        if not distributed.is_main():
            logging.disable()
            return
        versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
        setup = (as_dict(config), versions, str(device), torch.get_num_threads())
        given = [value for name, value in vars(self.options).items() if name != "out_dir"]
        models = models_of(self.folder.path, [*given, *models])
        entry = Attempt(self.script, self.arguments, *setup, self.since, self.since, RUNNING, inputs, models)
        entry = dataclasses.replace(entry, goes_on=goes_on)
        _write(self.folder, [*read_attempts(self.folder), entry])
        handlers = [logging.StreamHandler(sys.stdout), log_file(self.folder.log(self.script))]
        handlers[0].setLevel(printed.get())
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)
        log.info("arguments %s", json.dumps(self.arguments))
        log.info("%d threads: %s", entry.threads, CHOICE)
        if distributed.num_processes() > 1:
            log.info("%d processes", distributed.num_processes())

    def agree(self, config: object = None, inputs: dict | None = None) -> None:
        """Wait until all processes of the job come here, before the first one writes; `UserError` if one cannot."""
        distributed.agree({**self.arguments, **(as_dict(config) or {}), **(inputs or {})})

    def key(self, inputs: dict) -> dict:
        return {**options_key(self.options), **inputs}

    def check_repeats(self, inputs: dict, verify: Callable[[], None] | None = None) -> None:
        """Raise `UserError` unless the script repeats what it did here, or replaces it; `verify` is as in `check`."""
        before = [attempt for attempt in read_attempts(self.folder) if attempt.script == self.script]
        before = [attempt for attempt in before if attempt.outcome == FINISHED] or before  # these have left results
        if not before or self.options.overwrite:
            return
        last = before[-1]
        names = fixed_options(self.options).items()
        then = {flag: last.arguments.get(name) for name, flag in names} | (last.inputs or {})
        remedy = "give another --out-dir, or --overwrite to replace what it holds"
        check(self.folder.path, then, self.key(inputs), remedy, verify if self.options.verify else None)


@contextmanager
def attempt(script: str, options: ScriptOptions) -> Iterator[CurrentAttempt]:
    current = CurrentAttempt(script, options)
    with lock(current.folder.path) if distributed.is_main() else nullcontext():
        try:
            yield current
        except BaseException as error:
            if current.device is not None:
                with suppress(OSError):  # of a full disk, say: the error above counts
                    note(current.folder, outcome=_outcome(error))
            raise
        note(current.folder, outcome=FINISHED, peak_memory=peak_memory(current.device))


def as_dict(config: object) -> dict | None:
    return config if config is None or isinstance(config, dict) else dataclasses.asdict(config)


def log_file(path: Path) -> logging.FileHandler:
    """Appends to a log: a name that is not UTF-8 is escaped, since an error would print a traceback for the line."""
    return logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")


def _outcome(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped by SIGINT"
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        return f"stopped by {signal.Signals(error.code - 128).name}"
    return f"failed: {type(error).__name__}: {error}"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
