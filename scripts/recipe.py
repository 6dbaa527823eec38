"""A recipe, checked whole before anything runs: every file and every option is read, and they must fit together."""

import utils.runtime.threads  # noqa: F401

import dataclasses
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from models.autoencoder import AutoencoderConfig
from models.codebook import CodebookConfig
from models.requests import load_generation_config
from models.transformer import TransformerConfig
from utils.core.config import load_config, refuse_unknown
from utils.core.files import UserError
from utils.core.options import ScriptOptions, parse_options, words_of
from utils.data.dataset import ImageDataset
from utils.runs.chain import Recipe, Step
from utils.runs.folders import CONDITION, RunFolder

CONFIGS = {
    "train_autoencoder": AutoencoderConfig,
    "train_codebook": CodebookConfig,
    "train_quantized_transformer": TransformerConfig,
}
IDLE = ("log_step", "num_workers", "keep_checkpoint", "save_minutes", "tensorboard")  # may change later
Plans = dict[str, dict[str, object]]  # by the names of steps: all options that their results depend on


def check(recipe: Recipe, steps: Sequence[Step], run: RunFolder, generation: Path) -> Plans:
    """The plan of each step; raises `UserError` naming the file, perhaps the config `generation`, and the wrong key."""
    plans, configs = {}, {}
    for step in steps:
        options_of(recipe, step)
        plans[step.name] = {key: value for key, value in step.settings.items() if key not in IDLE}
        if step.script in CONFIGS:
            configs[step.name] = load_config(step.inputs["config_path"], CONFIGS[step.script])
            plans[step.name] |= {repr(key): value for key, value in dataclasses.asdict(configs[step.name]).items()}
    check_sizes(recipe, run, configs)
    plans["generate"] |= check_generation(generation, steps, run)
    return plans


def options_of(recipe: Recipe, step: Step) -> ScriptOptions:
    """The options of a step, as its script parses them; raises `UserError` naming the key of recipe.json."""
    cls, where = import_module(step.script).Options, f"{recipe.path}: {step.section!r}"
    own, common = ({field.name for field in dataclasses.fields(each)} for each in (cls, ScriptOptions))
    known = own - common - step.inputs.keys() - {"resume"}
    refuse_unknown(step.settings, known, where, "docs/reference.md lists the options of each step")
    return parse_options(cls, "", words_of(step.options | {"out_dir": step.folder.path}), where)


def check_sizes(recipe: Recipe, run: RunFolder, configs: dict[str, object]) -> None:
    """Raise `UserError` unless the codebooks cut up the feature maps that the autoencoder makes of the images."""
    autoencoder = configs["autoencoder"]
    side, rest = divmod(recipe.image_size, 2**autoencoder.num_layers)
    if rest or side < 1:
        expected = f"expected a multiple of {2**autoencoder.num_layers}"
        why = f"autoencoder.json halves it {autoencoder.num_layers} times ('num_layers')"
        raise UserError(f"{recipe.path}: 'image_size' is {recipe.image_size}, {expected}: {why}")
    shape = {"image_C": autoencoder.latent_channel, "image_H": side, "image_W": side}
    for book in run.codebooks:
        path, config = recipe.folder / f"{book.name}.json", configs[book.name]
        for key, expected in shape.items():
            if (value := getattr(config, key)) != expected:
                why = f"as autoencoder.json makes feature maps of images of {recipe.image_size} pixels"
                raise UserError(f"{path}: {key!r} is {value}, expected {expected}, {why}")
        if book.level == CONDITION and config.grid != (1, 1):
            sizes = f"'patch_H' and 'patch_W' are {config.patch_H} and {config.patch_W}, expected {side}"
            raise UserError(f"{path}: {sizes}: a patch of the condition codebook is a whole feature map")
    for stage in run.transformers[1:]:
        if configs[stage.name].use_labels:
            advice = "is for the base stage, whose tokens pass the label on; leave the key out"
            raise UserError(f"{recipe.folder / stage.name}.json: 'use_labels' {advice}")


def check_generation(path: Path, steps: Sequence[Step], run: RunFolder) -> dict[str, object]:
    """The plan of a generation; raises `UserError` unless its files are in the folders of the steps, or exist."""
    stages = [step for step in steps if step.script == "train_quantized_transformer"]
    configs, plan = load_generation_config(path), {}
    if len(configs) > len(stages):
        raise UserError(f"{path}: stage {len(stages)} has no transformer_{len(stages)}.json in the recipe; add it")
    for number, (stage, config) in enumerate(zip(stages, configs, strict=False)):
        for key, expected in {"model_path": stage.folder.best, **stage.inputs}.items():
            value = getattr(config, key, None)
            if value is not None and (run.path / value).parent != expected.parent and not (run.path / value).is_file():
                expected = expected.relative_to(run.path).as_posix()
                raise UserError(f"{path}: stage {number}: {key!r} is {value!r}, expected {expected!r}")
        plan |= {f"stage {number}: {key!r}": value for key, value in dataclasses.asdict(config).items()}
    return plan


def open_images(recipe: Recipe, dataset: Path) -> ImageDataset:
    """The data set of a recipe; raises `UserError` unless its images have the right size."""
    images, size = ImageDataset(dataset), recipe.image_size
    if images.shape[1:] != (size, size):
        sizes = f"{images.shape[2]}×{images.shape[1]} ({images.path(0)}), but 'image_size' in {recipe.path} is {size}"
        advice = f"make the images with --image-size {size}, or give another recipe"
        raise UserError(f"{dataset}: holds images of {sizes}; {advice}")
    return images
