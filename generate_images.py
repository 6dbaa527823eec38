"""Step 6: generate images with the whole cascade.

Reads the folder of a run or of an exported model, or a decoder and a JSON config that names each stage's model,
codebooks and sampling. Writes a grid for each stage (images/recon_model_Cond.png, recon_model_0.png, …), each final
image as its own PNG with its seed, settings and scores inside, and the tokens of all stages (tokens.npz) under
--out-dir. The set replaces the one before once it is complete; until then it is in a folder .next/ of its own, where
the same command goes on after a crash. A sampling option replaces that of the config: one value for all stages, or one
for each.

    python generate_images.py --model out/faces --num-images 25 --seed 0 --out-dir out/faces/generated
"""

import utils.runtime.threads  # noqa: F401

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from models.autoencoder import Autoencoder
from models.cascade import Cascade
from models.requests import (
    SAMPLING_KEYS,
    Request,
    change_sampling,
    config_of,
    load_generation_config,
    sampling_of,
    settings_text,
)
from models.som.pictures import on_map
from utils.core.files import UserError, replace_file
from utils.core.options import ScriptOptions, SpeedOptions, option, parse_options, repeated
from utils.core.provenance import digest
from utils.core.replace_set import NEXT, finish_set, replace_set
from utils.data.checksums import checksum
from utils.data.images import grid, save_animation, save_grid, save_image, save_walk
from utils.data.journal import Journal
from utils.runs.folders import OutputFolder
from utils.runs.manifest import attempt, note
from utils.runtime import cli
from utils.runtime.device import choose_device, choose_dtype
from utils.runtime.distributed import barrier, is_main
from utils.sampling import SamplingConfig

log = logging.getLogger(__name__)

GRID = 100  # images in a grid, at most
ANIMATED = 16  # images in an animation, at most
STEPS, SECONDS = 64, 8  # pictures of a stage in an animation, at most, and how long it runs
SamplingOptions = repeated(SamplingConfig, "SamplingOptions", is_fixed=True)  # a value for all stages, or one for each


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """What to generate with which model; of several values, image i takes value i modulo their number."""

    model: Path | None = option("folder of a run, or of an exported model", None)
    decoder_path: Path | None = option("checkpoint of the autoencoder", None)
    config_path: Path | None = option("JSON config of the generation", None, short="-c")
    condition_index: tuple[int, ...] = option(
        "units of the condition codebook", (), low=0, exclusive="condition", is_fixed=True
    )
    condition_image: tuple[Path, ...] = option("images whose conditions to take", (), exclusive="condition")
    condition_atlas: bool = option(
        "one image for each unit of the condition codebook, from the same draws, and all of them at their places",
        False,
        exclusive="condition",
        is_fixed=True,
    )
    condition_walk: tuple[str, ...] = option(
        "two units of the condition codebook, or two images: walk from one to the other", (), exclusive="condition"
    )
    steps: int = option("images of a walk", 24, low=2, is_fixed=True)
    label: tuple[str, ...] = option(
        "labels of each image, for a base stage with `use_labels`: `cat`, `cat+night` for both, or an empty text for "
        "none; without the flag those of training images, drawn in proportion",
        (),
        is_fixed=True,
    )
    init_image: tuple[Path, ...] = option("images to start from, with --keep-rows or --from-stage", ())
    keep_rows: int = option(
        "rows of the base stage's grid to keep, and what they cover in finer grids", 0, low=0, is_fixed=True
    )
    from_stage: int = option(
        "first stage to write again; coarser tokens are those of --init-image", 0, low=0, is_fixed=True
    )

    def __post_init__(self) -> None:
        if (self.decoder_path is None, self.config_path is None) != (self.model is not None,) * 2:
            raise UserError("give --model, or --decoder-path and --config-path")
        if bool(self.init_image) != bool(self.keep_rows or self.from_stage):
            raise UserError("--init-image needs --keep-rows or --from-stage, and each of these needs --init-image")
        if len(self.condition_walk) not in (0, 2):
            raise UserError(f"--condition-walk has {len(self.condition_walk)} ends: give two units, or two images")
        if self.init_image and (self.condition_atlas or self.condition_walk):
            raise UserError("--init-image does not go with --condition-atlas or --condition-walk: leave one out")


@dataclass(frozen=True, kw_only=True)
class Options(SamplingOptions, RequestOptions, SpeedOptions, ScriptOptions):
    num_images: int = option(
        "images to generate, unless an atlas or a walk says how many", 25, low=1, high=10**6, is_fixed=True
    )
    batch_size: int = option("images generated at once", 25, low=1)
    seed: int = option("seed of all draws; the first images stay the same if more are asked for", 0, is_fixed=True)
    animate: str | None = option(
        "also write the pictures filling in, or the walk", None, choices=("webp", "gif"), const="webp", is_fixed=True
    )


def main(argv: list[str] | None = None) -> None:
    generate_images(parse_options(Options, __doc__, argv))


@torch.no_grad()
def generate_images(options: Options) -> None:
    """Generate the pictures that the options ask for; raises `UserError` if the model cannot."""
    with attempt(__file__, options) as attempted:
        device = choose_device(options.device)
        cascade = load_cascade(options, device)
        request, number = make_request(options, cascade)
        inputs = inputs_of(cascade, request)
        attempted.check_repeats(inputs)

        attempted.begin(device, config_of(cascade.configs), inputs, cascade.files)
        if is_main():
            replace_set(options.out_dir)  # of a process that died while it did so
        barrier()
        speed = {"batch_size": options.batch_size, "compile": options.compile, "device": str(device)}
        generate(cascade, request, number, options, attempted.key(inputs) | speed)


def load_cascade(options: Options, device: torch.device) -> Cascade:
    speed = {"batch_size": options.batch_size, "compiled": options.compile}
    if options.model is not None:
        return Cascade.load(options.model, device=str(device), precision=options.precision, **speed)
    decoder = Autoencoder.load(options.decoder_path).to(device)
    configs, folder = load_generation_config(options.config_path), options.config_path.parent
    return Cascade(configs, folder, decoder, device, choose_dtype(device, options.precision), **speed)


def inputs_of(cascade: Cascade, request: Request) -> dict[str, str]:
    given = [request.conditions, *(tokens.tolist() for tokens in request.init_tokens), *map(asdict, request.places)]
    sampling = [sampling_of(config) for config in request.sampling]
    return cascade.fingerprints | {"sampling": digest(sampling), "given units or images": digest(given)}


def generate(cascade: Cascade, request: Request, number: int, options: Options, key: dict) -> None:
    """Generate a set of pictures beside the one before, from where one of this key was left, and replace that.

    Each picture has its settings and scores as its text chunks.
    """
    folder, new = OutputFolder(options.out_dir), OutputFolder(options.out_dir / NEXT)
    journal = Journal(new.unfinished, key)
    note(folder, goes_on=bool(journal.entries))
    if not journal.entries and is_main():
        shutil.rmtree(new.images, ignore_errors=True)  # those of another key, perhaps more
    starts = range(0, number, options.batch_size)
    missing = journal.missing({str(start): start for start in starts})
    names = ["condition", *(f"stage_{stage}" for stage in range(len(cascade.stages)))]
    for start, tokens, scores in cascade.batches(request, number, options.out_dir.name, missing):
        files = [new.tokens_of(start)]
        arrays = {name: part.cpu().numpy().astype(np.uint16) for name, part in zip(names, tokens, strict=True)}
        save_arrays(arrays | {"scores": scores.numpy()}, files[0], durable=False)
        labels = cascade.labels_of(request, range(start, start + len(scores)))
        images = zip(cascade.decode(tokens[-1]).cpu(), labels, scores.tolist(), strict=True)
        for index, (image, label, image_scores) in enumerate(images, start):
            files.append(new.final_image(index))
            save_image(image, files[-1], settings_text(request, index, label, image_scores), durable=False)
        places = [(path.relative_to(new.path).as_posix(), None, checksum(path.read_bytes())) for path in files]
        journal.add({str(start): {"places": places}})
    journal.collect()
    if not is_main():
        return
    parts = []
    for start in starts:
        with np.load(new.tokens_of(start)) as archive:
            parts.append(dict(archive))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    labels = cascade.labels_of(request, range(min(number, GRID)))
    show(cascade, arrays, labels, new, options)
    save_arrays(arrays, new.tokens)
    now, before = ([path.relative_to(each.path).as_posix() for path in each.pictures] for each in (new, folder))
    finish_set(folder.path, now, new.tokens.name, before)
    new.unfinished.unlink()
    replace_set(folder.path)
    if None not in labels:
        log.info("labels: %s", ", ".join(label or "none" for label in labels))
    for stage, scores in enumerate(arrays["scores"].T.tolist()):
        log.info("scores of stage %d: %s", stage, " ".join(f"{score:.1f}" for score in scores[:GRID]))
    log.info("wrote %d images, a grid for each stage and tokens.npz to %s", number, options.out_dir)


def make_request(options: Options, cascade: Cascade) -> tuple[Request, int]:
    changes = {key: getattr(options, key) for key in SAMPLING_KEYS if getattr(options, key) is not None}
    conditions, places, number = options.condition_index, (), options.num_images
    if options.condition_image:
        conditions = tuple(cascade.tokens(options.condition_image)[0].flatten().tolist())
    elif options.condition_walk:
        number = options.steps
        ends = (int(end) if end.isdecimal() and len(end) < 10 else end for end in options.condition_walk)
        places = cascade.way(*ends, number)
    elif options.condition_atlas:
        number = len(cascade.codebooks[0])
        conditions = tuple(range(number))
    request = Request(
        seed=options.seed,
        conditions=conditions,
        places=places,
        labels=options.label,
        init_tokens=cascade.tokens(options.init_image) if options.init_image else (),
        from_stage=options.from_stage,
        keep_rows=options.keep_rows,
        sampling=change_sampling(cascade.configs, **changes),
        same_draws=options.condition_atlas or bool(places),
    )
    cascade.check(request)
    return request, number


def save_arrays(arrays: dict[str, np.ndarray], path: Path, *, durable: bool = True) -> None:
    """Write tokens (N, T) of all stages and scores (N, stages) as a NumPy archive; see `replace_file`."""
    with replace_file(path, durable=durable) as temporary:
        np.savez_compressed(temporary, **arrays)


def show(
    cascade: Cascade, arrays: dict[str, np.ndarray], labels: list[str | None], folder: OutputFolder, options: Options
) -> None:
    """Write a grid of the condition and of each stage, and the atlas and the animation if they are asked for.

    A grid holds the labels of its images, if the model knows any, as JSON in a text chunk.
    """
    text = None if None in labels else {"labels": json.dumps(labels)}
    parts = [part.astype(np.int64) for name, part in arrays.items() if name != "scores"]
    tokens = [torch.from_numpy(part).to(cascade.device) for part in parts]
    for level, part in enumerate(tokens):
        save_grid(cascade.decode_all(part[:GRID], level), folder.grid(level), text=text)
    if options.condition_atlas:
        save_image(on_map(cascade.decode_all(tokens[-1]), cascade.codebooks[0]), folder.condition_atlas)
    if options.animate and options.condition_walk:
        save_walk(cascade.decode_all(tokens[-1]), folder.animation(options.animate, "walk"))
    elif options.animate:
        frames = cascade.filling_in([part[:ANIMATED] for part in tokens], STEPS)
        save_animation([grid(frame.cpu()) for frame in frames], folder.animation(options.animate), SECONDS)


if __name__ == "__main__":
    cli.run(main)
