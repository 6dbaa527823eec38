"""A request of a page, as a request of the cascade and as the command that generates the same pictures again."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models.cascade import Cascade
from models.codebook import Codebook
from models.labels import label_text
from models.requests import SAMPLING_KEYS, Request, change_sampling, sampling_of
from playground.uploads import Upload
from utils.core.files import UserError
from utils.core.options import words_of
from utils.runs.folders import OutputFolder
from utils.sampling import SamplingConfig

BATCH = 25  # that the cascade is made ready for, as generate_images.py is by default
ATLAS_BATCH = 64  # units of an atlas that are drawn at once
MAX_NUMBER = 36  # pictures of one request
MAX_BEAMS = 16  # of a stage, and extensions of each: each is a row of the batch
FIELDS = {  # of a stage's sampling on the page: keys, and their names there
    "temperature": "Variety (temperature)",
    "top_p": "Likely choices only (top-p)",
    "guidance_scale": "Guidance",
    "num_beam": "Beams",
    "beam_width": "Continuations of a beam",
    "keep_beam": "Beams kept",
}
FROM_PICTURE = ("like", "detail", "complete")  # kinds that need a picture
AGAIN = OutputFolder(Path("out/again"))  # what a command writes to


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """One request of a page; `kind` says which of the fields count."""

    kind: str  # sample, like, detail, complete, atlas or walk
    seed: int
    sampling: tuple[SamplingConfig, ...]  # of each stage
    number: int = 1
    unit: int | None = None  # of the condition codebook; None: drawn by its use
    label: str | None = None  # of all pictures, as `parse_labels` takes it; None: those of training images, drawn
    upload: Upload | None = field(default=None, repr=False)
    from_stage: int = 1
    keep_rows: int = 1
    ends: tuple[int, int] = (0, 0)
    steps: int = 24

    def __post_init__(self) -> None:
        if self.kind in FROM_PICTURE and self.upload is None:
            raise UserError("there is no picture yet: drop one in first")
        if not 1 <= self.number <= MAX_NUMBER and self.kind != "atlas":
            raise UserError(f"{self.number} pictures: expected 1 to {MAX_NUMBER}")

    @property
    def batch_size(self) -> int:
        """Pictures made at once. One row in float32 would use another kernel, and so make other pictures."""
        return {"atlas": ATLAS_BATCH, "walk": self.steps}.get(self.kind, max(self.number, 2))

    def cascade_request(self, cascade: Cascade) -> Request:
        tokens = self.upload.tokens if self.upload else ()
        own = {
            "sample": {} if self.unit is None else {"conditions": (self.unit,)},
            "like": {"conditions": tuple(map(int, tokens[:1]))},
            "detail": {"init_tokens": tokens, "from_stage": self.from_stage},
            "complete": {"init_tokens": tokens, "keep_rows": self.keep_rows},
            "atlas": {"conditions": tuple(range(len(cascade.codebooks[0]))), "same_draws": True},
            "walk": {"places": cascade.way(*self.ends, self.steps), "same_draws": True},
        }[self.kind]
        labels = () if self.label is None else (self.label,)
        request = Request(seed=self.seed, labels=labels, sampling=self.sampling, **own)
        cascade.check(request)
        return request

    def sentence(self) -> str:
        name = self.upload.name if self.upload else ""
        return {
            "sample": "any tile" if self.unit is None else f"tile {self.unit}",
            "like": f"more like {name}",
            "detail": f"{name}, new detail from stage {self.from_stage}",
            "complete": f"{name}, completed below row {self.keep_rows}",
            "atlas": "a sample of each tile",
            "walk": f"a walk from tile {self.ends[0]} to {self.ends[1]} in {self.steps} steps",
        }[self.kind]

    def result(self, index: int = 0) -> Path:
        special = {"atlas": AGAIN.condition_atlas, "walk": AGAIN.animation("webp", "walk")}
        return special.get(self.kind) or AGAIN.final_image(index)


@dataclass(frozen=True, kw_only=True)
class Model:
    cascade: Cascade
    path: Path
    device: str = "auto"
    precision: str = "auto"

    def command(self, request: PageRequest) -> str:
        name, batch = request.upload.name if request.upload else "", {"batch_size": request.batch_size}
        name = f"./{name}" if name.startswith("-") else name  # which would be a flag
        pictures = {"num_images": request.number, **batch}
        options = {
            "sample": {**pictures, "condition_index": request.unit},
            "like": {**pictures, "condition_image": name},
            "detail": {**pictures, "init_image": name, "from_stage": request.from_stage},
            "complete": {**pictures, "init_image": name, "keep_rows": request.keep_rows},
            "atlas": {"condition_atlas": True, **batch},
            "walk": {"condition_walk": request.ends, "steps": request.steps, "animate": True, **batch},
        }[request.kind]
        options |= {"seed": request.seed, "label": request.label, **self._changed_sampling(request)}
        machine = {"device": self.device, "precision": self.precision}
        options |= {key: value for key, value in machine.items() if value != "auto"}
        words = words_of({"model": self.path, **options, "out_dir": AGAIN.path})
        return shlex.join(["python", "generate_images.py", *words])

    def _changed_sampling(self, request: PageRequest) -> dict[str, list]:
        """The keys of the sampling that differ from the recipe's, each with a value for every stage, or for all."""
        # A flag cannot say "all": 1 is all of the probability, and no codebook has so many units.
        every, changed = {"top_p": 1.0, "top_k": 2**31 - 1}, {}
        for key in SAMPLING_KEYS:
            values = [getattr(config, key) for config in request.sampling]
            if values != [getattr(config, key) for config in self.cascade.configs]:
                values = [every[key] if value is None else value for value in values]
                changed[key] = values[:1] if len(set(values)) == 1 else values
        return changed


def neighbour(codebook: Codebook, unit: int) -> int:
    """The adjacent unit on the map with the nearest vector; if none is adjacent, of the units that are least far."""
    places, vectors = codebook.coordinates.double(), codebook.units
    away = (places - places[unit]).norm(dim=1)
    away[unit] = torch.inf
    apart = (vectors - vectors[unit]).norm(dim=1)
    return int(apart.where(away <= max(float(away.min()), 2**0.5), torch.inf).argmin())


def label_choices(names: Sequence[str]) -> list[tuple[str, str]]:
    return [("without labels", ""), *((name, str(number)) for number, name in enumerate(names))]


def label_from(chosen: list[str], names: Sequence[str]) -> str | None:
    """The text that asks for the chosen labels together; None if nothing is chosen, so that they are drawn."""
    numbers = tuple(sorted(int(value) for value in chosen if value))
    return label_text(numbers, names) if chosen else None


def recipe_values(configs: list[SamplingConfig]) -> list[float]:
    """What the fields show of the recipe: each of `FIELDS` for all stages, then the next."""
    stages = [sampling_of(config) for config in configs]
    return [1.0 if key == "top_p" and values[key] is None else values[key] for key in FIELDS for values in stages]


def sampling_from(values: list, configs: list[SamplingConfig]) -> tuple[SamplingConfig, ...]:
    """The sampling of each stage, from the fields of the page; raises `UserError` naming the one that is wrong."""
    starts = range(0, len(values), len(configs))
    stages = dict(zip(FIELDS, (values[start : start + len(configs)] for start in starts), strict=True))
    for key, each in stages.items():
        for number, (value, config) in enumerate(zip(each, configs, strict=True)):
            if value is None:
                raise UserError(f"stage {number}: {FIELDS[key]} is empty, expected a number")
            if key in ("num_beam", "beam_width") and value > MAX_BEAMS:
                raise UserError(f"stage {number}: {FIELDS[key]} is {value}, at most {MAX_BEAMS} on this page")
            is_all = key == "top_p" and value == 1 and config.top_p is None  # as the recipe says it
            each[number] = value if "beam" in key else None if is_all else float(value)
    try:
        return change_sampling(configs, **stages)
    except UserError as error:  # by the names on the page
        raise UserError(re.sub(r"'(\w+)'", lambda key: FIELDS.get(key[1], key[0]), str(error))) from None
