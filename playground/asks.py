"""What a page asks of a model, as a request of the cascade and as the command that makes the same pictures again."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from models.cascade import Cascade
from models.requests import SAMPLING_KEYS, Request, change_sampling, sampling_of
from playground.uploads import Upload
from utils.core.files import UserError
from utils.core.options import words_of
from utils.runs.folders import OutputFolder
from utils.sampling import SamplingConfig

BATCH = 25  # that the cascade is made ready for, as generate_images.py is by default
ATLAS_BATCH = 64  # units of an atlas that are drawn at once
MOST = 36  # pictures of one request
BEAMS = 16  # of a stage, and extensions of each, at most: each is a row of the batch
KEYS = ("temperature", "top_p", "num_beam", "beam_width", "keep_beam", "guidance_scale")  # that have a field
NAMES = ("temperature", "top-p", "beams", "beam width", "beams kept", "guidance")
FROM_PICTURE = ("like", "detail", "complete")  # kinds that need a picture
AGAIN = OutputFolder(Path("out/again"))  # what a command writes to


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request of a page; `kind` says which of the fields count."""

    kind: str  # sample, like, detail, complete, atlas or walk
    seed: int
    sampling: tuple[SamplingConfig, ...]  # of each stage
    number: int = 1
    unit: int | None = None  # of the condition codebook; None: drawn by its use
    label: str | None = None
    upload: Upload | None = field(default=None, repr=False)
    from_stage: int = 1
    keep_rows: int = 1
    ends: tuple[int, int] = (0, 0)
    steps: int = 24

    def __post_init__(self) -> None:
        if self.kind in FROM_PICTURE and self.upload is None:
            raise UserError("there is no picture yet: drop one in first")
        if not 1 <= self.number <= MOST and self.kind != "atlas":
            raise UserError(f"{self.number} pictures: expected 1 to {MOST}")

    @property
    def batch_size(self) -> int:
        """Pictures made at once. One row in float32 would use another kernel, and so make other pictures."""
        return {"atlas": ATLAS_BATCH, "walk": self.steps}.get(self.kind, max(self.number, 2))

    def request(self, cascade: Cascade) -> Request:
        """What is asked of the cascade; raises `UserError` if it cannot do it."""
        conditions: tuple[int, ...] = {
            "sample": () if self.unit is None else (self.unit,),
            "like": (int(self.upload.tokens[0]),) if self.upload else (),
            "atlas": tuple(range(len(cascade.codebooks[0]))),
        }.get(self.kind, ())
        is_kept = self.kind in ("detail", "complete")
        request = Request(
            seed=self.seed,
            conditions=conditions,
            places=cascade.way(*self.ends, self.steps) if self.kind == "walk" else (),
            labels=(self.label,) if self.label else (),
            init_tokens=self.upload.tokens if is_kept else (),
            from_stage=self.from_stage if self.kind == "detail" else 0,
            keep_rows=self.keep_rows if self.kind == "complete" else 0,
            sampling=self.sampling,
            same_draws=self.kind in ("atlas", "walk"),
        )
        cascade.check(request)
        return request

    def sentence(self) -> str:
        """What was asked for, in words."""
        name = self.upload.name if self.upload else ""
        return {
            "sample": "any unit" if self.unit is None else f"unit {self.unit}",
            "like": f"more like {name}",
            "detail": f"{name}, new detail from stage {self.from_stage}",
            "complete": f"{name}, completed below row {self.keep_rows}",
            "atlas": "one sample for each unit",
            "walk": f"a walk from unit {self.ends[0]} to {self.ends[1]} in {self.steps} steps",
        }[self.kind]

    def result(self, index: int) -> Path:
        """Where the command writes picture number `index`, the atlas or the walk."""
        special = {"atlas": AGAIN.condition_atlas, "walk": AGAIN.animation("webp", "walk")}
        return special.get(self.kind) or AGAIN.final_image(index)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded model, and the flags that name it."""

    cascade: Cascade
    path: Path
    device: str = "auto"
    precision: str = "auto"

    @property
    def name(self) -> str:
        """What the model is called: its folder."""
        return self.path.resolve().name

    def command(self, ask: Ask) -> str:
        """The command that makes the pictures of `ask` again, for a shell."""
        name, batch = ask.upload.as_argument if ask.upload else "", {"batch_size": ask.batch_size}
        pictures = {"num_images": ask.number, **batch}
        asked = {
            "sample": {**pictures, "condition_index": ask.unit},
            "like": {**pictures, "condition_image": name},
            "detail": {**pictures, "init_image": name, "from_stage": ask.from_stage},
            "complete": {**pictures, "init_image": name, "keep_rows": ask.keep_rows},
            "atlas": {"condition_atlas": True, **batch},
            "walk": {"condition_walk": ask.ends, "steps": ask.steps, "animate": True, **batch},
        }[ask.kind]
        asked |= {"seed": ask.seed, "label": ask.label or None, **self._sampling(ask)}
        machine = {"device": self.device, "precision": self.precision}
        asked |= {key: value for key, value in machine.items() if value != "auto"}
        words = words_of({"model": self.path, **asked, "out_dir": AGAIN.path})
        return shlex.join(["python", "generate_images.py", *words])

    def _sampling(self, ask: Ask) -> dict[str, list]:
        """The keys of the sampling that differ from the recipe's, each with a value for every stage, or for all."""
        # A flag cannot say "all": 1 is all of the probability, and no codebook has so many units.
        every, changed = {"top_p": 1.0, "top_k": 2**31 - 1}, {}
        for key in SAMPLING_KEYS:
            values = [getattr(config, key) for config in ask.sampling]
            if values != [getattr(config, key) for config in self.cascade.configs]:
                values = [every[key] if value is None else value for value in values]
                changed[key] = values[:1] if len(set(values)) == 1 else values
        return changed


def recipe_values(config: SamplingConfig) -> list[float]:
    """What the fields of a stage show of a config."""
    values = sampling_of(config)
    return [1.0 if key == "top_p" and values[key] is None else values[key] for key in KEYS]


def sampling_from(fields: list, configs: list[SamplingConfig]) -> tuple[SamplingConfig, ...]:
    """The sampling of each stage, from the fields of the page; raises `UserError` naming what is wrong."""
    stages = [fields[start : start + len(KEYS)] for start in range(0, len(fields), len(KEYS))]
    changes = {}
    for index, key in enumerate(KEYS):
        values = [stage[index] for stage in stages]
        for number, value in enumerate(values):
            if value is None:
                raise UserError(f"stage {number}: {NAMES[index]} is empty, expected a number")
            if key in ("num_beam", "beam_width") and value > BEAMS:
                raise UserError(f"stage {number}: {NAMES[index]} is {value}, at most {BEAMS} on this page")
        if key == "top_p":  # all, unless the recipe says so in other words
            pairs = zip(values, configs, strict=True)
            values = [None if value == 1 and config.top_p is None else value for value, config in pairs]
        changes[key] = [value if value is None or "beam" in key else float(value) for value in values]
    return change_sampling(configs, **changes)
