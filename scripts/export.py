"""Export a trained run: the smallest set of files that generates its pictures, in a folder to share.

Writes the autoencoder, the codebooks and the stages as safetensors, config.json, generate.json, README.md, which is a
model card for the Hugging Face Hub, and samples.png, drawn with the exported model. generate_images.py, Cascade.load,
scripts.evaluate and scripts.playground take such a folder wherever they take that of a run. Nothing is uploaded.

    python -m scripts.export out/demo-avatars faces --dtype bfloat16
"""

import utils.runtime.threads  # noqa: F401

import dataclasses
import json
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from models import autoencoder, codebook
from models.cascade import Cascade
from models.requests import sampling_of
from models.stage import KIND
from reporting.card import make_card
from scripts.demo_data import SOURCES
from utils.core.config import read_json
from utils.core.files import UserError, write_file
from utils.core.lock import lock
from utils.core.options import option, parse_options
from utils.core.provenance import same_key
from utils.core.replace_set import NEXT, finish_set, replace_set
from utils.data.images import save_grid
from utils.data.records import read_dataset
from utils.data.split import Bounds
from utils.runs.checkpoint import fingerprint, load_checkpoint
from utils.runs.exported import DTYPES, FORMAT, FORMAT_VERSION, ModelConfig, Part, State, write_weights
from utils.runs.folders import CONDITION, CONFIG, SUFFIX, ExportedFolder, RunFolder
from utils.runtime import cli

PACKAGES = ("torch", "safetensors")
SAMPLES = 25


@dataclass(frozen=True, kw_only=True)
class Options:
    run_dir: Path = option("folder that scripts.train_cascade wrote", positional=True)
    out_dir: Path = option("folder to write to", positional=True)
    dtype: str = option(
        "type of the weights of autoencoder and stages; codebooks stay float32, or tokens would change",
        "float32",
        choices=tuple(DTYPES),
    )
    device: str = option("for the samples: auto (cuda, mps or cpu), or a torch device", "auto")
    overwrite: bool = option("replace the model that is in OUT_DIR, and its README.md", False)


def main(argv: list[str] | None = None) -> None:
    options = parse_options(Options, __doc__, argv)
    run, out = RunFolder.open(options.run_dir), options.out_dir
    if isinstance(run, ExportedFolder):
        raise UserError(f"{run.path}: is an exported model; export the run that it is from")
    model = Cascade.load(options.run_dir, device="cpu", precision="fp32")  # all files are there and belong together
    with lock(out):
        new = ExportedFolder(out / NEXT)
        replace_set(out)  # of a process that died while it did so
        shutil.rmtree(new.path, ignore_errors=True)
        before = weights_before(out)
        if before and not options.overwrite:
            if not holds(ExportedFolder(out), run, model, options.dtype):
                raise UserError(f"{out}: holds a model; give another folder, or --overwrite to replace it")
            print(f"{out}: holds this model already: nothing to do")
            return
        new.path.mkdir()
        try:
            config = write_model(new, run, model, options.dtype)
            exported = Cascade.load(new.path, device=options.device)
            save_grid(exported.sample(SAMPLES, as_tensor=True), new.samples)
            info = read_dataset(run.images, ())[1] if run.images.is_file() else {}
            source = SOURCES.get(info.get("source"))  # of one of the demo's data sets
            licence = source.LICENCE if source else None
            card = make_card(run, exported, config, out.resolve().name, licence)
            new.card.write_text(card, encoding="utf-8")
        except BaseException:
            shutil.rmtree(new.path, ignore_errors=True)
            raise
        finish_set(out, [path.name for path in new.path.iterdir()], CONFIG, before)
        replace_set(out)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB; look at {out / new.samples.name}")
    if licence is None:
        print(
            f"{out / new.card.name}: fill in where the training images are from, and their licence, before you share it"
        )


def weights_before(out: Path) -> list[str]:
    """The files of weights of the model that the folder holds, if it does.

    Raises `UserError` if it holds anything else; hidden files may stay.
    """
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if not names:
        return []
    if CONFIG not in names:
        raise UserError(f"{out}: holds other files ({names[0]}, …); give a new folder")
    config = read_json(out / CONFIG)
    if config.get("format") != FORMAT:
        raise UserError(f"{out / CONFIG}: is not of a model that scripts.export wrote; give a new folder")
    return [name for name in config.get("parts", {}) if Path(name).name == name and name.endswith(SUFFIX)]


def holds(folder: ExportedFolder, run: RunFolder, model: Cascade, dtype: str) -> bool:
    """Whether the folder holds the model that would be written, whole: as a finished export leaves it."""
    if not all(path.is_file() for path in (folder.generation, folder.samples, folder.card)):
        return False
    config = ModelConfig.load(folder.config)
    before = {"dtype": config.dtype, "parts": config.parts, "stages": read_json(folder.generation)}
    parts = {name: dataclasses.asdict(part) for name, _, part in parts_of(run, model, dtype)}
    if not same_key(before, {"dtype": dtype, "parts": parts, "stages": stages_of(model)}):
        return False
    Cascade.load(folder.path, device="cpu")  # reads and compares all weights
    return True


def parts_of(run: RunFolder, model: Cascade, dtype: str) -> Iterator[tuple[str, State, Part]]:
    sources = [("autoencoder", autoencoder.KIND, run.decoding.latest)]
    sources.append((f"codebook_{CONDITION}", codebook.KIND, run.path / model.configs[0].lr_codebook_path))
    for number, stage in enumerate(model.configs):
        sources.append((f"codebook_{number}", codebook.KIND, run.path / stage.hr_codebook_path))
        sources.append((f"transformer_{number}", KIND, run.path / stage.model_path))
    for name, kind, path in sources:
        content = load_checkpoint(path, kind)
        state = content.get("ema") or content["model"]
        if kind != codebook.KIND:
            state = rounded(state, DTYPES[dtype], path)
        part = Part(
            kind,
            sum(value.numel() for value in state.values() if value.is_floating_point()),
            content["config"],
            content["fingerprint"],
            fingerprint(state),
            content["trained_from"],
            tuple(Bounds.saved(content)),
            content.get("data"),
            model.decoder.encoder_fingerprint if kind == autoencoder.KIND else None,
            content.get("flip", False),
        )
        yield name + SUFFIX, state, part


def stages_of(model: Cascade) -> dict[str, dict]:
    return {
        str(number): {
            "model_path": f"transformer_{number}{SUFFIX}",
            "lr_codebook_path": f"codebook_{number - 1 if number else CONDITION}{SUFFIX}",
            "hr_codebook_path": f"codebook_{number}{SUFFIX}",
            **sampling_of(stage),
        }
        for number, stage in enumerate(model.configs)
    }


def write_model(new: ExportedFolder, run: RunFolder, model: Cascade, dtype: str) -> ModelConfig:
    parts = {}
    for name, state, part in parts_of(run, model, dtype):
        write_weights(new.path / name, state)
        parts[name] = dataclasses.asdict(part)
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    config = ModelConfig(FORMAT, FORMAT_VERSION, dtype, model.image_size, versions, parts)
    for path, content in {new.config: dataclasses.asdict(config), new.generation: stages_of(model)}.items():
        write_file(path, json.dumps(content, indent=4) + "\n")
    return config


def rounded(state: dict[str, torch.Tensor], dtype: torch.dtype, path: Path) -> dict[str, torch.Tensor]:
    """The same tensors with those of floats in another dtype; raises `UserError` where one has no number there."""
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    for name, value in state.items():
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} holds weights that are no numbers as {dtype}; give another --dtype")
    return state


if __name__ == "__main__":
    cli.run(main)
