"""What the jobs of a page do: samples, an atlas, a walk; pictures go to the page as they are generated."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from models.codebook import Codebook
from models.generation import Cascade
from models.map_pictures import on_map, shrink
from models.requests import Request, settings_text
from playground.page_request import ATLAS_BATCH, FROM_PICTURE, Model, PageRequest
from playground.worker import Job, Picture, Session
from utils.images import grid, save_image, save_walk

MAP_SIDE = 1024  # pixels of the map's longer side, at most


@dataclass(frozen=True)
class Sheet:
    """Pictures side by side in one file, row by row, `number` of them."""

    path: Path
    number: int
    columns: int
    name: str  # of what they show, to be read aloud


def job_of(asked: PageRequest, model: Model, session: Session) -> Job:
    """The job of a request, which adds its pictures to the session; raises `UserError` if the model cannot do it."""
    cascade, request = model.cascade, asked.cascade_request(model.cascade)
    make = {"atlas": make_atlas, "walk": make_walk}.get(asked.kind, make_samples)
    number = {"atlas": len(cascade.codebooks[0]), "walk": asked.steps}.get(asked.kind, asked.number)

    def work(job: Job) -> list[Picture]:
        pictures = make(job, asked, request, model, session)
        session.add(pictures)
        return pictures

    return Job(work, cascade.length * number)


def make_samples(job: Job, asked: PageRequest, request: Request, model: Model, session: Session) -> list[Picture]:
    """Write samples stage by stage; show a sheet of each level, and keep the last ones as files."""
    levels = write_levels(job, model.cascade, request, range(asked.batch_size), asked.number)
    scores, units, files = [], [], []
    for level, tokens, stage_scores in levels:
        images = model.cascade.decode(tokens, level).float().cpu()
        scores.append(stage_scores)
        units = units or tokens[:, 0].tolist()  # those of the condition come first
        job.messages.put(("shown", save_sheet(images, session, level)))
    for index, (image, own) in enumerate(zip(images, torch.stack(scores[1:], dim=1).tolist(), strict=True)):
        path = session.new_path(f"seed{asked.seed}_{asked.result(index).name}")
        save_image(image, path, settings_text(request, index, own), durable=False)  # as generate_images.py does
        title, which = f"Picture {index}, {asked.sentence()}", f"number {index}, of 0 to {asked.number - 1}"
        settings = settings_of(asked, which, f"unit {units[index]}")
        settings["Scores"] = ", ".join("–" if math.isnan(score) else f"{score:.1f}" for score in own)
        note = f"picture number {index} is {asked.result(index)}"
        files.append(Picture(path.stem, path, f"{title}, seed {asked.seed}", settings, model.command(asked), note))
    return files


def make_atlas(job: Job, asked: PageRequest, request: Request, model: Model, session: Session) -> list[Picture]:
    """Write a sample for each unit; show the map after each stage, and keep it as a file."""
    cascade, codebook = model.cascade, model.cascade.codebooks[0]
    tiles = decode_units(cascade)
    for start in range(0, len(codebook), ATLAS_BATCH):
        images = range(start, start + ATLAS_BATCH)  # in full, as generate_images.py does
        part = tiles[start : start + ATLAS_BATCH]
        for level, tokens, _ in write_levels(job, cascade, request, images, len(part)):
            part[:] = cascade.decode(tokens, level).float().cpu()
            save_units(tiles, codebook, session.map)
            job.messages.put(("shown", session.map))
    path = session.new_path(f"seed{asked.seed}_{asked.result().name}")
    save_image(on_map(tiles, codebook), path, durable=False)
    title, note = f"Condition atlas, seed {asked.seed}", f"the atlas is {asked.result()}"
    settings = settings_of(asked, "all units, from the same draws")
    return [Picture(path.stem, path, title, settings, model.command(asked), note)]


def make_walk(job: Job, asked: PageRequest, request: Request, model: Model, session: Session) -> list[Picture]:
    """Write the pictures of a walk stage by stage; show them side by side, and keep an animation there and back."""
    for level, tokens, _ in write_levels(job, model.cascade, request, range(asked.steps), asked.steps):
        images = model.cascade.decode(tokens, level).cpu()
        job.messages.put(("shown", save_sheet(images.float(), session, level)))
    path = session.new_path(f"seed{asked.seed}_{asked.result().name}")
    save_walk(images, path)
    title, note = f"Walk from unit {asked.ends[0]} to unit {asked.ends[1]}", f"the walk is {asked.result()}"
    settings = settings_of(asked, "all steps, from the same draws")
    return [Picture(path.stem, path, title, settings, model.command(asked), note)]


def write_levels(
    job: Job, cascade: Cascade, request: Request, images: range, number: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield each level, with tokens (N, T) and scores (N,) of the first `number` images; report what is written."""
    stages = cascade.write_stages(request, images, lambda tokens: job.count(tokens * number))
    for level, (tokens, scores) in enumerate(stages):
        job.activity = "saving"  # once the last level is there; else what is written then
        if level < len(cascade.stages):
            grid = cascade.stages[level].config.fine
            job.activity = f"writing stage {level}: {grid.height}×{grid.width} tokens"
        yield level, tokens[:number], scores[:number]


def save_sheet(images: torch.Tensor, session: Session, level: int) -> Sheet:
    """Save images (N, 3, H, W) side by side, nearly square, in at most six columns."""
    columns = min(6, math.ceil(math.sqrt(len(images))))
    save_image(grid(images, columns, padding=0), session.sheet, durable=False)
    return Sheet(session.sheet, len(images), columns, f"after stage {level - 1}" if level else "their conditions")


def settings_of(asked: PageRequest, picture: str, condition: str = "") -> dict[str, str]:
    """The settings of a picture, under short names; `picture` says which one it is."""
    settings = {"Asked for": asked.sentence(), "Condition": condition, "Seed": str(asked.seed), "Picture": picture}
    settings["Label"] = asked.label or ""
    if asked.kind in FROM_PICTURE:
        settings["Given"] = f"{asked.upload.name}, which the command looks for in the current folder"
    for number, config in enumerate(asked.sampling):
        words = [f"temperature {config.temperature:g}"]
        words += [f"top-p {config.top_p:g}"] if config.top_p is not None else []
        words += [f"top-k {config.top_k}"] if config.top_k is not None else []
        if (config.num_beam, config.beam_width, config.keep_beam) != (1, 1, 1):
            words.append(f"{config.num_beam} beams × {config.beam_width}, {config.keep_beam} kept")
        words += [f"guidance {config.guidance_scale:g}"] if config.is_guided else []
        settings[f"Stage {number}"] = ", ".join(words)
    return {name: value for name, value in settings.items() if value}


def decode_units(cascade: Cascade) -> torch.Tensor:
    """Every unit of the condition codebook decoded, (K, 3, H, W)."""
    return cascade.decode_all(torch.arange(len(cascade.codebooks[0]), device=cascade.device)[:, None], 0)


def save_units(tiles: torch.Tensor, codebook: Codebook, path: Path) -> None:
    """Save a picture of each unit (K, 3, H, W) at its place, small enough to be looked at quickly."""
    tiles = shrink(tiles, MAP_SIDE // (int(codebook.coordinates.max()) + 1))
    save_image(on_map(tiles, codebook), path, durable=False)
