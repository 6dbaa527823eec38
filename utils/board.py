"""TensorBoard: the numbers and the pictures of a training, for `--tensorboard`."""

from pathlib import Path

import numpy as np

from utils.files import UserError
from utils.images import open_rgb


class Board:
    """Event files in a folder; entries of an earlier run after step `start` are hidden."""

    def __init__(self, folder: Path, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs a package: pip install tensorboard, or leave it out") from None
        self.writer = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, row: dict[str, object]) -> None:
        """Write the numbers of a line of `metrics.jsonl`."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def show(self, folder: Path, step: int) -> None:
        """Write the pictures of a step, each `name_<step>.png` in `folder`."""
        for path in sorted(folder.glob(f"*_{step}.png")):
            picture = np.asarray(open_rgb(path))
            self.writer.add_image(path.stem.removesuffix(f"_{step}"), picture, step, dataformats="HWC")
        self.writer.flush()
