"""What a run has left on disk, read and checked: logs, metrics, stages and the evaluation."""

import json
import re
import shlex
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

from reporting.evaluation import Evaluation, read_evaluation
from utils.config import read_json
from utils.files import UserError

STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (.*)")
SCRIPTS = {
    ("autoencoder", "train"): "train_autoencoder.py",
    ("feature_maps", "generate"): "generate_fmap_dataset.py",
    ("codebook", "train"): "train_codebook.py",
    ("codebook", "prune"): "prune_codebook.py",
    ("transformer", "train"): "train_quantized_transformer.py",
    ("generated", "generate"): "generate_images.py",
}
STAGES = 3  # stages of the recipes' cascades, expected where nothing says how many there are


@dataclass(frozen=True)
class Log:
    """A log of a script: the arguments of its last start, its config, and how long all of its parts took."""

    script: str
    arguments: dict
    config: dict | None  # of the model, where the script has one
    start: datetime
    seconds: float
    starts: int  # how often it was started until it ended

    @property
    def command(self) -> str:
        """What to type to do the same again."""
        words = ["python", self.script]
        for key, value in self.arguments.items():
            flag = f"--{key.replace('_', '-')}"
            if value is True:
                words.append(flag)
            elif isinstance(value, list) and value:
                words += [flag, *map(str, value)]
            elif value is not None and not isinstance(value, bool | list):
                words += [flag, str(value)]
        return shlex.join(words)


@dataclass(frozen=True)
class Stage:
    """A folder of the run."""

    name: str  # of the folder, such as codebook_0
    folder: Path
    logs: dict[str, Log]
    rows: list[dict] = field(repr=False)  # of metrics.jsonl
    is_unfinished: bool = False

    @property
    def kind(self) -> str:
        """What it is of, without its number."""
        return kind_of(self.name)

    @property
    def level(self) -> str:
        """What follows the kind: "cond", "0", "1", …"""
        return self.name.removeprefix(self.kind).removeprefix("_")

    @property
    def seconds(self) -> float:
        """How long its scripts took."""
        return sum(log.seconds for log in self.logs.values())

    def series(self, key: str, *without: str) -> list[tuple[int, float]]:
        """(step, value) of the rows that hold `key` and none of `without`."""
        return [(row["step"], row[key]) for row in self.rows if key in row and not any(name in row for name in without)]

    def last(self, key: str) -> float | None:
        """The newest value of a key, None if it was never written."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)

    def picture(self, name: str) -> Path | None:
        """The picture `name_STEP.png` of the highest step, or of what pruning has left."""
        steps = {}
        for path in (self.folder / "images").glob(f"{name}_*.png"):
            suffix = path.stem.removeprefix(f"{name}_")
            if suffix.isdecimal() or suffix == "pruned":
                steps[float("inf") if suffix == "pruned" else int(suffix)] = path
        return steps[max(steps)] if steps else None


@dataclass(frozen=True)
class Run:
    """A run as `scripts/train_cascade.sh` leaves it, or as much of it as there is."""

    folder: Path
    stages: dict[str, Stage]
    missing: list[str]
    generation: dict | None  # generate.json
    evaluation: Evaluation | None

    def of_kind(self, kind: str) -> list[Stage]:
        """The stages of a kind, from coarse to fine."""
        return [stage for stage in self.stages.values() if stage.kind == kind]

    @property
    def logs(self) -> list[tuple[str, Log]]:
        """All logs, each with the name of its stage, in the order of the stages."""
        return [(stage.name, log) for stage in self.stages.values() for log in stage.logs.values()]

    @cached_property
    def grids(self) -> list[Path]:
        """The pictures of what was generated: by the condition, then by each stage."""
        return generated_grids(self.folder)


def read_run(folder: Path) -> Run:
    """Read all that a run has left; raises `UserError` naming the file that is wrong or the folder that is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that scripts/train_cascade.sh writes to")
    generation = read_json(folder / "generate.json") if (folder / "generate.json").exists() else None
    expected = names_of(count_stages(folder, generation))
    stages = {name: read_stage(folder, name) for name in expected if (folder / name).is_dir()}
    if not stages:
        raise UserError(f"{folder}: holds no stage of a run; give a folder that scripts/train_cascade.sh writes to")
    missing = [name for name in expected if name not in stages]
    return Run(folder, stages, missing, generation, read_evaluation(folder / "evaluation"))


def count_stages(folder: Path, generation: dict | None) -> int:
    """Of how many stages the cascade is: as many as have generated or been trained, or as are planned."""
    numbers = [int(path.name[12:]) + 1 for path in folder.glob("transformer_*") if path.name[12:].isdecimal()]
    planned = len(generation) if generation else STAGES
    return len(generated_grids(folder)) - 1 if generated_grids(folder) else max([planned, *numbers])


def names_of(number: int) -> list[str]:
    """The folders of a cascade of so many stages, in the order in which they are made."""
    levels = range(number)
    codebooks = ["codebook_cond", *(f"codebook_{level}" for level in levels)]
    return ["autoencoder", "feature_maps", *codebooks, *(f"transformer_{level}" for level in levels), "generated"]


def kind_of(name: str) -> str:
    """The kind of a stage's folder."""
    return name.rpartition("_")[0] if name.startswith(("codebook_", "transformer_")) else name


def generated_grids(folder: Path) -> list[Path]:
    """The grid of the conditions and of each stage of `generated`, as far as they go."""
    images = folder / "generated" / "images"
    paths = [images / "recon_model_Cond.png"]
    while paths[-1].exists():
        paths.append(images / f"recon_model_{len(paths) - 1}.png")
    return paths[:-1]


def read_stage(run: Path, name: str) -> Stage:
    """Read the logs and the metrics of a stage."""
    folder, kind = run / name, kind_of(name)
    logs = {}
    for (of, log), script in SCRIPTS.items():
        if of == kind and (path := folder / f"{log}.log").exists():
            logs[log] = read_log(path, script)
    done, marks = run / ".done", [f"prune_{name}" if log == "prune" else name for log in logs]
    marks = ["generate" if mark == "generated" else mark for mark in marks or [name]]
    is_unfinished = done.is_dir() and not all((done / mark).exists() for mark in marks)
    metrics = folder / "metrics.jsonl"
    return Stage(name, folder, logs, read_metrics(metrics) if metrics.exists() else [], is_unfinished)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl: objects with a whole-numbered `step`, whose other values are numbers or lists."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        row = parse(line, f"{path}: line {number}")
        if type(row.get("step")) is not int:
            raise UserError(f"{path}: line {number} has no 'step'; delete the line, or train the stage anew")
        for key, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float | list):
                raise UserError(f"{path}: line {number}: {key!r} is {value!r}, expected a number; delete the line")
        rows.append(row)
    return rows


def read_log(path: Path, script: str) -> Log:
    """Read a log. A run that was resumed has parts, each opened by its arguments; their times are added up.

    What stands before the last start without `--resume` was of an earlier run and is left out.
    """
    parts: list[tuple[dict, list[datetime]]] = []
    config = None
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not (found := STAMP.fullmatch(line)):
            continue  # a table goes on over lines
        name, _, rest = found[2].partition(" ")
        if name == "arguments":
            parts.append((parse(rest, f"{path}: line {number}"), []))
        elif name == "config" and rest.startswith("{"):
            config = parse(rest, f"{path}: line {number}")
        if parts:
            parts[-1][1].append(parse_time(found[1], f"{path}: line {number}"))
    if not parts:
        raise UserError(
            f"{path}: no line with the arguments of the run; it is damaged, delete it or run the stage anew"
        )
    first = max(index for index, (arguments, _) in enumerate(parts) if index == 0 or not arguments.get("resume"))
    kept = parts[first:]
    seconds = sum(max(0.0, (times[-1] - times[0]).total_seconds()) for _, times in kept)
    return Log(script, kept[-1][0], config, kept[0][1][0], seconds, len(kept))


def parse_time(text: str, where: str) -> datetime:
    """A time as the log writes it."""
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M:%S,%f")
    except ValueError:
        raise UserError(f"{where}: {text!r} is no time; delete the line, or the log") from None


def parse(text: str, where: str) -> dict:
    """A JSON object on a line."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON ({error}); delete the line, or run the stage anew") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}; delete the line")
    return value


def read_text(path: Path) -> str:
    """The text of a file in UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 ({error.reason}); it is damaged, delete it or run anew") from None
