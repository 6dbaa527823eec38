"""The sections of the page: the numbers and pictures that the template shows, without any markup."""

import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from models.autoencoder import KIND, Autoencoder
from models.codebook import Codebook
from models.labels import LabelSets, listed
from models.som.pictures import atlas
from models.stage import KIND as STAGE
from reporting import figures, verdicts
from reporting.pictures import Picture, Quality, label_in
from reporting.run import Job, Run, Step
from utils.core.files import UserError
from utils.core.provenance import check_origin
from utils.data.images import to_uint8
from utils.runs.chain import missing_in, steps_in
from utils.runs.checkpoint import load_checkpoint
from utils.runs.folders import CONDITION, OutputFolder
from utils.runs.manifest import FINISHED, from_here
from utils.runtime.progress import progress
from utils.training.checkpoint_folder import TRAINED

MOST_SAMPLES = 25  # final images that are shown one by one
TITLES = {
    "autoencoder": "Autoencoder",
    "feature_maps": "Feature maps",
    "decoder": "Decoder of quantized maps",
    "generated": "Generation",
}
PIXEL_LOSSES = {"mse": "mean squared error", "l1": "mean absolute error"}
CODEBOOK_PICTURES = ("hit_map", "u_matrix", "comparison")
PREVIEWS = ("low_res_cond", "high_res_recon", "high_res_true", "ground_truth")


@dataclass
class Models:
    decoder: Autoencoder | None
    codebooks: dict[str, Codebook]  # by level: "cond", "0", …
    atlases: dict[str, Image.Image]  # by level: all units, decoded
    num_training: int | None  # images


def load_models(run: Run) -> Models:
    path, models = run.folder.decoding.latest, Models(None, {}, {}, None)
    if path.exists():
        models.decoder = Autoencoder.load(path)
        models.num_training = load_checkpoint(path, KIND, memory_map=True).get("settings", {}).get(TRAINED)
    for step in progress(run.of_kind("codebook"), desc="drawing codebooks", leave=False):
        if (path := step.folder.codebook).exists():
            book = Codebook.load(path)
            if models.decoder is not None:
                try:
                    check_origin(path, book.origin, models.decoder.origin)
                except UserError as error:  # of the autoencoder before, where all is being made anew
                    print(f"left out: {error}", file=sys.stderr)
                    continue
                pixels = to_uint8(atlas(book, models.decoder)).permute(1, 2, 0).numpy()
                models.atlases[step.folder.level] = Image.fromarray(pixels)
            models.codebooks[step.folder.level] = book
    return models


def title_of(folder: OutputFolder, script: str = "") -> str:
    title = TITLES.get(folder.kind) or f"{folder.kind.capitalize()} {folder.level}"
    title = "Condition codebook" if folder.level == CONDITION else title
    return f"{title}, pruning" if script.startswith("prune") else title


def overview(run: Run, models: Models) -> dict:
    judged, job = verdicts.judge(run), run.job("autoencoder")
    dataset = job and from_here(job.last.arguments.get("dataset_path") or "")
    fmap = next((book.fmap_shape for book in models.codebooks.values()), None)
    unfinished = [name for name in run.steps if is_unfinished(run, name)]
    missing = [name for name in missing_in(run.folder) if name not in unfinished]
    return {
        "title": run.folder.path.resolve().name,
        "dataset": dataset,
        "num_training": models.num_training,
        "size": models.decoder and fmap and models.decoder.image_size(fmap),
        "fmap": fmap,
        "tokens": [math.prod(book.config.grid) for book in models.codebooks.values()],
        "num_transformers": len(run.of_kind("transformer")),
        "start": job and job.attempts[0].start,
        "decoded_psnr": verdicts.decoded_psnr(run),
        "quantized_psnr": verdicts.quantized_psnr(run),
        "image_bits": verdicts.image_bits(run),
        "verdicts": judged,
        "advice": verdicts.what_next(judged),
        "planned": planned(run),
        "missing": [title_of(run.folder.step(name)) for name in missing],
        "unfinished": [title_of(run.folder.step(name)) for name in unfinished],
        "again": again(run, job),
        "evaluate": evaluate(run, dataset),
    }


def is_unfinished(run: Run, name: str) -> bool:
    """Whether a script of a step has not ended; in a run of the chain, which copies generate.json, none may lack."""
    steps, jobs = [step for step in steps_in(run.folder) if step.folder.name == name], run.steps[name].jobs
    ended = [script for script, job in jobs.items() if job.last.outcome == FINISHED]
    return len(ended) < (len(steps) if run.generation is not None else len(jobs))


def planned(run: Run) -> list[str]:
    """What `scripts.train_cascade auto` decided, and what more hours or images would bring; nothing for other runs."""
    if run.plan is None:
        return []
    decided = "; ".join(f"{name}: {value}" for name, value, *_ in run.plan["reasons"])
    first = f"Planned for {run.plan['hours']:g} hours: {decided}."
    return [first, *(f"{line}." for line in run.plan["notes"] + run.plan["outlook"])]


def again(run: Run, job: Job | None) -> str | None:
    if job is None or run.generation is None:
        return None
    recipe, dataset = (job.last.arguments[name] for name in ("config_path", "dataset_path"))
    words = [f"{from_here(Path(recipe).parent)}/", dataset, run.folder.path]
    if run.plan is not None:  # within the hours
        words = ["auto", run.plan.get("dataset") or dataset, words[2], "--hours", f"{run.plan['hours']:g}"]
    if (device := job.last.arguments["device"]) != "auto":
        words += ["--device", device]
    return shlex.join(["python", "-m", "scripts.train_cascade", words[0], *map(from_here, words[1:])])


def evaluate(run: Run, dataset: str | None) -> str:
    images = ["--dataset-path", dataset] if dataset else []
    return shlex.join(["python", "-m", "scripts.evaluate", *map(from_here, (run.folder.path, *images))])


def generation(run: Run, models: Models, quality: Quality) -> dict:
    folder, job = run.folder.generated, run.job("generated")
    books = [models.codebooks.get(level) for level in (CONDITION, *map(str, range(len(folder.grids))))]
    moving = next(filter(Path.exists, map(folder.animation, ("webp", "gif"))), None)
    return {
        "samples": [(quality.picture(path), label_in(path)) for path in folder.final_images[:MOST_SAMPLES]],
        "num_samples": len(folder.final_images),
        "levels": [
            {"picture": quality.picture(path), "grid": book and book.config.grid, "units": len(book) if book else 0}
            for path, book in zip(folder.grids, books, strict=False)
        ],
        "animation": moving and quality.animation(moving),
        "animate": job and job.last.command + ("" if job.last.arguments.get("animate") else " --animate"),
    }


def training(step: Step, plots: dict, loss: str, quality: Quality, names: tuple[str, ...]) -> dict:
    name = step.folder.name
    if (figure := figures.curves(step, loss)) is not None:
        plots[f"curve-{name}"] = figure
    paths = {picture: step.folder.newest_picture(picture) for picture in names}
    pictures: dict[str, Picture] = {picture: quality.picture(path) for picture, path in paths.items() if path}
    heading = {"id": name, "title": title_of(step.folder), "level": step.folder.level}
    return heading | {"step": step, "curve": figure and f"curve-{name}", "pictures": pictures}


def reconstructions(run: Run, name: str, models: Models, quality: Quality, plots: dict) -> dict | None:
    if (step := run.steps.get(name)) is None:
        return None
    job = run.job(name)
    loss = (job.last.config or {}).get("loss") if job else models.decoder and models.decoder.config.loss
    return training(step, plots, PIXEL_LOSSES.get(loss, "error"), quality, ("ground_truth", "recon"))


def codebooks(run: Run, models: Models, quality: Quality, plots: dict) -> list[dict]:
    sections = []
    for step in run.of_kind("codebook"):
        book, drawn = models.codebooks.get(step.folder.level), models.atlases.get(step.folder.level)
        section = training(step, plots, "quantization error", quality, CODEBOOK_PICTURES)
        section |= {"units": len(book) if book else 0, "config": book and book.config, "atlas": None}
        if drawn is not None:
            section |= {"atlas": f"atlas-{step.folder.name}", "aspect": drawn.size}
            plots[section["atlas"]] = figures.atlas(book, quality.picture(drawn.copy()).uri, drawn.size)
        sections.append(section)
    return sections


def transformers(run: Run, models: Models, quality: Quality, plots: dict) -> list[dict]:
    sections = []
    for step in run.of_kind("transformer"):
        section = training(step, plots, "nats per token", quality, PREVIEWS) | {"units": 0}
        number = int(step.folder.level)
        levels = str(number - 1) if number else CONDITION, str(number)
        coarse, fine = map(models.codebooks.get, levels)
        if coarse is not None and fine is not None:
            section |= {"coarse": coarse.config.grid, "fine": fine.config.grid}
            section |= {"units": len(fine), "guess": math.log(len(fine))}
            section["labels"] = label_shares(step.folder.best) if number == 0 else ""
        sections.append(section)
    return sections


def label_shares(path: Path) -> str:
    """The labels that a base stage has learned, each with its share of the training images; empty if there are none."""
    content = load_checkpoint(path, STAGE, memory_map=True) if path.exists() else {"model": {}}
    if (table := content["model"].get("label_sets")) is None:
        return ""
    sets = LabelSets(table, content["config"]["labels"], content["config"]["coarse"]["num_units"])
    return listed([f"{name} ({share:.1%})" for name, share in sets.shares.items()])


def pairs(run: Run, quality: Quality) -> Picture | None:
    path = run.folder.evaluation.pairs
    return quality.picture(path) if run.evaluation and run.evaluation.novelty and path.exists() else None


def jobs(run: Run) -> list[dict]:
    """What each script did in each step, and the seconds that it took, where this is known; then the evaluation."""
    rows = [
        {"title": title_of(step.folder, script), "job": job, "seconds": job.seconds}
        for step in run.steps.values()
        for script, job in step.jobs.items()
    ]
    if rows and run.evaluation is not None:
        rows.append({"title": "Evaluation", "job": None, "seconds": run.evaluation.seconds})
    return rows


def usage(run: Run) -> dict[str, str]:
    if run.generation is None or any(step.name in missing_in(run.folder) for step in run.folder.transformers):
        return {}
    folder = shlex.quote(from_here(run.folder.path))
    exported = shlex.quote(f"exported/{run.folder.path.resolve().name}")
    return {
        "Click through it in the browser, on this machine:": f"python -m scripts.playground {folder}",
        "Write what others need to generate pictures with it, as a folder of a few files with a model card:": (
            f"python -m scripts.export {folder} {exported} --dtype bfloat16"
        ),
    }
