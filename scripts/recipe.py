"""A recipe, checked whole before anything runs: every file and every option is read, and they must fit together."""

import utils.runtime.threads  # noqa: F401

import dataclasses
import gc
import logging
import math
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import torch

from models.autoencoder import AutoencoderConfig
from models.codebook import CodebookConfig
from models.requests import config_of, load_generation_config
from models.stage import StageConfig
from models.transformer import Grid, TransformerConfig
from utils.core.config import load_config, read_json, refuse_unknown
from utils.core.files import UserError
from utils.core.options import ScriptOptions, options_from
from utils.core.size import MOST_PIXELS, Size
from utils.data.dataset import ImageDataset
from utils.runs.chain import Recipe, Step
from utils.runs.folders import CONDITION, RunFolder
from utils.runs.manifest import key_of, printed
from utils.runtime.device import reset_peak_memory

Plans = dict[str, dict[str, object]]  # by the names of steps: what their results depend on, but for their inputs


def check(recipe: Recipe, steps: Sequence[Step], run: RunFolder, generation: Path) -> Plans:
    """The plan of each step; raises `UserError` naming the file, perhaps the config `generation`, and the wrong key."""
    options = {step.name: dataclasses.asdict(options_of(recipe, step)) for step in steps}
    models = load_configs(recipe, steps)
    check_sizes(recipe, run, models)
    configs = {name: dataclasses.asdict(config) for name, config in models.items()}
    configs["generate"] = check_generation(generation, steps, run)
    return {name: key_of(options[name], configs.get(name)) for name in options}


def check_device(recipe: Recipe, device: str | None) -> None:
    """Raise `UserError` if a recipe for a GPU would train on a CPU, unless `device` asks for that."""
    if recipe.without_gpu and device in (None, "auto") and not torch.cuda.is_available():
        other = f"{recipe.without_gpu}, for images of {Recipe.find(recipe.without_gpu).image_size.shown} pixels"
        advice = f"use {other}, or add --device cpu to wait for this one all the same"
        raise UserError(f"{recipe.folder.name} is for a GPU with CUDA, and there is none here: {advice}")


def run_step(recipe: Recipe, step: Step, **common: object) -> None:
    """Run a step in this process, with options that all steps have; raises what the step raises.

    Of its log, warnings alone are printed.
    """
    options = dataclasses.replace(options_of(recipe, step), **common)
    gc.collect()
    if getattr(options, "compile", False):  # what was compiled for other models
        torch.compiler.reset()
    reset_peak_memory()
    level = printed.set(logging.WARNING)
    try:
        getattr(import_module(step.script), step.script)(options)
    finally:
        printed.reset(level)


def options_of(recipe: Recipe, step: Step) -> ScriptOptions:
    cls, where = import_module(step.script).Options, f"{recipe.path}: {step.section!r}"
    own, common = ({field.name for field in dataclasses.fields(each)} for each in (cls, ScriptOptions))
    known = own - common - step.inputs.keys() - {"resume"}
    refuse_unknown(step.settings, known, where, "docs/reference.md lists the options of each step")
    return options_from(cls, step.options | {"out_dir": step.folder.path}, where)


def load_configs(recipe: Recipe, steps: Sequence[Step]) -> dict[str, object]:
    """The config of each model, by the name of its step; raises `UserError` as `check` does."""
    configs, shape = {}, ()
    for step in steps:
        path = step.inputs.get("config_path")
        if step.script == "train_autoencoder":
            configs[step.name] = load_config(path, AutoencoderConfig)
            shape = shape or fmap_shape(recipe, configs[step.name])
        elif step.script == "train_codebook":
            configs[step.name] = CodebookConfig.load(path, shape)
        elif step.script == "train_quantized_transformer":
            configs[step.name] = load_config(path, TransformerConfig)
    return configs


def fmap_shape(recipe: Recipe, config: AutoencoderConfig) -> tuple[int, int, int]:
    """The shape (C, H, W) of the feature maps of a recipe's images.

    Raises `UserError` naming the nearest sizes of images that the autoencoder can halve and whose maps the patches of
    all grids can divide.
    """
    size, scale = recipe.image_size, 2**config.num_layers
    books = [read_json(recipe.folder / f"{stage.replace('transformer', 'codebook')}.json") for stage in recipe.stages]
    patches = [[book.get(f"patch_{axis}") for book in books] for axis in "WH"]
    known = [[side for side in sides if type(side) is int and 0 < side <= MOST_PIXELS] for sides in patches]
    nearest = size.multiples(*(scale * math.lcm(*sides) for sides in known))
    if nearest != [size]:
        halved = f"autoencoder.json halves images {config.num_layers} times ('num_layers')"
        why = f"{halved}, and the patches of each codebook ('patch_H', 'patch_W') must divide its feature maps"
        expected = " or ".join(map(str, nearest))
        raise UserError(f"{recipe.path}: 'image_size' is {size}, the nearest that fit are {expected}: {why}")
    return config.latent_channel, size.height // scale, size.width // scale


def check_sizes(recipe: Recipe, run: RunFolder, configs: dict[str, object]) -> None:
    """Raise `UserError` unless the codebooks cut up the autoencoder's feature maps, and the stages fit their grids."""
    shape = fmap_shape(recipe, configs["autoencoder"])
    for book in run.codebooks:
        path, config = recipe.folder / f"{book.name}.json", configs[book.name]
        for key, expected in zip(("image_C", "image_H", "image_W"), shape, strict=True):
            if (value := getattr(config, key)) != expected:
                why = f"as autoencoder.json makes feature maps of images of {recipe.image_size.shown} pixels"
                raise UserError(f"{path}: {key!r} is {value}, expected {expected}, {why}; leave the key out")
        if book.level == CONDITION and config.grid != (1, 1):
            sizes = f"'patch_H' and 'patch_W' are {config.patch_H} and {config.patch_W}"
            advice = "a patch of the condition codebook is a whole feature map, so leave them out"
            raise UserError(f"{path}: {sizes}, expected {shape[1]} and {shape[2]}: {advice}")
    stage_configs(recipe, run, configs)


def stage_configs(recipe: Recipe, run: RunFolder, configs: dict[str, object]) -> list[StageConfig]:
    """The config of each stage, before any unit is pruned; raises `UserError` for one that its grids do not fit."""
    books, stages = [configs[book.name] for book in run.codebooks], []
    grids = [Grid(*config.grid, config.num_embeddings) for config in books]
    for number, (stage, pair) in enumerate(zip(run.transformers, pairwise(grids), strict=True)):
        try:
            stages.append(StageConfig(configs[stage.name], *pair, is_base=number == 0))
        except UserError as error:
            raise UserError(f"{recipe.folder / stage.name}.json: {error}") from None
    return stages


def check_generation(path: Path, steps: Sequence[Step], run: RunFolder) -> dict[str, object]:
    """The plan of a generation; raises `UserError` unless its files are in the folders of the steps, or exist."""
    stages = [step for step in steps if step.script == "train_quantized_transformer"]
    configs = load_generation_config(path)
    if len(configs) > len(stages):
        raise UserError(f"{path}: stage {len(stages)} has no transformer_{len(stages)}.json in the recipe; add it")
    for number, (stage, config) in enumerate(zip(stages, configs, strict=False)):
        for key, expected in {"model_path": stage.folder.best, **stage.inputs}.items():
            value = getattr(config, key, None)
            if value is not None and (run.path / value).parent != expected.parent and not (run.path / value).is_file():
                expected = expected.relative_to(run.path).as_posix()
                raise UserError(f"{path}: stage {number}: {key!r} is {value!r}, expected {expected!r}")
    return config_of(configs)


def open_images(recipe: Recipe, dataset: Path) -> ImageDataset:
    images, size = ImageDataset(dataset), recipe.image_size
    if (held := Size.of(images.shape)) != size:
        sizes = f"{held.shown} ({images.path(0)}), but 'image_size' in {recipe.path} is {size}"
        advice = f"make the images with --image-size {size}, or give a recipe whose 'image_size' is {held}"
        raise UserError(f"{dataset}: holds images of {sizes}; {advice}")
    return images
