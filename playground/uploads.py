"""Pictures that a person gives to a page: what is refused, and what the model sees of the others."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from utils.core.files import UserError
from utils.core.size import Size
from utils.data.images import fit_to, open_rgb

MOST_BYTES = 20 * 10**6
MOST_PIXELS = 32 * 10**6


@dataclass(frozen=True)
class Upload:
    name: str  # of the file that was given
    tokens: tuple[torch.Tensor, ...] = field(repr=False)  # of the condition and of each stage, each (1, T)


def check_size(name: str, num_bytes: int) -> None:
    if num_bytes > MOST_BYTES:
        raise UserError(f"{name}: {min(num_bytes, 10**15) / 1e6:.1f} MB, at most {MOST_BYTES // 10**6}: scale it down")


def read_upload(path: Path, name: str, size: tuple[int, int]) -> tuple[Image.Image, str]:
    """Read a file of this name → it as the model gets it, of `size` (H, W), and what was done to fit it.

    Raises `UserError` naming the file if it has too many bytes or pixels, or is not an image.
    """
    check_size(name, path.stat().st_size)
    try:
        image = open_rgb(path, most_pixels=MOST_PIXELS)
    except UserError as error:
        raise UserError(f"{name}: {str(error).removeprefix(f'{path}: ')}") from None
    given, target = Size(*image.size), Size.of(size)
    if given == target:
        return image, ""
    has_shape = given.width * target.height == given.height * target.width
    part = "it" if has_shape else "its central square" if target.width == target.height else "its centre"
    return fit_to(image, target), f"{name} is {given.shown}; {part} was scaled to {target.shown}"


def inside(path: str, folder: Path) -> Path:
    """A path that a page has named, if it is a file in `folder`; raises `UserError` otherwise."""
    file = Path(path).resolve()
    if not (file.is_relative_to(folder.resolve()) and file.is_file()):
        raise UserError("this picture was not uploaded here: drop it in again")
    return file
