"""Reads and writes images. No other module knows file formats: an image is RGB, float, in [−1, 1], (C, H, W)."""

import io
import math
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from utils.core.files import UserError, file_at, replace_file
from utils.core.size import Size
from utils.data.shards import HEIF_SUFFIXES, SUFFIXES, ShardEntry, read_file, shown

Colour = tuple[int, int, int]
CHECKER = "checker"  # a background that shows what is transparent
Background = Colour | str
Picture = str | os.PathLike | Image.Image | torch.Tensor  # an image for `to_tensor`

WALKED = 8  # pictures of a walk in a second
WHITE: Colour = (255, 255, 255)
HEAT: tuple[Colour, ...] = ((18, 16, 56), (38, 84, 124), (62, 152, 132), (160, 206, 110), (252, 240, 176))
# An explicit list: some of Pillow's other decoders start programs, and must not see untrusted files.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # in the first bytes of a file
TRANSPARENT = "transparent in part"  # key in the `info` of an image from `open_rgb`
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, struct.error, zlib.error)  # what Pillow raises
SQUARES = 8  # of the checker, along the shorter side of an image


def reads_heif() -> bool:
    return find_spec("pillow_heif") is not None


def image_files(folder: str | os.PathLike) -> tuple[list[Path], list[Path]]:
    """The images in `folder` and its sub-folders, by suffix, and all other files, sorted. Hidden ones are skipped.

    Links to folders are followed, and each real folder is entered once. Raises `OSError` if one cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    paths, entered = [], {os.path.realpath(folder)}
    suffixes = SUFFIXES if reads_heif() else tuple(suffix for suffix in SUFFIXES if suffix not in HEIF_SUFFIXES)
    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        paths += [Path(root, name) for name in files if not name.startswith(".")]
        subfolders, folders[:] = sorted(folders), []  # os.walk descends into what is in `folders` after this loop
        for name in subfolders:
            real = os.path.realpath(Path(root, name))
            if not name.startswith(".") and real not in entered:
                entered.add(real)
                folders.append(name)
    images = sorted(path for path in paths if path.name.lower().endswith(suffixes))
    return images, sorted({*paths}.difference(images))


def upright_size(path: Path) -> Size | None:
    """The size of an image file as it is shown, by its header alone; None if that cannot be read."""
    with (
        suppress(*DAMAGED, Image.DecompressionBombError),
        Image.open(file_at(path), formats=(*FORMATS, *_register_heif())) as image,
    ):
        is_turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) >= 5  # a PNG's own would decode it
        return Size(*(image.size[::-1] if is_turned else image.size))
    return None


def open_rgb(
    path: str | os.PathLike,
    background: Background = WHITE,
    entry: ShardEntry | None = None,
    *,
    most_pixels: float = math.inf,
) -> Image.Image:
    """Read an image file (AVIF, BMP, GIF's first frame, HEIC, JPEG, PNG, TIFF, WebP) as an upright 8-bit RGB image.

    It may be an `entry` of a shard. The EXIF orientation is applied, transparency is laid over `background` (and
    `info[TRANSPARENT]` says whether there is any), and 16-bit grey is scaled to 8 bits, as are floats that run from 0
    to 1, 255 or 65535. HEIC needs pillow-heif. Raises `UserError` naming the file and the reason, also if it has more
    than `most_pixels`, before they are decoded.
    """
    try:
        content = read_file(Path(path), entry)
        is_heif = content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS
        with Image.open(io.BytesIO(content), formats=(*FORMATS, *(_register_heif() if is_heif else ()))) as image:
            if (pixels := math.prod(image.size)) <= most_pixels:
                return _flatten(ImageOps.exif_transpose(image), background)
            reason = f"{pixels / 1e6:.1f} megapixels, at most {most_pixels / 1e6:g}: scale it down"
    except UserError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        reason = "no such image file; check the path"
    except PermissionError:
        reason = "cannot be read; check its permissions"
    except UnidentifiedImageError:
        known = ", ".join(sorted((*FORMATS, "HEIC")))
        reason = f"not an image in a known format ({known}), or damaged; convert or replace it"
        if is_heif and not reads_heif():
            reason = "an image in the format HEIC, which needs pillow-heif; run pip install -r requirements-extra.txt"
    except Image.DecompressionBombError as error:
        reason = f"too large to read safely ({error}); scale it down"
    except DAMAGED as error:
        reason = f"cannot be decoded ({' '.join(str(error).split())}); it may be damaged or cut short, replace it"
    raise UserError(f"{shown(Path(path), entry)}: {reason}")


def _register_heif() -> tuple[str, ...]:
    """The format of HEIC, known to Pillow in this process from now on; none without pillow-heif."""
    if not reads_heif():
        return ()
    from pillow_heif import register_heif_opener  # optional

    register_heif_opener()
    return ("HEIF",)


def _flatten(image: Image.Image, background: Background) -> Image.Image:
    is_transparent = False
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey_to_8_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        is_transparent = image.getchannel("A").getextrema()[0] < 255
        image = Image.alpha_composite(_plain(image.size, background).convert("RGBA"), image)
    image = image.convert("RGB")
    image.info[TRANSPARENT] = is_transparent
    return image


def _plain(size: tuple[int, int], background: Background) -> Image.Image:
    if background != CHECKER:
        return Image.new("RGB", size, background)
    columns, rows = (np.arange(length) * SQUARES // min(size) for length in size)
    is_dark = (rows[:, None] + columns) % 2 == 1
    return Image.fromarray(np.where(is_dark, 204, 255).astype(np.uint8)).convert("RGB")


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a grey image of 16 or 32 bits, since Pillow's own conversion clips whatever is above 255."""
    values = np.asarray(image, dtype=np.float64)  # (H, W)
    low, high = values.min(), values.max()
    # White is 65535, or for floats the smallest usual value that covers them.
    white = next((white for white in (1, 255) if image.mode == "F" and high <= white), 65535)
    if not (low >= 0 and high <= white):  # also when they are not numbers
        raise ValueError(f"grey values from {low:g} to {high:g}, expected within 0 to {white}")
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def fit_to(image: Image.Image, size: Size, fit: str = "crop", background: Background = WHITE) -> Image.Image:
    """Scale an RGB image to a size of another shape.

    `crop` takes the largest part in its centre that has that shape, `pad` all of it, over `background`, and `stretch`
    all of it, with width and height scaled by different factors. An image that has the size stays as it is.
    """
    (width, height), target = image.size, (size.width, size.height)
    if image.size == target:
        return image
    if fit == "stretch":
        return _resize(image, target, (0, 0, width, height))
    scales = size.width / width, size.height / height
    if fit == "crop":
        part = [max(1, round(side / max(scales))) for side in target]
        left, top = (width - part[0]) // 2, (height - part[1]) // 2
        return _resize(image, target, (left, top, left + part[0], top + part[1]))
    inner = max(1, round(width * min(scales))), max(1, round(height * min(scales)))
    canvas = _plain(target, background)
    corner = (size.width - inner[0]) // 2, (size.height - inner[1]) // 2
    canvas.paste(_resize(image, inner, (0, 0, width, height)), corner)
    return canvas


def _resize(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Scale a box of an image, by way of 3 times the size if it shrinks by more: that is faster."""
    return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def read_image(path: str | os.PathLike) -> torch.Tensor:
    """Read an image file as `open_rgb` does: (3, H, W) float32 in [−1, 1]."""
    return to_floats(np.asarray(open_rgb(path)))


def to_tensor(pictures: Picture | Sequence[Picture], size: tuple[int, int]) -> torch.Tensor:
    """One image or several, as files, PIL images of any mode, or tensors (3, H, W) or (M, 3, H, W) in [−1, 1].

    Returns (M, 3, H, W) float32; of files and PIL images the centre, scaled to `size` (H, W). Raises `UserError` naming
    a file that cannot be read, or the shape of a tensor of another size.
    """
    if isinstance(pictures, torch.Tensor):
        if not pictures.is_floating_point() or not (pictures.abs() <= 1).all():
            raise UserError("images: a tensor must hold floats from -1 to 1")
        if pictures.shape[-3:] != (3, *size) or pictures.dim() not in (3, 4) or len(pictures) == 0:
            expected = f"(M, 3, {size[0]}, {size[1]})"
            raise UserError(f"a tensor of shape {tuple(pictures.shape)} was given, expected {expected}")
        return pictures.view(-1, 3, *size).float()
    if isinstance(pictures, Image.Image | str | os.PathLike):
        is_file = not isinstance(pictures, Image.Image)
        image = open_rgb(pictures) if is_file else _flatten(ImageOps.exif_transpose(pictures), WHITE)
        return to_floats(np.asarray(fit_to(image, Size.of(size))))[None]
    if not isinstance(pictures, Sequence) or not pictures:
        given = "none" if isinstance(pictures, Sequence) else type(pictures).__name__
        raise UserError(f"images: {given}, expected one or more files, PIL images or tensors")
    return torch.cat([to_tensor(picture, size) for picture in pictures])


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Images (N, 3, H, W) in [−1, 1] as PIL images."""
    return [Image.fromarray(pixels) for pixels in to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()]


def to_floats(pixels: np.ndarray) -> torch.Tensor:
    """Images (…, H, W, 3) uint8 → (…, 3, H, W) float32 in [−1, 1]; a batch at once takes half of the time."""
    return torch.from_numpy(np.array(pixels)).movedim(-1, -3).contiguous().float().div_(127.5).sub_(1)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Floats in [−1, 1] of any shape to uint8: clamped, then rounded to the nearest of the 256 levels."""
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def save_image(
    image: torch.Tensor, path: str | os.PathLike, text: dict[str, str] | None = None, *, durable: bool = True
) -> None:
    """Write `image` (3, H, W) in [−1, 1] as a PNG, with `text` as its text chunks; see `replace_file`."""
    write_png(to_pil(image[None])[0], path, text, durable=durable)


def save_grid(
    images: torch.Tensor, path: str | os.PathLike, columns: int | None = None, text: dict[str, str] | None = None
) -> None:
    """Write `images` (N, 3, H, W) in [−1, 1] as one PNG, row by row, nearly square unless `columns` is given."""
    save_image(grid(images, columns), path, text)


def grid(images: torch.Tensor, columns: int | None = None, padding: int = 2) -> torch.Tensor:
    """Images (N, 3, H, W) in one (3, H', W'), row by row, nearly square unless `columns` is given, with white lines."""
    from torchvision.utils import make_grid  # doubles the start-up time, and half of the scripts draw no grid

    columns = columns or math.ceil(math.sqrt(len(images)))
    return make_grid(images.float(), nrow=columns, padding=padding, pad_value=1.0)


def save_animation(frames: Iterable[torch.Tensor], path: Path, seconds: float) -> None:
    """Write `frames`, each (3, H, W) in [−1, 1], as a looping GIF or WebP of `seconds` plus one for the last frame."""
    pictures = [to_pil(frame[None])[0] for frame in frames]
    durations = [round(1000 * seconds / len(pictures))] * (len(pictures) - 1) + [1000]
    with replace_file(path) as temporary:  # `quality` is WebP's; a GIF has none
        pictures[0].save(temporary, save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=90)


def save_walk(pictures: torch.Tensor, path: Path) -> None:
    """Write the pictures of a walk (N, 3, H, W) as an animation there and back; see `save_animation`."""
    frames = list(pictures)
    frames += frames[-2:0:-1]
    save_animation(frames, path, len(frames) / WALKED)


def heat_map(values: torch.Tensor, side: int = 768) -> torch.Tensor:
    """Non-negative numbers (H, W) as squares from dark blue to light yellow, NaN white: (3, h, w), at most `side`."""
    share = (values / values.nan_to_num(0).max().clamp(min=1e-12)).numpy()
    marks = np.linspace(0, 1, len(HEAT))
    levels = np.stack([np.interp(share, marks, channel) for channel in np.transpose(HEAT)])
    pixels = torch.from_numpy(np.nan_to_num(levels, nan=255.0)).float().div(127.5).sub(1)
    scale = max(1, side // max(values.shape))
    return pixels.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)


def write_png(image: Image.Image, path: Path, text: dict[str, str] | None = None, *, durable: bool = True) -> None:
    """Write a Pillow image as a PNG, completely or not at all, with `text` as its text chunks; see `replace_file`."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    with replace_file(path, durable=durable) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)
