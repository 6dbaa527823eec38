import json
import math
import re
import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

from models.autoencoder import AutoencoderConfig
from models.codebook import CodebookConfig
from models.requests import GenerationConfig, load_generation_config
from models.transformer import TransformerConfig
from scripts.recipe import check, load_configs
from tests.test_commands import AUTOENCODER, CODEBOOK, GENERATION, TRANSFORMER
from utils.core.config import build_config, load_config
from utils.core.files import UserError
from utils.core.options import _scalar
from utils.runs.chain import CONFIGS, Recipe, steps_of
from utils.runs.folders import RunFolder


@dataclass(frozen=True)
class Everything:
    number: int
    rate: float
    flag: bool
    name: str
    limit: int | None = None


GOOD = {"number": 3, "rate": 0.5, "flag": True, "name": "a"}


def test_good_values_arrive_as_they_are():
    assert build_config(Everything, GOOD, "here") == Everything(3, 0.5, True, "a")
    assert build_config(Everything, GOOD | {"limit": 7, "rate": 2}, "here") == Everything(3, 2, True, "a", 7)
    assert build_config(Everything, GOOD | {"limit": None}, "here").limit is None
    for value in ([], "a", 1, None):
        with pytest.raises(UserError, match="here: expected a JSON object"):
            build_config(Everything, value, "here")


REFUSED = {
    "number": ("a whole number", (1.0, "1", True, None, [1], {})),
    "rate": ("a number", ("0.5", False, None, [0.5], {})),
    "flag": ("true or false", (0, 1, "true", None, [])),
    "name": ("a string", (1, 0.5, True, None, ["a"])),
    "limit": ("a whole number or null", (0.5, "1", True, [])),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_is_missing_or_has_a_value_of_another_type_is_named_with_what_is_expected(key):
    expected, values = REFUSED[key]
    for value in values:
        with pytest.raises(UserError, match=re.escape(f"here: {key!r} is {value!r}, expected {expected}") + "$"):
            build_config(Everything, GOOD | {key: value}, "here")
    with nullcontext() if key == "limit" else pytest.raises(UserError, match=f"here: missing key {key!r}"):
        build_config(Everything, {name: value for name, value in GOOD.items() if name != key}, "here")


@dataclass(frozen=True)
class Row:
    name: str
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Nested:
    rows: tuple[Row, ...]
    best: Row | None
    settings: dict
    names: tuple[str, ...] = ()


def test_nested_values_are_built_and_written_back():
    values = {"rows": [{"name": "a", "values": [1, 0.5]}, {"name": "b", "values": []}]}
    values |= {"best": {"name": "a", "values": []}, "settings": {"0": {"top_k": 3}}, "names": ["x"]}
    built = build_config(Nested, values, "here")
    assert built == Nested((Row("a", (1, 0.5)), Row("b")), Row("a"), {"0": {"top_k": 3}}, ("x",))
    assert json.loads(json.dumps(asdict(built))) == values
    assert build_config(Nested, values | {"best": None, "rows": []}, "here") == replace(built, best=None, rows=())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        *((content, "not valid JSON") for content in (b"", b'{"number": 3,}', b'{"number": 3', b"\xff\xfe\x00")),
        (b"[1]", "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found NoneType"),
        (b'"text"', "expected a JSON object, found str"),
        (None, "no such file"),
    ],
)
def test_a_broken_or_missing_file_and_a_folder_are_named(content, reason, tmp_path):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{path}: {reason}")):
        load_config(path, Everything)
    with pytest.raises((UserError, OSError), match=re.escape(str(tmp_path))):
        load_config(tmp_path, Everything)


PUBLIC = [
    (AutoencoderConfig, AUTOENCODER),
    (CodebookConfig, CODEBOOK),
    (TransformerConfig, TRANSFORMER),
    (GenerationConfig, GENERATION["0"]),
]


MAY_BE_0 = {"head_features", "num_enc_layers", "num_enc_res_blocks", "num_dec_res_blocks"}  # of the whole numbers
EDGES = {  # of the other ranges
    CodebookConfig: {"model_lr": [0.0, 1.0], "num_embeddings": [1]},
    TransformerConfig: {"sliding_window": [1], "dropout": [1.0], "condition_dropout": [1.0], "condition_noise": [1.0]},
    GenerationConfig: {"temperature": [0.0], "top_p": [0.0, 1.1]},
}


def refused(path, cls, values):
    path.write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        load_config(path, cls)
    assert str(error.value).startswith(f"{path}: "), values
    return str(error.value)


@pytest.mark.parametrize(("cls", "values"), PUBLIC)
def test_a_value_outside_the_range_of_its_option_is_refused_by_file_key_and_value(cls, values, tmp_path):
    """The public keys load. Refused are values beside each limit, another name, and what no number may be."""
    config, hints = build_config(cls, json.loads(json.dumps(values)), "here"), get_type_hints(cls)
    assert {key: getattr(config, key) for key in values} == values
    for key, spec in ((field.name, field.metadata["option"]) for field in fields(cls)):
        kind = _scalar(hints[key])
        steps = {"above": 0, "below": 0, "low": -1, "high": 1}  # in units that are small for a float
        limits = {name: getattr(spec, name) for name in steps if getattr(spec, name) is not None}
        wrong = [kind(limit + steps[name] * (1 if kind is int else 1e-9)) for name, limit in limits.items()]
        wrong += [math.nan, math.inf, -1.0] if kind is float else [-1] if kind is int else []
        wrong += [0] * (kind is int and key not in MAY_BE_0) + EDGES.get(cls, {}).get(key, [])
        wrong = ["swish", "", "SILU"] if spec.choices else wrong
        assert wrong or kind is bool or key.endswith("_path")
        for value in wrong:
            message = refused(tmp_path / "config.json", cls, values | {key: value})
            assert f"'{key}' is {value!r}, expected {spec.expectation(value) or ''}" in message


@pytest.mark.parametrize(
    ("cls", "changes", "expected"),
    [
        (AutoencoderConfig, {"image_channel": 1}, "'image_channel' is 1, expected 3"),
        (AutoencoderConfig, {"max_channel": 255}, "'max_channel' is 255, expected at least 256 ('min_channel')"),
        (CodebookConfig, {"image_H": 33}, "'image_H' 33 is not divisible by 'patch_H' 8"),
        (CodebookConfig, {"patch_W": 64}, "'image_W' 32 is not divisible by 'patch_W' 64"),
        (CodebookConfig, {"num_embeddings": 2**14 + 1}, "expected at most 16384 for patches of 256 numbers"),
        (CodebookConfig, {"num_embeddings": 4097, "patch_H": 32}, "is 4097, expected at most 4096 for patches of 1024"),
        (TransformerConfig, {"self_attn_heads": 3}, "'in_dim' is 512, expected a multiple of 'self_attn_heads' 3"),
        (TransformerConfig, {"cross_attn_heads": 5}, "'in_dim' is 512, expected a multiple of 'cross_attn_heads' 5"),
        (GenerationConfig, {"keep_beam": 33}, "'keep_beam' is 33, expected at most 'num_beam' 32"),
        (GenerationConfig, {"keep_beam": 32, "beam_width": 1, "guidance_scale": 2}, "'guidance_scale' is 2, expected"),
    ],
)
def test_values_that_do_not_go_together_are_named(cls, changes, expected, tmp_path):
    assert expected in refused(tmp_path / "config.json", cls, dict(PUBLIC)[cls] | changes)


RECIPES = ["demo-64", "gpu-128", "gpu-256", "laptop-128", "portrait-64x96", "reference-128", "tiny-32"]
FILES = ["autoencoder", "codebook_0", "codebook_1", "codebook_2", "codebook_cond", "generate", "recipe"]
FILES += ["transformer_0", "transformer_1", "transformer_2"]


def test_a_recipe_is_of_configs_by_its_name_and_of_any_folder_by_its_path(monkeypatch, tmp_path):
    shutil.copytree(CONFIGS / "tiny-32", tmp_path / "recipe")
    monkeypatch.chdir(tmp_path)  # as auto does that writes to "."
    assert Recipe.find(Path("recipe")).settings == Recipe.find("recipe/").settings == Recipe.find("tiny-32").settings
    with pytest.raises(UserError, match="no such recipe; configs/ holds: demo-64 "):
        Recipe.find("recipe")


def test_a_seed_is_that_of_every_step_that_has_one(tmp_path):
    steps = steps_of(RunFolder(tmp_path, 3), Recipe.find("demo-64", 7), tmp_path / "dataset.json")
    seeds = {step.name: step.options.get("seed") for step in steps}
    taken = {step.name: fields(import_module(step.script).Options) for step in steps}
    assert seeds == {name: 7 if "seed" in {field.name for field in of} else None for name, of in taken.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_and_its_parts_fit(name, tmp_path):
    assert sorted(path.parent.name for path in CONFIGS.glob("*/recipe.json")) == RECIPES
    folder = CONFIGS / name
    assert {path.stem for path in folder.glob("*.json")} == {*FILES}
    recipe, run = Recipe.find(name), RunFolder(tmp_path, 3)
    steps = steps_of(run, recipe, tmp_path / "dataset.json")
    check(recipe, steps, run, folder / "generate.json")
    configs = load_configs(recipe, steps)
    assert name.endswith(f"-{recipe.image_size}")
    assert [step.name for step in steps if step.section in recipe.settings] == [step.name for step in steps]
    assert "decoder" in recipe.settings
    lengths = [math.prod(configs[book.name].grid) for book in run.codebooks]
    assert lengths == sorted(set(lengths))
    stages = load_generation_config(folder / "generate.json")
    assert len(stages) == 3
    pruned = [book.pruned.relative_to(tmp_path).as_posix() for book in run.codebooks]
    for number, stage in enumerate(stages):
        assert stage.model_path == f"transformer_{number}/models_checkpoint/best.pt"
        assert (stage.lr_codebook_path, stage.hr_codebook_path) == (pruned[number], pruned[number + 1])
