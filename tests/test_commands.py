"""docs/commands.md, the contract: its six commands run as they stand there, and each flag and key is one of today."""

import importlib
import json
import re
import shlex
from dataclasses import fields

import pytest
import torch
from PIL import Image, ImageDraw
from tinydb import TinyDB

from models.autoencoder import Autoencoder, AutoencoderConfig
from models.codebook import Codebook, CodebookConfig
from models.requests import GenerationConfig, load_generation_config
from models.stage import Stage, StageConfig
from models.transformer import TransformerConfig
from tests.helpers.scripts import run_main
from tests.helpers.stages import zeros
from utils.core.config import build_config
from utils.core.options import make_parser
from utils.data.images import read_image
from utils.runs.chain import ROOT

PAGE = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
(COMMANDS,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [shlex.split(block.replace("\\\n", "")) for block in COMMANDS.strip().split("\n\n")]
COMMANDS = {words[1].removesuffix(".py"): words[2:] for words in COMMANDS}
DATASET, *CONFIGS = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))
AUTOENCODER, CODEBOOK, TRANSFORMER, GENERATION = CONFIGS
KEYS = {AutoencoderConfig: AUTOENCODER, CodebookConfig: CODEBOOK, TransformerConfig: TRANSFORMER}
KEYS |= {GenerationConfig: GENERATION["0"]}
SMALL_AUTOENCODER = {"model_lr": 0.01, "min_channel": 8, "max_channel": 16, "num_layers": 1, "latent_channel": 2}
SMALL_TRANSFORMER = {"in_dim": 16, "hidden_dim": 32, "self_attn_heads": 2, "cross_attn_heads": 4, "sliding_window": 8}
SMALL_TRANSFORMER |= {"num_enc_layers": 1, "num_dec_layers": 2}


@pytest.mark.parametrize("step", COMMANDS)
def test_every_flag_of_a_documented_command_is_one_of_the_script(step):
    parser = make_parser(importlib.import_module(step).Options, "")
    known = {name for action in parser._actions for name in action.option_strings}
    for flag in (word for word in COMMANDS[step] if word.startswith("--")):
        assert flag in known, f"{step}.py has lost {flag}, of a documented command: see docs/commands.md"


@pytest.mark.parametrize("config", KEYS)
def test_every_documented_key_is_one_of_its_config(config):
    known = {field.name for field in fields(config)}
    for key in KEYS[config]:
        assert key in known, f"{config.__name__} has lost {key!r}, of a documented command: see docs/commands.md"


@pytest.fixture
def dataset(tmp_path):
    """Discs of many places and colours, 16×16 pixels, in a file that TinyDB has written."""
    with TinyDB(tmp_path / "dataset.json") as database:
        for number in range(120):
            image = Image.new("RGB", (16, 16), (number * 2, 90, 255 - number * 2))
            left, top = number % 7, number % 5
            ImageDraw.Draw(image).ellipse((left, top, left + 8, top + 8), (255, number, 40))
            image.save(tmp_path / f"{number}.png")
            database.insert(DATASET["_default"]["1"] | {"image_fpath": f"{number}.png"})
    return tmp_path / "dataset.json"


def test_the_commands_as_they_stand_lead_from_pictures_to_pictures(dataset, tmp_path, write_json):
    def run(step, name, config=None, leave_out=(), **paths):
        """Run a command with its values; the words in capitals are `paths` by their flags. Return what it wrote to."""
        paths |= {"out_dir": tmp_path / name}
        if config is not None:
            paths["config_path"] = write_json(tmp_path / f"{name}.json", config)
        words = [word for word in COMMANDS[step] if word not in leave_out]
        for number, word in enumerate(words):
            if word.isupper():
                words[number] = str(paths.pop(words[number - 1].removeprefix("--").replace("-", "_")))
        assert not paths
        run_main(importlib.import_module(step).main, *words)
        return tmp_path / name

    def checkpoint(folder, name="latest"):
        return folder / f"models_checkpoint/{name}.pt"

    decoder = checkpoint(run("train_autoencoder", "ae", AUTOENCODER | SMALL_AUTOENCODER, dataset_path=dataset))
    maps = run("generate_fmap_dataset", "maps", dataset_path=dataset, model_path=decoder) / "dataset.json"
    books = {}
    for name, side in {"cond": 8, "0": 4, "1": 2, "2": 1}.items():
        sizes = {"image_H": 8, "image_W": 8, "image_C": 2, "patch_H": side, "patch_W": side, "num_embeddings": 4}
        book = run("train_codebook", f"book_{name}", CODEBOOK | sizes, dataset_path=maps, decoder_path=decoder)
        books[name] = checkpoint(book)
    pruned = run("prune_codebook", "pruned", dataset_path=maps, codebook_path=books["2"])
    books["2"], stages = checkpoint(pruned, "pruned_codebook"), {}
    for coarse, name in (("cond", "0"), ("0", "1"), ("1", "2")):
        paths = {"dataset_path": maps, "decoder_path": decoder}
        paths |= {"lr_codebook_path": books[coarse], "hr_codebook_path": books[name]}
        more = {} if name == "0" else {"leave_out": ["--train-base-model"]}
        stage = run("train_quantized_transformer", f"stage_{name}", TRANSFORMER | SMALL_TRANSFORMER, **more, **paths)
        keys = {"model_path": checkpoint(stage), "lr_codebook_path": books[coarse], "hr_codebook_path": books[name]}
        stages[name] = GENERATION[name] | {key: str(path) for key, path in keys.items()}
    pictures = run("generate_images", "pictures", stages, decoder_path=decoder) / "images"
    names = ("Cond", "0", "1", "2")
    grids = [read_image(pictures / f"recon_model_{name}.png") for name in names]
    assert {tuple(grid.shape) for grid in grids} == {(3, 2 * 18 + 2, 3 * 18 + 2)}  # five pictures in two rows
    assert all(grid.std() > 0.05 for grid in grids)


def test_the_documented_values_build_their_models(tmp_path, write_json):
    autoencoder = Autoencoder(build_config(AutoencoderConfig, AUTOENCODER, "page"))
    fmap = autoencoder.encode(torch.zeros(1, 3, 16, 16))
    assert fmap.shape == (1, 4, 4, 4) and autoencoder.decode(fmap).shape == (1, 3, 16, 16)
    fine = Codebook(build_config(CodebookConfig, CODEBOOK, "page"))
    coarse = Codebook(
        build_config(CodebookConfig, CODEBOOK | {"patch_H": 32, "patch_W": 32, "num_embeddings": 4}, "page")
    )
    transformer = build_config(TransformerConfig, TRANSFORMER, "page")
    for is_base, before in ((True, coarse), (False, fine)):
        config = StageConfig.between(transformer, before, fine, tmp_path, is_base)
        assert torch.isfinite(Stage(config)(*zeros(config, 1))["loss"])
    stages = load_generation_config(write_json(tmp_path / "generate.json", GENERATION))
    assert [(each.beam_width, each.num_beam, each.temperature) for each in stages] == [
        (16, 32, 1.5),
        (8, 4, 1),
        (8, 4, 1.5),
    ]
