"""What OUT/recipe keeps from one start of `auto` to the next: the plan, and the seconds that were used."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from utils.core.config import build_config, read_json
from utils.core.files import write_file
from utils.runs.folders import RunFolder

BEAT = 5.0  # seconds between notes of the time that was used


@dataclass
class Plan:
    """A recipe, its JSON files by their names without endings, and what auto.json keeps of it."""

    files: dict
    hours: float
    reasons: list = field(default_factory=list)  # rows: what was chosen, its value, why, and where that was measured
    costs: dict = field(default_factory=dict)  # of each step, as measured in the short pass
    slowness: float = 1.0  # seconds for one of the machine of docs/scaling.md#times, by the autoencoder
    seconds: dict = field(default_factory=dict)  # planned, of each step
    took: dict = field(default_factory=dict)  # true, of each step so far
    goes_on: bool = False  # whether the finest stage is to be trained further, for more hours
    notes: list = field(default_factory=list)  # what else was decided
    dataset: str = ""  # or folder of pictures, as it was given
    outlook: list = field(default_factory=list)  # what more hours or images would bring

    @classmethod
    def read(cls, run: RunFolder) -> "Plan":
        return build_config(cls, read_json(run.planned) | {"files": read_recipe(run.recipe)}, str(run.planned))

    @property
    def settings(self) -> dict:
        return self.files["recipe"]

    def change(self, numbers: dict[str, dict[str, int]]) -> None:
        for name, options in numbers.items():
            self.settings[name] |= options

    def write(self, folder: Path) -> None:
        """Write the recipe, recipe.json last: with it the folder is one."""
        for name, content in sorted(self.files.items(), key=lambda item: item[0] == "recipe"):
            write_file(folder / f"{name}.json", json.dumps(content, indent=4) + "\n")

    def save(self, run: RunFolder) -> None:
        kept = {name: value for name, value in vars(self).items() if name != "files"}
        write_file(run.planned, json.dumps(kept, indent=1) + "\n")


def read_recipe(folder: Path) -> dict[str, dict]:
    names = ("autoencoder", "codebook_*", "transformer_*", "generate", "recipe")
    return {path.stem: read_json(path) for name in names for path in folder.glob(f"{name}.json")}


class Clock:
    """The seconds that were used, also by earlier starts; a thread notes them, since a process may be killed."""

    def __init__(self, path: Path) -> None:
        self.path, self.since = path, time.monotonic()
        self.before = read_json(path)["seconds"] if path.is_file() else 0.0
        self.ended, self.thread = Event(), Thread(target=self.beat, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.note()

    @property
    def used(self) -> float:
        return self.before + time.monotonic() - self.since

    def beat(self) -> None:
        while not self.ended.wait(BEAT):
            with suppress(OSError):  # of a full disk, which may have room again
                self.note()

    def note(self) -> None:
        """Write the time that was used, once the images were looked at."""
        if self.path.with_name("fingerprint.json").is_file():
            write_file(self.path, json.dumps({"seconds": round(self.used, 1)}))
