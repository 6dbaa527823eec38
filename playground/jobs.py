"""What the jobs of a page do: samples, an atlas, a walk; pictures go to the page as they are generated."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from models.cascade import Cascade
from models.codebook import Codebook
from models.requests import change_sampling, sampling_of, settings_text
from models.som.pictures import on_map, shrink
from playground.page_request import ATLAS_BATCH, FROM_PICTURE, Model, PageRequest
from playground.worker import Job, Picture, Session
from utils.core.files import UserError, remove_unnamed, write_file
from utils.core.provenance import digest
from utils.data.images import grid, read_image, save_image, save_walk
from utils.runs.folders import RunFolder

MAP_SIDE = 1024  # pixels of the map's longer side, at most


@dataclass(frozen=True)
class Sheet:
    """Pictures side by side in one file, row by row, `number` of them."""

    path: Path
    number: int
    columns: int
    name: str  # of what they show, to be read aloud
    request: float | None  # when its job began: another one for each request


class PictureJob(Job):
    def __init__(self, request: PageRequest, model: Model, session: Session) -> None:
        """Raises `UserError` if the model cannot do what is requested."""
        self.request, self.model, self.session, self.cascade = request, model, session, model.cascade
        self.cascade_request = request.cascade_request(self.cascade)
        special = {"atlas": len(self.cascade.codebooks[0]), "walk": request.steps}
        super().__init__(type(self).generate, self.cascade.length * special.get(request.kind, request.number))

    def generate(self) -> list[Picture]:
        pictures = {"atlas": self._atlas, "walk": self._walk}.get(self.request.kind, self._samples)()
        self.session.add(pictures)
        return pictures

    def _samples(self) -> list[Picture]:
        request, scores, units, pictures = self.request, [], [], []
        for level, tokens, stage_scores in self._levels(range(request.batch_size), request.number):
            images = self.cascade.decode(tokens, level).float().cpu()
            scores.append(stage_scores)
            units = units or tokens[:, 0].tolist()  # those of the condition come first
            self._show(images, level)
        labels = self.cascade.labels_of(self.cascade_request, range(request.number))
        scores = torch.stack(scores[1:], dim=1).tolist()
        for index, (image, label, own) in enumerate(zip(images, labels, scores, strict=True)):
            picture = self._picture(
                f"Picture {index}, {request.sentence()}, seed {request.seed}",
                f"number {index}, of 0 to {request.number - 1}",
                f"picture number {index} is",
                index,
                str(units[index]),
                label,
            )
            picture.settings["Scores"] = ", ".join("–" if math.isnan(score) else f"{score:.1f}" for score in own)
            # As generate_images.py does.
            save_image(image, picture.path, settings_text(self.cascade_request, index, label, own), durable=False)
            pictures.append(picture)
        return pictures

    def _atlas(self) -> list[Picture]:
        tiles = self._draw_map()
        title = f"Samples of all tiles, seed {self.request.seed}"
        picture = self._picture(title, "all tiles, from the same draws", "the picture of all tiles is")
        save_image(on_map(tiles, self.cascade.codebooks[0]), picture.path, durable=False)
        return [picture]

    def _draw_map(self) -> torch.Tensor:
        """A sample of each unit, (K, 3, H, W); the map of the session shows them as they are written."""
        codebook, tiles = self.cascade.codebooks[0], decode_units(self.cascade)
        for start in range(0, len(codebook), ATLAS_BATCH):
            part = tiles[start : start + ATLAS_BATCH]
            # In full, as generate_images.py does.
            for level, tokens, _ in self._levels(range(start, start + ATLAS_BATCH), len(part)):
                part[:] = self.cascade.decode(tokens, level).float().cpu()
                path = self.session.next_shown("map")
                save_units(tiles, codebook, path)
                self.session.map = path
                self.messages.put(("shown", path))
        return tiles

    def _walk(self) -> list[Picture]:
        for level, tokens, _ in self._levels(range(self.request.steps), self.request.steps):
            images = self.cascade.decode(tokens, level).cpu()
            self._show(images.float(), level)
        title = f"Walk from tile {self.request.ends[0]} to tile {self.request.ends[1]}"
        label = self.cascade.labels_of(self.cascade_request, range(1))[0]
        picture = self._picture(title, "all steps, from the same draws", "the walk is", label=label)
        save_walk(images, picture.path)
        return [picture]

    def _levels(self, images: range, number: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield each level, with tokens (N, T) and scores (N,) of the first `number` images; report what is written."""
        stages = self.cascade.write_stages(self.cascade_request, images, lambda tokens: self.count(tokens * number))
        for level, (tokens, scores) in enumerate(stages):
            self.activity = "saving"  # once the last level is there; else what is written then
            if level < len(self.cascade.stages):
                self.activity = f"writing stage {level}: {self.cascade.stages[level].config.fine.shown} tokens"
            yield level, tokens[:number], scores[:number]

    def _show(self, images: torch.Tensor, level: int) -> None:
        columns = min(6, math.ceil(math.sqrt(len(images))))
        path = self.session.next_shown("sheet")
        save_image(grid(images, columns, padding=0), path, durable=False)
        self.session.sheet = path
        name = f"after stage {level - 1}" if level else "their conditions"
        self.messages.put(("shown", Sheet(path, len(images), columns, name, self.start)))

    def _picture(
        self, title: str, part: str, note: str, index: int = 0, tile: str = "", label: str | None = None
    ) -> Picture:
        """A picture that is still to be saved; `part` says which of the request it is, `note` which of the command."""
        result = self.request.result(index)
        path = self.session.new_path(f"seed{self.request.seed}_{result.name}")
        settings = settings_of(self.request, part, tile, label)
        return Picture(path.stem, path, title, settings, self.model.command(self.request), f"{note} {result}")


class MapJob(PictureJob):
    """Draws a sample of each unit for the map of all pages, and keeps it with the model, if that can be written."""

    def __init__(self, model: Model, session: Session, kept: Path) -> None:
        self.kept = kept
        sampling = change_sampling(model.cascade.configs)
        super().__init__(PageRequest(kind="atlas", seed=0, sampling=sampling), model, session)

    def generate(self) -> None:
        self._draw_map()
        with suppress(OSError):  # of a folder that is read-only, or a full disk
            write_file(self.kept, self.session.map.read_bytes())
            remove_unnamed(self.kept.parent, "*.png", {self.kept.name})


def first_map(model: Model, session: Session) -> MapJob | None:
    """Give a session a map: the one that an earlier start has kept, or blurred units, and the job that replaces them.

    A unit is the mean of its images, so it is blurred.
    """
    cascade, session.map = model.cascade, session.folder / "map.png"
    key = cascade.fingerprints | {"side": MAP_SIDE, "sampling": list(map(sampling_of, cascade.configs))}
    kept = RunFolder.open(model.path).kept_map(digest(key))
    with suppress(OSError, UserError):  # there is none, or it is damaged
        save_image(read_image(kept), session.map, durable=False)
        return None
    save_units(decode_units(cascade), cascade.codebooks[0], session.map)
    return MapJob(model, session, kept)


def settings_of(request: PageRequest, part: str, tile: str, label: str | None) -> dict[str, str]:
    """The settings of a picture, under short names; `part` says which of the request it is."""
    settings = {"Asked for": request.sentence()} | ({"Tile": tile} if tile else {})
    settings |= {"Seed": str(request.seed), "Picture": part}
    label = request.label if label is None else label
    if label is not None:
        settings["Labels"] = (label or "none") + (", drawn" if request.label is None else "")
    if request.kind in FROM_PICTURE:
        settings["Given"] = f"{request.upload.name}, which the command looks for in the current folder"
    for number, config in enumerate(request.sampling):
        words = [f"temperature {config.temperature:g}"]
        words += [f"top-p {config.top_p:g}"] if config.top_p is not None else []
        words += [f"top-k {config.top_k}"] if config.top_k is not None else []
        if (config.num_beam, config.beam_width, config.keep_beam) != (1, 1, 1):
            words.append(f"{config.num_beam} beams × {config.beam_width}, {config.keep_beam} kept")
        words += [f"guidance {config.guidance_scale:g}"] if config.is_guided else []
        settings[f"Stage {number}"] = ", ".join(words)
    return settings


def decode_units(cascade: Cascade) -> torch.Tensor:
    """Every unit of the condition codebook decoded, (K, 3, H, W)."""
    return cascade.decode_all(torch.arange(len(cascade.codebooks[0]), device=cascade.device)[:, None], 0)


def save_units(tiles: torch.Tensor, codebook: Codebook, path: Path) -> None:
    """Save a picture of each unit (K, 3, H, W) at its place, small enough to be looked at quickly."""
    tiles = shrink(tiles, MAP_SIDE // (int(codebook.coordinates.max()) + 1))
    save_image(on_map(tiles, codebook), path, durable=False)
