"""The requests to a cascade, and the config of its stages."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.core.config import build_config, check, check_fields, read_json
from utils.core.files import UserError
from utils.core.options import option
from utils.sampling import SamplingConfig

Values = float | Sequence[float | None] | None  # of a key of the sampling: one for all stages, or one for each
SAMPLING_KEYS = tuple(field.name for field in dataclasses.fields(SamplingConfig))


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(SamplingConfig):
    model_path: str = option("checkpoint of the stage, relative to the JSON file")
    lr_codebook_path: str = option("codebook of the grid that it reads")
    hr_codebook_path: str = option("codebook of the grid that it writes")


def config_of(configs: Sequence[GenerationConfig]) -> dict[str, object]:
    """The values of all stages, each by the number of its stage and its key."""
    pairs = ((number, dataclasses.asdict(config)) for number, config in enumerate(configs))
    return {f"stage {number}: {key!r}": value for number, values in pairs for key, value in values.items()}


def load_generation_config(path: Path) -> list[GenerationConfig]:
    """The stages of a generation config, whose keys are "0", "1", … in the order of the cascade."""
    content = read_json(path)
    if not content:
        raise UserError(f'{path}: holds no stage; expected keys "0", "1", …')
    keys = [str(number) for number in range(len(content))]
    if unknown := [key for key in content if key not in keys]:
        raise UserError(f'{path}: unknown key {unknown[0]!r}; expected stages "0" to "{keys[-1]}"')
    return [build_config(GenerationConfig, content[key], f"{path}: stage {key}") for key in keys]


def sampling_of(config: SamplingConfig) -> dict[str, float | None]:
    """How a stage samples, without the paths of a `GenerationConfig`."""
    return {key: getattr(config, key) for key in SAMPLING_KEYS}


def change_sampling(configs: Sequence[SamplingConfig], **changes: Values) -> tuple[SamplingConfig, ...]:
    """The sampling of each stage with other values of some keys, one for all stages or one for each, or `UserError`."""
    stages = [sampling_of(config) for config in configs]
    for key, value in changes.items():
        value = check(value, float | tuple[float | None, ...] | None, key)
        values = list(value) if isinstance(value, tuple) else [value]
        values *= len(configs) if len(values) == 1 else 1
        if len(values) != len(configs):
            expected = f"one for all stages, or one for each of the {len(configs)}"
            raise UserError(f"{key!r} has {len(values)} values; give {expected}")
        for stage, one in zip(stages, values, strict=True):
            stage[key] = one
    return tuple(build_config(SamplingConfig, values, f"stage {number}") for number, values in enumerate(stages))


@dataclass(frozen=True)
class Place:
    """A place on a walk over the condition map: at a unit, or a share (below 1) of the way from it to the next one."""

    unit: int
    following: int
    share: float = 0.0

    __post_init__ = check_fields

    @property
    def nearest(self) -> int:
        return self.unit if self.share < 0.5 else self.following


def way(coordinates: torch.Tensor, start: int, end: int, steps: int) -> tuple[Place, ...]:
    """`steps` places at equal distances from one unit to another, in a line over the map of these coordinates (K, 2).

    Where a unit of the line was pruned, the nearest one takes its place. `Request(places=way(…), same_draws=True)` asks
    for the pictures of a walk: the base stage starts from a vector between those of two units, and the same draws give
    the same tokens wherever the model's probabilities hardly change.
    """
    coordinates = coordinates.cpu().double()
    first, last = coordinates[start], coordinates[end]
    number = int((last - first).abs().max()) + 1  # as many units as the line has rows or columns
    line = torch.lerp(first, last, torch.linspace(0, 1, number, dtype=torch.float64)[:, None])
    units = torch.cdist(line, coordinates).argmin(1).unique_consecutive().tolist()
    places = []
    for step in range(steps):
        done = step * (len(units) - 1) / max(1, steps - 1)
        index = min(math.floor(done), len(units) - 1)
        places.append(Place(units[index], units[min(index + 1, len(units) - 1)], done - index))
    return tuple(places)


@dataclass(frozen=True)
class Request:
    """The images to generate. Image i takes entry i of each list, modulo its length."""

    seed: int = 0
    conditions: tuple[int, ...] = ()  # units of the condition codebook; if empty, drawn in proportion to their use
    places: tuple[Place, ...] = ()  # or places between those units
    labels: tuple[str, ...] = ()  # texts as `parse_labels` takes them; if empty, those of training images are drawn
    init_tokens: tuple[torch.Tensor, ...] = ()  # tokens of M images, of the condition and of each stage, each (M, T)
    from_stage: int = 0  # the first stage that writes; the tokens before it are those of `init_tokens`
    keep_rows: int = 0  # rows of the base stage's grid, and in finer grids those that they cover, kept of `init_tokens`
    sampling: tuple[SamplingConfig, ...] = ()  # of each stage; if empty, that of the cascade's config
    same_draws: bool = False  # whether all images take the draws of image 0, so that only their conditions differ

    __post_init__ = check_fields


def settings_text(request: Request, index: int, label: str | None, scores: Sequence[float]) -> dict[str, str]:
    """The settings of image number `index` of a request and the scores of its stages, as JSON by the keys of a PNG.

    `label` are its labels, given or drawn; see `Cascade.labels_of`.
    """
    settings = {
        "seed": request.seed,
        "image": index,
        "stages": [sampling_of(config) for config in request.sampling],
        "condition": pick(request.conditions, index),
        "place": dataclasses.asdict(pick(request.places, index)) if request.places else None,
        "same_draws": request.same_draws,
        "label": label,
        "from_stage": request.from_stage,
        "keep_rows": request.keep_rows,
        "scores": [None if math.isnan(score) else round(score, 3) for score in scores],
    }
    return {key: json.dumps(value) for key, value in settings.items()}


def pick(entries: tuple, image: int) -> object | None:
    return entries[image % len(entries)] if entries else None
