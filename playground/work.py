"""What the studio's thread does for a page: samples, an atlas, a walk; pictures go to the page as they are made."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from models.cascade import Cascade
from models.codebook import Codebook
from models.requests import Request, settings_text
from models.som.pictures import on_map, shrink
from playground.asks import ATLAS_BATCH, FROM_PICTURE, Ask, Model
from playground.studio import Job, Page, Picture
from utils.data.images import grid, save_image, save_walk

MAP_SIDE = 1024  # pixels of the map's longer side, at most


@dataclass(frozen=True)
class Sheet:
    """Pictures side by side in one file, row by row, `number` of them."""

    path: Path
    number: int
    columns: int
    name: str  # of what they show, to be read aloud


def total(ask: Ask, cascade: Cascade) -> int:
    """Tokens to be written for a request, as the cascade counts them: those of the pictures of a batch once."""
    return cascade.length * (math.ceil(len(cascade.codebooks[0]) / ATLAS_BATCH) if ask.kind == "atlas" else 1)


def at_once(ask: Ask, cascade: Cascade) -> int:
    """Pictures that a token is written for at the same time."""
    return {"walk": ask.steps, "atlas": min(ATLAS_BATCH, len(cascade.codebooks[0]))}.get(ask.kind, ask.number)


def work_for(ask: Ask, model: Model, page: Page) -> Callable[[Job], list[Picture]]:
    """What the studio is to do for a request of a page, whose pictures it then adds to the page.

    It first removes what showed the request before. Raises `UserError` if the model cannot do it.
    """
    request = ask.request(model.cascade)
    make = {"atlas": draw_atlas, "walk": make_walk}.get(ask.kind, make_samples)

    def work(job: Job) -> list[Picture]:
        page.forget_shown()
        pictures = make(job, ask, request, model, page)
        page.add(pictures)
        return pictures

    return work


# --- Samples ---


def make_samples(job: Job, ask: Ask, request: Request, model: Model, page: Page) -> list[Picture]:
    """Write samples stage by stage; show a sheet of each level, and keep the last ones as files."""
    cascade, units, scores = model.cascade, [], []
    for level, tokens, stage_scores in levels_of(job, cascade, request, range(ask.batch_size)):
        pictures = cascade.decode(tokens[: ask.number], level).float().cpu()
        scores.append(stage_scores[: ask.number])
        units = units or tokens[:, 0].tolist()  # those of the condition come first
        job.show(make_sheet(pictures, page, name_of(level)))
    return [
        make_file(ask, request, model, page, index, picture, each.tolist(), units[index])
        for index, (picture, each) in enumerate(zip(pictures, torch.stack(scores[1:], dim=1), strict=True))
    ]


def levels_of(
    job: Job, cascade: Cascade, request: Request, images: range
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield each level, its tokens (N, T) and scores (N,), and note what is being written."""
    for level, (tokens, scores) in enumerate(cascade.write_stages(request, images, job.count)):
        job.activity = "saving"  # once the last level is there; else what is written then
        if level < len(cascade.stages):
            grid = cascade.stages[level].config.fine
            job.activity = f"writing stage {level}: {grid.height}×{grid.width} tokens"
        yield level, tokens, scores


def name_of(level: int) -> str:
    """What pictures of a level show."""
    return "their conditions" if level == 0 else f"after stage {level - 1}"


def make_sheet(pictures: torch.Tensor, page: Page, name: str) -> Sheet:
    """Save pictures (N, 3, H, W) side by side, nearly square, in at most six columns."""
    columns, path = min(6, math.ceil(math.sqrt(len(pictures)))), page.new_path("sheet.png")
    save_image(grid(pictures, columns, padding=0), path, durable=False)
    page.shown.append(path)
    return Sheet(path, len(pictures), columns, name)


def make_file(
    ask: Ask, request: Request, model: Model, page: Page, index: int, picture: torch.Tensor, scores: list, unit: int
) -> Picture:
    """Save one picture (3, H, W) as generate_images.py does."""
    path = page.new_path(f"seed{ask.seed}_{ask.result(index).name}")
    save_image(picture, path, settings_text(request, index, scores), durable=False)
    title, which = f"Picture {index}, {ask.sentence()}, seed {ask.seed}", f"number {index}, of 0 to {ask.number - 1}"
    kept = describe(ask, model, path, title, which, f"picture number {index} is {ask.result(index)}", f"unit {unit}")
    kept.settings["Scores"] = ", ".join("–" if math.isnan(score) else f"{score:.1f}" for score in scores)
    return kept


def describe(ask: Ask, model: Model, path: Path, title: str, picture: str, note: str, condition: str = "") -> Picture:
    """A file that was made, with all that is said of it; `picture` says which one it is."""
    settings = {"Asked for": ask.sentence()} | ({"Condition": condition} if condition else {})
    return Picture(path.stem, path, title, settings | common_settings(ask, picture), model.command(ask), note)


def common_settings(ask: Ask, picture: str) -> dict[str, str]:
    """What is said of every picture, under short names."""
    settings = {"Seed": str(ask.seed), "Picture": picture} | ({"Label": ask.label} if ask.label else {})
    if ask.kind in FROM_PICTURE:
        settings["Given"] = f"{ask.upload.name}, which the command looks for in the current folder"
    for number, config in enumerate(ask.sampling):
        words = [f"temperature {config.temperature:g}"]
        words += [f"top-p {config.top_p:g}"] if config.top_p is not None else []
        words += [f"top-k {config.top_k}"] if config.top_k is not None else []
        if (config.num_beam, config.beam_width, config.keep_beam) != (1, 1, 1):
            words.append(f"{config.num_beam} beams × {config.beam_width}, {config.keep_beam} kept")
        words += [f"guidance {config.guidance_scale:g}"] if config.is_guided else []
        settings[f"Stage {number}"] = ", ".join(words)
    return settings


# --- The atlas ---


def decode_units(cascade: Cascade) -> torch.Tensor:
    """Every unit of the condition codebook decoded, (K, 3, H, W)."""
    return cascade.decode_all(torch.arange(len(cascade.codebooks[0]), device=cascade.device)[:, None], 0)


def save_units(tiles: torch.Tensor, codebook: Codebook, path: Path) -> None:
    """Save a picture of each unit (K, 3, H, W) at its place, small enough to be looked at quickly."""
    tiles = shrink(tiles, MAP_SIDE // (int(codebook.coordinates.max()) + 1))
    save_image(on_map(tiles, codebook), path, durable=False)


def draw_atlas(job: Job, ask: Ask, request: Request, model: Model, page: Page) -> list[Picture]:
    """Write a sample for each unit; show the map after each stage, and keep it as a file."""
    cascade, codebook = model.cascade, model.cascade.codebooks[0]
    tiles = decode_units(cascade)
    for start in range(0, len(codebook), ATLAS_BATCH):
        images = range(start, start + ATLAS_BATCH)  # in full, as generate_images.py does
        part = slice(start, min(start + ATLAS_BATCH, len(codebook)))
        for level, tokens, _ in levels_of(job, cascade, request, images):
            tiles[part] = cascade.decode(tokens[: part.stop - start], level).float().cpu()
            page.map_path = page.new_path("map.png")
            save_units(tiles, codebook, page.map_path)
            page.shown.append(page.map_path)
            job.show(page.map_path)
    path = page.new_path(f"seed{ask.seed}_{ask.result(0).name}")
    save_image(on_map(tiles, codebook), path, durable=False)
    title, note = f"Condition atlas, seed {ask.seed}", f"the atlas is {ask.result(0)}"
    return [describe(ask, model, path, title, "all units, from the same draws", note)]


# --- The walk ---


def make_walk(job: Job, ask: Ask, request: Request, model: Model, page: Page) -> list[Picture]:
    """Write the pictures of a walk stage by stage; show them side by side, and keep an animation there and back."""
    for level, tokens, _ in levels_of(job, model.cascade, request, range(ask.steps)):
        pictures = model.cascade.decode(tokens, level).cpu()
        job.show(make_sheet(pictures.float(), page, name_of(level)))
    path = page.new_path(f"seed{ask.seed}_{ask.result(0).name}")
    save_walk(pictures, path)
    title, note = f"Walk from unit {ask.ends[0]} to unit {ask.ends[1]}", f"the walk is {ask.result(0)}"
    return [describe(ask, model, path, title, "all steps, from the same draws", note)]
