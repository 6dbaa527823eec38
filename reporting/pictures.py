"""Pictures as data URIs, small enough for one page to hold all of them."""

import base64
import io
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageSequence

from utils.core.files import UserError
from utils.data.images import open_rgb

CRISP = 640  # pixels on a side: smaller pictures are enlarged to it by repeating pixels, which a browser would blur


@dataclass(frozen=True)
class Picture:
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Quality:
    side: int  # pixels on the longest side
    quality: int  # of WebP
    small: int  # bytes up to which it is stored losslessly

    def picture(self, image: Path | Image.Image, *, crisp: bool = True) -> Picture:
        """A file or an image as WebP; `crisp` keeps the pixels of a small one sharp."""
        image = image if isinstance(image, Image.Image) else open_rgb(image)
        longest = max(image.size)
        if longest > self.side:
            image.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        elif crisp and longest < min(CRISP, self.side):
            factor = -(-min(CRISP, self.side) // longest)
            image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        content = webp(image, lossless=True, quality=20, method=1) if self.small else b""  # quick
        if not 0 < len(content) <= self.small:
            content = webp(image, quality=self.quality)
        return Picture(data_uri(content, "webp"), *image.size)

    def animation(self, path: Path) -> tuple[Picture, Picture]:
        """An animated WebP or GIF, made smaller if necessary, and its last frame, which is shown while it is paused."""
        try:
            with Image.open(path, formats=["GIF", "WEBP"]) as image:
                frames, durations = [], []  # milliseconds that each is shown for
                for frame in ImageSequence.Iterator(image):
                    frames.append(frame.convert("RGB"))
                    durations.append(frame.info.get("duration") or 100)
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise UserError(f"{path}: not a readable animation ({error}); generate with --animate again") from None
        still = self.picture(frames[-1].copy(), crisp=False)
        if self == QUALITIES[0]:
            return Picture(data_uri(path.read_bytes(), path.suffix[1:]), *frames[0].size), still
        for frame in frames:
            frame.thumbnail((self.side // 2, self.side // 2), Image.Resampling.LANCZOS)
        options = {"append_images": frames[1:], "duration": durations, "loop": 0, "quality": self.quality}
        return Picture(data_uri(webp(frames[0], save_all=True, **options), "webp"), *frames[0].size), still


def label_in(path: Path) -> str:
    """The labels in the settings that a generated picture holds; empty if it holds none."""
    label = None
    with suppress(OSError, ValueError), Image.open(path, formats=["PNG"]) as image:
        label = json.loads(image.text.get("label", "null"))
    return label if isinstance(label, str) else ""


LEVELS = (1400, 90, 64 * 1024), (1000, 80, 32 * 1024), (700, 65, 0), (480, 45, 0), (320, 25, 0)
QUALITIES = tuple(Quality(*level) for level in LEVELS)  # from the best to the smallest


def webp(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format="WEBP", **options)
    return file.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
