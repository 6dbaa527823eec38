"""The steps of a cascade, in the order in which they run: the script, inputs, results and options of each.

Chain, dry run, tests and report read this list; nothing else knows it. A recipe is a folder of JSON files: a
config for each model, and recipe.json with the options of each step. This needs Python's standard library alone.
"""

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from utils.core.config import build_config, read_json
from utils.core.files import ROOT, UserError
from utils.core.options import words_of
from utils.core.size import Size
from utils.runs.folders import OutputFolder, RunFolder

CONFIGS = ROOT / "configs"
FLIPS = ("autoencoder", "feature_maps")  # the sections of the steps that mirror images; the decoder follows the first
SECTIONS = ("autoencoder", "feature_maps", "codebook", "prune", "generate")  # that every recipe.json has
SEEDED = ("autoencoder", "codebook", "decoder", "transformer", "generate")  # those of steps that choose at random


@dataclass(frozen=True)
class Step:
    """One step: a script that reads `inputs` and leaves `results`, the first of which matters most."""

    name: str
    script: str
    folder: OutputFolder
    results: tuple[Path, ...]
    inputs: dict[str, object]  # options that name what it reads
    section: str  # of recipe.json
    settings: dict[str, object]  # options that it holds there

    @property
    def options(self) -> dict[str, object]:
        return ({"resume": True} if self.script.startswith("train_") else {}) | self.settings | self.inputs

    @property
    def command(self) -> list[str]:
        return [str(ROOT / f"{self.script}.py"), *words_of(self.options | {"out_dir": self.folder.path})]


@dataclass(frozen=True)
class Recipe:
    """A recipe's folder, and the content of its recipe.json: `settings` are the options of each section."""

    folder: Path
    settings: dict[str, dict] = field(default_factory=dict)
    image_size: Size | None = None  # None: of a run, whose recipe is not known
    num_images: int | None = None  # that the demo draws
    without_gpu: str = ""  # of one that is for a GPU: the name of the recipe to use without

    @classmethod
    def find(cls, name: str | Path, seed: int | None = None) -> "Recipe":
        """Read the recipe of this name in configs/, or of a path, as text with a slash; raises `UserError`.

        A seed takes the place of those of its steps.
        """
        folder = CONFIGS / name if isinstance(name, str) and Path(name).name == name else Path(name)
        path = folder / "recipe.json"
        if not path.is_file():
            known = " ".join(sorted(each.parent.name for each in CONFIGS.glob("*/recipe.json")))
            raise UserError(f"{path}: no such recipe; configs/ holds: {known}")
        content = read_json(path)
        names = [*content, *(each.stem for each in folder.glob("*.json"))]
        levels = [int(m[1]) for each in names if (m := re.fullmatch(r"(?:codebook|transformer)_(\d+)", each))]
        sections = (*SECTIONS, *(f"transformer_{level}" for level in range(max(levels, default=0) + 1)))
        fields = [("image_size", int | str), *((section, dict) for section in sections)]
        optional = {"decoder": dict, "num_images": int, "flip": bool, "description": str, "without_gpu": str}
        fields += [(key, kind | None, None) for key, kind in optional.items()]
        given = build_config(dataclasses.make_dataclass("Recipe", fields), content, str(path))
        settings = {key: each for key in (*sections, "decoder") if (each := getattr(given, key)) is not None}
        for section in FLIPS:
            if "flip" in settings[section]:
                raise UserError(f"{path}: 'flip' in {section!r}: is a setting of the whole recipe; move it up a level")
            settings[section] |= {"flip": True} if given.flip else {}
        try:
            size = Size.parse(given.image_size)
        except ValueError as error:
            raise UserError(f"{path}: 'image_size': {error}") from None
        return cls(folder, with_seed(settings, seed), size, given.num_images, given.without_gpu or "")

    @property
    def path(self) -> Path:
        return self.folder / "recipe.json"

    @property
    def stages(self) -> list[str]:
        return [section for section in self.settings if section.startswith("transformer_")]

    def change(self, sections: Iterable[str], **options: object) -> "Recipe":
        changed = {section: self.settings[section] | options for section in sections if section in self.settings}
        return dataclasses.replace(self, settings=self.settings | changed)


def with_seed(settings: dict, seed: int | None) -> dict:
    """The content of a recipe.json with this seed for every step that chooses at random; None changes nothing."""
    names = [name for name in settings if seed is not None and name.partition("_")[0] in SEEDED]
    return settings | {name: settings[name] | {"seed": seed} for name in names}


def maps_per_image(settings: dict, section: str | None = None) -> int:
    """How many feature maps of each image a section of recipe.json learns from; without a section, how many there are.

    `settings` are those of the file, or of a `Recipe`, which has `flip` in the sections.
    """
    maps = settings["feature_maps"]
    is_finer = section is None or (section.startswith("transformer_") and section != "transformer_0")
    return 1 + (settings.get("flip") or maps.get("flip", False)) + is_finer * maps.get("num_moved", 0)


def steps_of(run: RunFolder, recipe: Recipe, dataset: Path) -> list[Step]:
    images, maps = {"dataset_path": dataset}, {"dataset_path": run.feature_maps.dataset}
    encoder = decoder = run.autoencoder.latest
    steps: list[Step] = []

    def add(name: str, script: str, folder: OutputFolder, *results: Path, section: str = "", **inputs: object) -> None:
        section = section or name
        steps.append(Step(name, script, folder, results, inputs, section, recipe.settings.get(section, {})))

    def config(name: str) -> dict[str, Path]:
        return {"config_path": recipe.folder / f"{name}.json"}

    add("autoencoder", "train_autoencoder", run.autoencoder, encoder, **images, **config("autoencoder"))
    add("feature_maps", "generate_fmap_dataset", run.feature_maps, *maps.values(), **images, model_path=encoder)
    for book in run.codebooks:
        model = {"decoder_path": encoder, **config(book.name)}
        add(book.name, "train_codebook", book, book.latest, section="codebook", **maps, **model)
        model = {"codebook_path": book.latest, "decoder_path": encoder}
        add(f"prune_{book.name}", "prune_codebook", book, book.pruned, section="prune", **maps, **model)
    if "decoder" in recipe.settings:
        decoder = run.decoder.latest
        given = {"encoder_path": encoder, "hr_codebook_path": run.codebooks[-1].pruned, **config("autoencoder")}
        add("decoder", "train_autoencoder", run.decoder, decoder, **images, **given)
    before: dict[str, object] = {"train_base_model": True}
    for stage, (coarse, fine) in zip(run.transformers, pairwise(run.codebooks), strict=True):
        given = {"decoder_path": decoder, "lr_codebook_path": coarse.pruned, "hr_codebook_path": fine.pruned}
        given |= config(stage.name) | before
        add(stage.name, "train_quantized_transformer", stage, stage.best, stage.latest, **maps, **given)
        before = {"previous_path": stage.best}
    last, given = run.generated, {"decoder_path": decoder, "config_path": run.generation}
    add("generate", "generate_images", last, last.grid(0), last.tokens, **given)
    return steps


def steps_in(run: RunFolder) -> list[Step]:
    recipe = Recipe(run.path, {"decoder": {}} if run.decoder.path.is_dir() else {})
    return steps_of(run, recipe, run.images)


def folders_in(run: RunFolder) -> list[OutputFolder]:
    return [*{step.folder.name: step.folder for step in steps_in(run)}.values()]


def manifests_in(run: RunFolder) -> list[Path]:
    return [step.record for step in folders_in(run) if step.record.is_file()]


def missing_in(run: RunFolder) -> dict[str, Path]:
    """The steps without a result, by the names of their folders, each with the file that is not there."""
    results = {step.folder.name: step.results[0] for step in steps_in(run)}
    results |= {step.name: step.codebook for step in run.codebooks}
    return {name: path for name, path in results.items() if not path.is_file()}
