"""What to expect: what similar images have come to before a run, and after it what more hours or images would bring."""

import math
from pathlib import Path
from typing import NamedTuple

from reporting.verdicts import OVERFITTING
from scripts.auto.look import DRAWINGS, PHOTOGRAPHS, PIXEL_ART, Fingerprint
from utils.training.metrics import is_checkpoint, read_rows

TWICE = "15.2 minutes instead of 8.5 left 0.57 of the distance (docs/experiments.md#time-to-quality)"


class Row(NamedTuple):
    """A training that was measured on test images, by a recipe for 64×64 pixels."""

    name: str
    kind: str
    training: int  # images
    variety: float  # of its fingerprint
    minutes: float  # of all steps on two cores
    distance: float  # kernel distance of samples
    precision: float
    recall: float
    source: str
    picture: str = ""  # of its samples


TIMES, FEW = "docs/experiments.md#time-to-quality", "docs/experiments.md#few-images"
AUTO, HOUR = "docs/auto.md#measured", "docs/images/auto_hour.png"
FACES = "docs/images/avatars_2.png"
ROWS = (
    Row("cartoon faces", DRAWINGS, 8113, 0.66, 4, 0.428, 0.31, 0.45, TIMES),
    Row("cartoon faces", DRAWINGS, 8113, 0.66, 6, 0.368, 0.48, 0.69, AUTO),
    Row("cartoon faces", DRAWINGS, 8113, 0.66, 15, 0.081, 0.76, 0.82, AUTO),
    Row("cartoon faces", DRAWINGS, 8113, 0.66, 20, 0.043, 0.78, 0.82, "docs/evaluation.md#the-demos-numbers", FACES),
    Row("cartoon faces", DRAWINGS, 500, 0.67, 15, 0.249, 0.46, 0.63, FEW),
    Row("cartoon faces", DRAWINGS, 1500, 0.67, 20, 0.090, 0.67, 0.74, FEW),
    Row("faces of another cartoon style", DRAWINGS, 1785, 0.55, 6, 0.250, 0.38, 0.79, AUTO),
    Row("faces of another cartoon style", DRAWINGS, 1785, 0.55, 15, 0.080, 0.57, 0.88, AUTO),
    Row("faces of another cartoon style", DRAWINGS, 1785, 0.55, 20, 0.055, 0.75, 0.88, FEW),
    # An hour on one core, which is about half of an hour on two.
    Row("faces of another cartoon style", DRAWINGS, 1785, 0.55, 30, 0.032, 0.65, 0.88, AUTO, HOUR),
    Row("emoji", DRAWINGS, 1501, 0.71, 20, 0.228, 0.34, 0.38, FEW, "docs/images/openmoji_2.png"),
    Row("crops of photographs", PHOTOGRAPHS, 2036, 1.0, 25, 0.259, 0.31, 0.10, FEW, "docs/images/photos_samples.png"),
    Row("crops of photographs", PHOTOGRAPHS, 2036, 1.0, 30, 0.258, 0.23, 0.16, AUTO, HOUR),
    Row("pixel art", PIXEL_ART, 1097, 0.76, 25, 0.275, 0.20, 0.41, FEW, "docs/images/pixels_samples.png"),
)


def nearest(prints: Fingerprint, hours: float) -> Row:
    """The row of the same kind that is nearest in images, variety and time."""

    def apart(row: Row) -> float:
        ratios = prints.training / row.training, 60 * hours / row.minutes
        return sum(abs(math.log(ratio)) for ratio in ratios) + 10 * abs(prints.variety - row.variety)

    return min((row for row in ROWS if row.kind == prints.kind), key=apart)


def sentence(prints: Fingerprint, hours: float) -> str:
    """What the nearest row reached."""
    row = nearest(prints, hours)
    shown = f"; its samples: {row.picture}" if row.picture else ""
    few = f"; of only {prints.training:,} expect worse" if prints.training < row.training / 2 else ""
    trained = f"{row.name}, {row.training:,} training images, about {row.minutes:g} minutes on two cores"
    numbers = f"kernel distance {row.distance:.3f}, precision {row.precision:.2f}, recall {row.recall:.2f}"
    return f"most similar of what was measured: {trained}: {numbers} ({row.source}{shown}){few}"


def outlook(metrics: Path, all_passed: bool = False) -> list[str]:
    """What more hours or images would bring, as far as the metrics of the finest stage show it.

    More hours bring nothing where all passes over the images were planned.
    """
    losses = {row["step"]: row["val_loss"] for row in read_rows(metrics) if is_checkpoint(row) and "val_loss" in row}
    if len(losses) < 2:
        return []
    best, last = min(losses, key=losses.get), max(losses)
    if losses[last] > OVERFITTING * losses[best]:
        why = f"the finest stage was best after {best} of {last} training steps, then memorized images"
        return [f"more hours will not help: {why}; more images will"]
    if best < last:
        return [f"more hours will hardly help: the finest stage was as good after {best} of {last} training steps"]
    if all_passed:
        return ["more images will help, more hours will not"]
    why = f"the finest stage was best at its end, after {last} training steps"
    return [f"more hours may help: {why}; on the demo's faces {TWICE}"]
