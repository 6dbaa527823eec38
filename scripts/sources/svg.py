"""Drawings in SVG, as pictures."""

import io

from PIL import Image

from utils.core.size import Size
from utils.data.images import fit_to


def rasterise(svg: str, size: Size, background: str) -> Image.Image:
    import resvg_py

    sizes = {"width": size.width, "height": size.height}
    # Without the fonts of the machine, a picture is the same everywhere, and drawn sooner.
    png = resvg_py.svg_to_bytes(svg, **sizes, background=background, skip_system_fonts=True)
    return fit_to(Image.open(io.BytesIO(png)).convert("RGB"), size)  # it may have rounded a side up
