"""An exported model: weights as safetensors, and config.json with the rest of their checkpoints; neither runs code.

`utils.runs.checkpoint` reads both together as one checkpoint.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from utils.core.config import build_config, read_json
from utils.core.files import UserError, write_file
from utils.runs.folders import CONFIG

FORMAT, FORMAT_VERSION = "quantized-cascade", 1
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Part:
    kind: str
    parameters: int  # numbers that were learned
    config: dict
    fingerprint: str  # of its checkpoint, which the other parts name in `trained_from`
    weights: str  # fingerprint of the weights as they are in the file
    trained_from: dict
    bounds: tuple[float, ...]  # of the images that it has learned from
    data: dict | None = None  # fingerprint of their data set
    encoder_fingerprint: str | None = None  # of an autoencoder: that of the original weights of its encoder
    flip: bool = False  # of an autoencoder: whether it has learned from mirror images too

    def __post_init__(self) -> None:
        if len(self.bounds) != 2:
            raise ValueError(f"'bounds' has {len(self.bounds)} numbers, expected 2")


@dataclass(frozen=True)
class ModelConfig:
    format: str
    format_version: int
    dtype: str  # of the weights of autoencoder and stages; codebooks are float32
    image_size: tuple[int, ...]  # height and width
    versions: dict  # of the packages that wrote it
    parts: dict = field(default_factory=dict)  # by the names of their files

    @classmethod
    def load(cls, path: Path) -> "ModelConfig":
        """Read a config.json; raises `UserError` if it is of something else, or of another version."""
        content = read_json(path)
        if content.get("format") != FORMAT:
            raise UserError(f"{path}: is not of a model that scripts.export wrote; give the folder of one, or of a run")
        if (version := content.get("format_version")) != FORMAT_VERSION:
            known = f"this code reads {FORMAT_VERSION}"
            raise UserError(f"{path}: format version {version}, {known}; export the run again with it")
        return build_config(cls, content, str(path))


def write_weights(path: Path, state: State) -> None:
    write_file(path, save({name: value.contiguous() for name, value in state.items()}))


def read_exported(path: Path) -> dict:
    """A file of weights → the exported content of its checkpoint; `UserError` names a file and what is wrong."""
    where = path.parent / CONFIG
    parts = ModelConfig.load(where).parts
    if path.name not in parts:
        raise UserError(f"{where}: has no part {path.name!r}; export the run again")
    part = build_config(Part, parts[path.name], f"{where}: {path.name}")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        reason = f"not readable ({error}); it may be damaged or cut short"
        raise UserError(f"{path}: {reason}, export the run again") from None
    for name, value in state.items():
        if value.dtype not in (*DTYPES.values(), torch.int64):
            raise UserError(f"{path}: {name} is of {value.dtype}, expected one of {', '.join(DTYPES)} or int64")
        if not value.isfinite().all():
            raise UserError(f"{path}: holds NaN or infinity in {name}; export another checkpoint")
    return dataclasses.asdict(part) | {"model": state}
