"""The results of `scripts.evaluate`, read and checked."""

from dataclasses import dataclass
from pathlib import Path

from utils.config import read_json
from utils.files import UserError

NUMBER = (int, float)
TABLES = {
    "reconstruction": {"name": str, "psnr": NUMBER, "ssim": NUMBER},
    "bits": {"name": str, "tokens": NUMBER, "bits": NUMBER},
    "distances": {"name": str}
    | dict.fromkeys(
        [f"{kind}{end}" for kind in ("kernel", "frechet") for end in ("", "_low", "_high")] + ["precision", "recall"],
        NUMBER,
    ),
}
NOVELTY = dict.fromkeys(
    ("share_of_samples", "share_of_held_out", "median_distance_of_samples", "median_distance_of_held_out"), NUMBER
)
NEAREST = {"sample": int, "image_path": str, "distance": NUMBER}
FLOOR, RECONSTRUCTIONS, QUANTIZED, SAMPLES = (
    "training images",
    "reconstructions",
    "quantized reconstructions",
    "samples",
)


@dataclass(frozen=True)
class Evaluation:
    """What `scripts.evaluate` has measured; a table that it could not measure is empty."""

    extractor: str
    num_images: int
    reconstruction: list[dict]
    bits: list[dict]
    distances: list[dict]
    novelty: dict | None
    pairs: Path | None  # the picture of the samples nearest to a training image
    missing: list[str]
    seconds: float

    def distance(self, name: str) -> dict | None:
        """A row of the distances."""
        return next((row for row in self.distances if row["name"] == name), None)


def read_evaluation(folder: Path) -> Evaluation | None:
    """The evaluation in a folder, None if there is none. Raises `UserError` naming the file and the key."""
    path = folder / "evaluation.json"
    if not path.exists():
        return None
    content = read_json(path)
    tables = {name: rows_of(content, name, keys, path) for name, keys in TABLES.items()}
    novelty = content.get("novelty") or None
    pairs = None
    if novelty is not None:
        check(novelty, NOVELTY, path, "'novelty'")
        novelty = novelty | {"nearest": rows_of(novelty, "nearest", NEAREST, path)}
        pairs = folder / Path(str(novelty.get("pairs") or "pairs.png")).name
    check(content, {"extractor": str, "num_images": int, "seconds": NUMBER}, path, "the evaluation")
    missing = content.get("missing") or []
    if not isinstance(missing, list):
        raise UserError(f"{path}: 'missing' is {missing!r}, expected a list; run scripts.evaluate again")
    return Evaluation(
        content["extractor"],
        content["num_images"],
        **tables,
        novelty=novelty,
        pairs=pairs if pairs is not None and pairs.exists() else None,
        missing=[str(line) for line in missing],
        seconds=content["seconds"],
    )


def rows_of(content: dict, name: str, keys: dict[str, type], path: Path) -> list[dict]:
    """The rows of a table, each checked; none where the table is left out."""
    rows = content.get(name) or []
    if not isinstance(rows, list):
        raise UserError(f"{path}: {name!r} is {type(rows).__name__}, expected a list; run scripts.evaluate again")
    for number, row in enumerate(rows):
        check(row, keys, path, f"{name!r}, entry {number}")
    return rows


def check(value: object, keys: dict[str, type], path: Path, where: str) -> None:
    """Refuse a value that is no object with these keys, each of its type."""
    for key, expected in keys.items():
        found = value.get(key) if isinstance(value, dict) else None
        if isinstance(found, bool) or not isinstance(found, expected):
            raise UserError(f"{path}: {where}: {key!r} is {found!r}, which does not fit; run scripts.evaluate again")
