"""What to expect: what similar images have come to before a run, and after it what more hours or images would bring."""

import math
from pathlib import Path
from typing import NamedTuple

from reporting.verdicts import OVERFITTING
from scripts.auto.look import Fingerprint
from utils.core.config import read_json
from utils.training.metrics import is_checkpoint, read_rows


class Row(NamedTuple):
    """A training that was measured on test images, by a recipe for 64×64 pixels."""

    name: str
    kind: str
    training: int  # images
    variety: float  # of its fingerprint
    minutes: float  # of all steps on two cores; half of those on one
    distance: float  # kernel distance of samples
    precision: float
    recall: float
    source: str
    picture: str = ""  # of its samples


def rows() -> list[Row]:
    """The trainings of expect.json, a file of its own since new measurements change it and nothing else of the code."""
    return [Row(**row) for row in read_json(Path(__file__).with_suffix(".json"))["rows"]]


def nearest(prints: Fingerprint, hours: float) -> Row:

    def apart(row: Row) -> float:
        ratios = prints.training / row.training, 60 * hours / row.minutes
        return sum(abs(math.log(ratio)) for ratio in ratios) + 10 * abs(prints.variety - row.variety)

    return min((row for row in rows() if row.kind == prints.kind), key=apart)


def sentence(prints: Fingerprint, hours: float) -> str:
    row = nearest(prints, hours)
    shown = f"; its samples: {row.picture}" if row.picture else ""
    few = f"; with only {prints.training:,} training images expect worse" if prints.training < row.training / 2 else ""
    trained = f"{row.name}, {row.training:,} training images, about {row.minutes:g} minutes on two cores"
    numbers = f"kernel distance {row.distance:.3f}, precision {row.precision:.2f}, recall {row.recall:.2f}"
    return f"most similar of what was measured: {trained}: {numbers} ({row.source}{shown}){few}"


def memorized(metrics: Path) -> str | None:
    """That a stage was best before its end, as far as its metrics show it, and learned images by heart afterwards."""
    losses = losses_of(metrics)
    best, last = (min(losses, key=losses.get), max(losses)) if losses else (0, 0)
    if losses and losses[last] > OVERFITTING * losses[best]:
        return f"the finest stage was best after {best} of {last} training steps, then memorized images"
    return None


def losses_of(metrics: Path) -> dict[int, float]:
    return {row["step"]: row["val_loss"] for row in read_rows(metrics) if is_checkpoint(row) and "val_loss" in row}


def outlook(metrics: Path, all_passed: bool = False) -> list[str]:
    """What more hours or images would bring, as far as the metrics of the finest stage show it.

    More hours bring nothing where all passes over the images were planned.
    """
    losses = losses_of(metrics)
    if len(losses) < 2:
        return []
    best, last = min(losses, key=losses.get), max(losses)
    if (why := memorized(metrics)) is not None:
        return [f"more hours will not help: {why}; more images will"]
    if best < last:
        why = f"the validation loss of the finest stage was lowest after {best} of {last} training steps"
        return [f"more hours will hardly help: {why}"]
    if all_passed:
        return ["more images will help, more hours will not"]
    why = f"the finest stage was best at its end, after {last} training steps"
    return [f"more hours may help: {why}; the same command with more --hours goes on with it"]
