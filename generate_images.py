"""Step 6: generate images with the whole cascade.

Reads the decoder and a JSON config that names each stage's model, codebooks and sampling; writes a grid for each stage
(images/recon_model_Cond.png, recon_model_0.png, …), each final image as its own PNG with its seed, settings and scores
inside, and the tokens of all stages (tokens.npz) under --out-dir. The set replaces the one before once it is complete;
until then it is in a folder .next/ of its own, where the same command goes on after a crash.

    python generate_images.py --decoder-path out/faces/decoder/models_checkpoint/latest.pt \
        --config-path out/faces/generate.json --num-images 25 --seed 0 --out-dir out/faces/generated
"""

import utils.threads  # noqa: F401

import dataclasses
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.autoencoder import Autoencoder
from models.generation import Cascade
from models.requests import Request, load_generation_config, pick
from utils import cli
from utils.attempt import attempt
from utils.device import choose_device, choose_dtype
from utils.distributed import is_main, own, wait
from utils.files import UserError, replace_file
from utils.images import grid, read_image, save_animation, save_grid, save_image
from utils.index import checksum
from utils.journal import Journal
from utils.options import SpeedOptions, StepOptions, option, optional, parse_options
from utils.picture_set import replace_set
from utils.progress import progress
from utils.run_folder import CONDITION, StepFolder
from utils.sampling import SamplingConfig

log = logging.getLogger(__name__)

GRID = 100  # images in a grid, at most
ANIMATED = 16  # images in an animation, at most
STEPS, SECONDS = 64, 8  # pictures of a stage in an animation, at most, and how long it runs
SAMPLING_KEYS = [field.name for field in dataclasses.fields(SamplingConfig)]
SamplingOptions = optional(
    SamplingConfig, "SamplingOptions", "Sampling of all stages, instead of the config's", is_fixed=True
)


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """What to generate; of several values, image i takes number i, and from the first again."""

    condition_index: tuple[int, ...] = option(
        "units of the condition codebook", (), low=0, exclusive="condition", is_fixed=True
    )
    condition_image: tuple[Path, ...] = option("images whose conditions to take", (), exclusive="condition")
    label: tuple[str, ...] = option("labels of the data set, for a base stage with `use_labels`", (), is_fixed=True)
    init_image: tuple[Path, ...] = option("images to start from, with --keep-rows or --from-stage", ())
    keep_rows: int = option(
        "rows of the base stage's grid to keep, and what they cover in finer grids", 0, low=0, is_fixed=True
    )
    from_stage: int = option(
        "first stage to write anew; coarser tokens are those of --init-image", 0, low=0, is_fixed=True
    )

    def __post_init__(self) -> None:
        if bool(self.init_image) != bool(self.keep_rows or self.from_stage):
            raise UserError(
                "--init-image goes with --keep-rows or --from-stage: give what to keep of the images, and them"
            )


@dataclass(frozen=True, kw_only=True)
class Options(SamplingOptions, RequestOptions, SpeedOptions, StepOptions):
    """Options of generate_images.py."""

    decoder_path: Path = option("checkpoint of the autoencoder")
    config_path: Path = option("JSON config of the generation", short="-c")
    num_images: int = option("images to generate", 25, low=1, is_fixed=True)
    batch_size: int = option("images generated at once", 25, low=1)
    seed: int = option("one seed, the same pictures, however many are asked for", 0, is_fixed=True)
    animate: str | None = option(
        "also write the pictures filling in", None, choices=("webp", "gif"), const="webp", is_fixed=True
    )


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    options = parse_options(Options, __doc__, argv)
    with attempt(__file__, options) as attempted:
        device = choose_device(options.device)
        decoder = Autoencoder.load(options.decoder_path).to(device)
        changes = {key: getattr(options, key) for key in SAMPLING_KEYS if getattr(options, key) is not None}
        configs = load_generation_config(options.config_path, **changes)
        folder, dtype = options.config_path.parent, choose_dtype(device, options.precision)
        cascade = Cascade(configs, folder, decoder, device, dtype, options.batch_size, options.compile)
        request = make_request(options, cascade)
        inputs = inputs_of(cascade, request)
        attempted.check_repeats(inputs)

        attempted.begin(device, inputs=inputs)
        if is_main():
            replace_set(StepFolder(options.out_dir))  # of a process that died while it did so
        wait()
        speed = {"batch_size": options.batch_size, "compile": options.compile, "device": str(device)}
        generate(cascade, request, options, attempted.key(inputs) | speed)


def inputs_of(cascade: Cascade, request: Request) -> dict[str, str]:
    """Fingerprints of what the pictures are made from, besides the options."""
    inputs = {"autoencoder": cascade.decoder.fingerprint}
    for level, codebook in zip((CONDITION, *range(len(cascade.stages))), cascade.codebooks, strict=True):
        inputs[f"codebook {level}"] = codebook.fingerprint
    inputs |= {f"stage {number}": stage.fingerprint for number, stage in enumerate(cascade.stages)}
    given = [request.conditions, *(tokens.tolist() for tokens in request.init_tokens)]
    for name, value in {"sampling": sampling_of(cascade), "--condition-image or --init-image": given}.items():
        inputs[name] = checksum(json.dumps(value).encode())
    return inputs


def sampling_of(cascade: Cascade) -> list[dict]:
    """How each stage samples."""
    return [{key: getattr(config, key) for key in SAMPLING_KEYS} for config in cascade.configs]


def generate(cascade: Cascade, request: Request, options: Options, key: dict) -> None:
    """Make a set of pictures beside the one before, from where one of this key was left, and replace that."""
    folder = StepFolder(options.out_dir)
    new, starts = folder.next, range(0, options.num_images, options.batch_size)
    write_batches(cascade, request, starts, options, key)
    if not is_main():
        return
    parts = [read_arrays(new.tokens_of(start)) for start in starts]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    show(cascade, arrays, new, options.animate)
    os.sync()  # the pictures, all at once
    save_arrays(arrays, new.tokens)
    replace_set(folder)
    for number, scores in enumerate(arrays["scores"].T.tolist()):
        log.info("scores of stage %d: %s", number, " ".join(f"{score:.1f}" for score in scores[:GRID]))
    log.info("wrote %d images, a grid for each stage and tokens.npz to %s", options.num_images, options.out_dir)


def write_batches(cascade: Cascade, request: Request, starts: range, options: Options, key: dict) -> None:
    """Write the final images and the tokens of each batch, unless one of this key is there."""
    new = StepFolder(options.out_dir).next
    journal = Journal(new.unfinished, key)
    if not journal.entries and is_main():
        shutil.rmtree(new.images, ignore_errors=True)  # those of another key, perhaps more
    mine = own(journal.missing({str(start): start for start in starts}))
    with progress(total=cascade.length * len(mine), unit="token", desc=options.out_dir.name) as bar:
        for start in mine:
            # The last batch is generated in full as well, so the number of images never changes a picture.
            tokens, scores = cascade.generate(request, range(start, start + options.batch_size), bar.update)
            number = options.num_images - start  # of those that are kept, unless it is the whole batch
            tokens, scores = [part[:number] for part in tokens], scores[:number]
            files = save_images(cascade, request, start, tokens[-1], scores, new)
            files.append(save_arrays(arrays_of(tokens, scores), new.tokens_of(start), durable=False))
            sums = {file.relative_to(new.path).as_posix(): checksum(file.read_bytes()) for file in files}
            journal.add({str(start): {"files": sums}})
    journal.collect()


def make_request(options: Options, cascade: Cascade) -> Request:
    """What the options ask of the cascade."""
    conditions, init_tokens = options.condition_index, ()
    if options.condition_image:
        conditions = tuple(tokens_of(options.condition_image, cascade)[0].flatten().tolist())
    if options.init_image:
        init_tokens = tokens_of(options.init_image, cascade)
    request = Request(options.seed, conditions, options.label, init_tokens, options.from_stage, options.keep_rows)
    cascade.check(request)
    return request


def tokens_of(paths: tuple[Path, ...], cascade: Cascade) -> tuple[torch.Tensor, ...]:
    """The tokens of image files, whose centres are scaled to the size of the cascade's images."""
    return cascade.tokens(torch.stack([read_image(path, cascade.image_size) for path in paths]))


def save_images(
    cascade: Cascade, request: Request, start: int, tokens: torch.Tensor, scores: torch.Tensor, folder: StepFolder
) -> list[Path]:
    """Write the final images of a batch, from their last stage's tokens, each with what made it as its text chunks."""
    sampling, paths = sampling_of(cascade), []
    pictures = cascade.decode(tokens, -1).cpu()
    for index, (image, image_scores) in enumerate(zip(pictures, scores.tolist(), strict=True), start):
        text = {
            "seed": request.seed,
            "image": index,
            "stages": sampling,
            "label": pick(request.labels, index),
            "from_stage": request.from_stage,
            "keep_rows": request.keep_rows,
            "scores": [None if np.isnan(score) else round(score, 3) for score in image_scores],
        }
        paths.append(folder.final_image(index))
        save_image(image, paths[-1], {key: json.dumps(value) for key, value in text.items()}, durable=False)
    return paths


def arrays_of(tokens: list[torch.Tensor], scores: torch.Tensor) -> dict[str, np.ndarray]:
    """The content of tokens.npz: the tokens of all stages, each (N, T), and their scores (N, stages)."""
    names = ["condition", *(f"stage_{number}" for number in range(len(tokens) - 1))]
    arrays = {name: part.cpu().numpy().astype(np.uint16) for name, part in zip(names, tokens, strict=True)}
    return arrays | {"scores": scores.numpy()}


def save_arrays(arrays: dict[str, np.ndarray], path: Path, *, durable: bool = True) -> Path:
    """Write a NumPy archive; see `replace_file`."""
    with replace_file(path, durable=durable) as temporary:
        np.savez_compressed(temporary, **arrays)
    return path


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `save_arrays` has written."""
    with np.load(path) as archive:
        return dict(archive)


def show(cascade: Cascade, arrays: dict[str, np.ndarray], folder: StepFolder, animate: str | None) -> None:
    """Write a grid of the condition and of each stage, and the animation if it is asked for."""
    parts = [part[:GRID].astype(np.int64) for name, part in arrays.items() if name != "scores"]
    tokens = [torch.from_numpy(part).to(cascade.device) for part in parts]
    for level, part in enumerate(tokens):
        save_grid(cascade.decode(part, level).cpu(), folder.grid(level))
    if animate:
        frames = cascade.filling_in([part[:ANIMATED] for part in tokens], STEPS)
        save_animation([grid(frame.cpu()) for frame in frames], folder.animation(animate), SECONDS)


if __name__ == "__main__":
    cli.run(main)
