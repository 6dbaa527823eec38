"""The sections of the page: from what a run holds to what the template shows, without any markup."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from models.autoencoder import KIND, Autoencoder
from models.codebook import Codebook
from models.map_pictures import atlas
from reporting import figures, verdicts
from reporting.pictures import Level, Picture
from reporting.run import Run, Stage
from utils.checkpoint import check_origin, load_checkpoint
from utils.images import to_uint8
from utils.progress import progress
from utils.run_folder import StepFolder

SAMPLES = 25  # final images that are shown one by one
NAMES = {"autoencoder": "Autoencoder", "feature_maps": "Feature maps", "generated": "Generation"}
STATISTICS = {
    "quantization_error": "mean squared error of a number of the feature map",
    "share_of_variance": "the same as a share of the variance of the patches",
    "topographic_error": "share of patches whose two nearest units are no neighbours on the map",
    "units": "units of the map",
    "units_used": "units that some patch was nearest to",
    "perplexity": "units in even use that would be as varied",
    "psnr_before_quantization": "dB of held-out images after the autoencoder alone",
    "psnr_after_quantization": "dB of held-out images through this codebook",
}
PREVIEWS = {
    "low_res_cond": ("Given", "the coarse tokens that the stage reads"),
    "high_res_recon": ("Written", "the finer tokens that the model drew for them"),
    "high_res_example": ("True", "the finer tokens of the real image: one of many good answers"),
    "ground_truth": ("Limit", "the image after the autoencoder alone: no tokens can look better"),
}


@dataclass
class Models:
    """The networks of a run that pictures are made from, where they are there."""

    decoder: Autoencoder | None
    codebooks: dict[str, Codebook]  # by the level: "cond", "0", …
    atlases: dict[str, Image.Image]
    num_training: int | None  # images

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of an image, known by the decoder and a codebook."""
        if self.decoder is None or not self.codebooks:
            return None
        _, height, width = next(iter(self.codebooks.values())).fmap_shape
        return height * self.decoder.scale, width * self.decoder.scale


def load_models(run: Run) -> Models:
    """Read the decoder and the codebooks, pruned if they have been, and draw every unit."""
    path = run.folder / "autoencoder/models_checkpoint/latest.pt"
    decoder = Autoencoder.load(path) if path.exists() else None
    settings = load_checkpoint(path, KIND, memory_map=True).get("settings", {}) if path.exists() else {}
    books, drawn = {}, {}
    for stage in progress(run.of_kind("codebook"), desc="drawing codebooks", leave=False):
        if not (found := StepFolder(stage.folder).codebook).exists():
            continue
        book = books[stage.level] = Codebook.load(found)
        if decoder is not None:
            check_origin(found, "autoencoder", book.autoencoder, decoder.fingerprint)
            drawn[stage.level] = to_pil(atlas(book, decoder))
    return Models(decoder, books, drawn, settings.get("training items"))


def to_pil(image: torch.Tensor) -> Image.Image:
    """An image (3, H, W) in [−1, 1] as Pillow's."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).numpy())


def title_of(stage: str) -> str:
    """The heading of a stage's folder."""
    kind, _, level = stage.rpartition("_")
    if stage in NAMES:
        return NAMES[stage]
    if level == "cond":
        return "Condition codebook"
    return f"{kind.capitalize()} {level}"


def overview(run: Run, models: Models) -> dict:
    """The head of the page: what was learned from what, the key numbers, and the verdicts."""
    judged = verdicts.judge(run)
    dataset = run.stages["autoencoder"].logs.get("train") if "autoencoder" in run.stages else None
    return {
        "title": run.folder.resolve().name,
        "dataset": dataset and dataset.arguments.get("dataset_path"),
        "num_training": models.num_training,
        "size": models.image_size,
        "fmap": next((book.fmap_shape for book in models.codebooks.values()), None),
        "tokens": [math.prod(book.config.grid) for book in models.codebooks.values()],
        "num_transformers": len(run.of_kind("transformer")),
        "start": min((log.start for _, log in run.logs), default=None),
        "numbers": key_numbers(run),
        "verdicts": judged,
        "advice": verdicts.what_next(judged),
        "missing": [title_of(name) for name in run.missing],
        "unfinished": [title_of(stage.name) for stage in run.stages.values() if stage.is_unfinished],
    }


def key_numbers(run: Run) -> list[tuple[str, str, str]]:
    """(value, unit, meaning) of the few numbers that tell most."""
    found = [(duration(total_seconds(run)), "", "of computing in all stages")]
    psnr, quantized, bits = verdicts.decoded_psnr(run), verdicts.quantized_psnr(run), verdicts.image_bits(run)
    if psnr is not None:
        found.append((f"{psnr:.1f}", "dB", "held-out images after the autoencoder"))
    if quantized is not None:
        found.append((f"{quantized:.1f}", "dB", "and through the finest tokens"))
    if bits is not None:
        found.append((f"{bits:.0f}", "bits", "that the model needs for a held-out image"))
    evaluation = run.evaluation
    if evaluation is not None and (made := evaluation.distance(verdicts.SAMPLES)):
        floor = evaluation.distance(verdicts.FLOOR)
        beside = f"; real images {floor['kernel']:.3f}" if floor else ""
        found.append((f"{made['kernel']:.3f}", "", f"kernel distance of samples{beside}"))
    if evaluation is not None and evaluation.novelty:
        found.append((f"{evaluation.novelty['share_of_samples']:.1%}", "", "of samples nearly copy a training image"))
    return found


def generation(run: Run, models: Models, level: Level) -> dict:
    """The final images, the way to them by stages, and the animation."""
    images = run.folder / "generated" / "images"
    finals = sorted(images.glob(f"image_{'[0-9]' * 5}.png"))
    moving = next((path for kind in ("webp", "gif") if (path := images / f"filling_in.{kind}").exists()), None)
    log = run.stages["generated"].logs.get("generate") if "generated" in run.stages else None
    command = log and (log.command if log.arguments.get("animate") else f"{log.command} --animate")
    return {
        "samples": [level.picture(path) for path in finals[:SAMPLES]],
        "num_samples": len(finals),
        "steps": [step(number, path, run, models, level) for number, path in enumerate(run.grids)],
        "animation": moving and level.animation(moving),
        "animate": command,
    }


def step(number: int, path: Path, run: Run, models: Models, level: Level) -> dict:
    """A position of the slider."""
    book = models.codebooks.get(str(number - 1) if number else "cond")
    rows, columns = book.config.grid if book else (0, 0)
    count = f"{rows} × {columns} tokens, each" if rows * columns > 1 else "a single token,"
    is_last = number == len(run.grids) - 1
    name = ("Final image" if is_last else f"Stage {number - 1}") if number else "Condition"
    return {
        "name": name,
        "tokens": f"{count} one of {len(book):,} units" if book else "",
        "picture": level.picture(path),
    }


def autoencoder(run: Run, level: Level, plots: dict) -> dict | None:
    """Truth beside reconstruction, and the curves."""
    if (stage := run.stages.get("autoencoder")) is None:
        return None
    names = {"ground_truth": ("Original", ""), "recon": ("Reconstruction", "")}
    return common(stage, plots) | {"pictures": pictures(stage, names, level), "psnr": stage.last("val_psnr")}


def common(stage: Stage, plots: dict) -> dict:
    """What every trained stage shows: its heading, its curves and their numbers."""
    if (figure := figures.curves(stage)) is not None:
        plots[f"curve-{stage.name}"] = figure
    return {
        "id": stage.name,
        "title": title_of(stage.name),
        "level": stage.level,
        "curve": figure and f"curve-{stage.name}",
        "checkpoints": figures.checkpoints(stage),
        "has_held_out": bool(figures.checkpoints(stage)),
    }


def pictures(stage: Stage, names: dict[str, tuple[str, str]], level: Level) -> list[tuple[str, str, Picture]]:
    """(name, meaning, picture) of those that the stage has left, the newest of each."""
    paths = {name: stage.picture(name) for name in names}
    return [(*names[name], level.picture(path)) for name, path in paths.items() if path is not None]


def codebooks(run: Run, models: Models, level: Level, plots: dict) -> list[dict]:
    """The map with its use, what it leaves of images, and its statistics, of every codebook."""
    found = []
    for stage in run.of_kind("codebook"):
        book, drawn = models.codebooks.get(stage.level), models.atlases.get(stage.level)
        section = common(stage, plots) | {"statistics": statistics(stage), "atlas": None, "units": 0}
        if book is not None:
            section |= {
                "units": len(book),
                "grid": book.config.grid,
                "patch": (book.config.patch_H, book.config.patch_W),
            }
        if drawn is not None:
            section |= {"atlas": f"atlas-{stage.name}", "aspect": drawn.size}
            rows, columns = (int(side) + 1 for side in book.coordinates.amax(0))
            tile = (drawn.height // rows, drawn.width // columns)
            plots[section["atlas"]] = figures.atlas(book, level.picture(drawn.copy()).uri, tile)
        maps = {
            "hit_map": ("Use", "brighter units are used more often"),
            "u_matrix": ("Distances", "bright lines part units that differ"),
        }
        comparison = {
            "comparison": ("Originals, reconstructions, and what is left after quantization", "from top to bottom"),
        }
        if stage.picture("comparison") is None:
            comparison = {"image_plot": ("Reconstructions", ""), "quant_image_plot": ("After quantization", "")}
        section |= {"maps": pictures(stage, maps, level), "pictures": pictures(stage, comparison, level)}
        found.append(section)
    return found


def statistics(stage: Stage) -> list[tuple[str, str, str | None, str]]:
    """(name, as trained, as pruned, meaning) of what measures the map."""
    rows = []
    for key, meaning in STATISTICS.items():
        trained, pruned = stage.last(key), stage.last(f"pruned_{key}")
        if trained is not None or pruned is not None:
            cells = ["" if value is None else f"{value:,.4g}" for value in (trained, pruned)]
            rows.append((key.replace("_", " "), *cells, meaning))
    return rows


def transformers(run: Run, models: Models, level: Level, plots: dict) -> list[dict]:
    """What each stage was given, wrote and should have written, and its curves."""
    found = []
    for stage in run.of_kind("transformer"):
        before = str(int(stage.level) - 1) if stage.level != "0" else "cond"
        coarse, fine = models.codebooks.get(before), models.codebooks.get(stage.level)
        section = common(stage, plots) | {"pictures": pictures(stage, PREVIEWS, level), "guess": None}
        if coarse is not None and fine is not None:
            section |= {"coarse": coarse.config.grid, "fine": fine.config.grid, "units": len(fine)}
            section["guess"] = math.log(len(fine))
        found.append(section)
    return found


def evaluation(run: Run, level: Level) -> dict | None:
    """The tables, and the samples that are nearest to training images."""
    if (found := run.evaluation) is None:
        return None
    pairs = level.picture(found.pairs) if found.pairs is not None else None
    return {"results": found, "pairs": pairs, "floor": verdicts.FLOOR}


def total_seconds(run: Run) -> float:
    """Of all stages, and of the evaluation."""
    return sum(stage.seconds for stage in run.stages.values()) + (run.evaluation.seconds if run.evaluation else 0)


def times(run: Run) -> list[dict]:
    """What each script took, in seconds and as a share of the longest."""
    rows = []
    for name, log in run.logs:
        what = f"{title_of(name)}, pruning" if log.script == "prune_codebook.py" else title_of(name)
        rows.append({"name": what, "seconds": log.seconds, "starts": log.starts})
    if run.evaluation is not None:
        rows.append({"name": "Evaluation", "seconds": run.evaluation.seconds, "starts": 1})
    longest = max((row["seconds"] for row in rows), default=0)
    return [row | {"share": row["seconds"] / longest if longest else 0} for row in rows]


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {round(seconds) % 60} s"
