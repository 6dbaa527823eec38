"""Step 6: generate images with the whole cascade.

Reads the decoder and a JSON config that names each stage's model, codebooks and sampling; writes a grid for each stage
(images/recon_model_Cond.png, recon_model_0.png, …), each final image as its own PNG with its seed, settings and scores
inside, and the tokens of all stages (tokens.npz) under --out-dir.

    python generate_images.py --decoder-path out/faces/autoencoder/models_checkpoint/latest.pt \
        --config-path out/faces/generate.json --num-images 25 --seed 0 --out-dir out/faces/generated
"""

import utils.threads  # noqa: F401

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.autoencoder import Autoencoder
from models.generation import Cascade, Request, load_generation_config, pick
from utils import cli
from utils.attempt import attempt
from utils.device import choose_device, choose_dtype
from utils.files import UserError, remove_unnamed, replace_file
from utils.images import grid, read_image, save_animation, save_grid, save_image
from utils.options import SpeedOptions, StepOptions, option, optional, parse_options
from utils.run_folder import StepFolder
from utils.sampling import SamplingConfig

log = logging.getLogger(__name__)

GRID = 100  # images in a grid, at most
ANIMATED = 16  # images in an animation, at most
STEPS, SECONDS = 64, 8  # pictures of a stage in an animation, at most, and how long it runs
SAMPLING_KEYS = [field.name for field in dataclasses.fields(SamplingConfig)]
SamplingOptions = optional(SamplingConfig, "SamplingOptions", "Sampling of all stages, instead of the config's")


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """What to generate; of several values, image i takes number i, and from the first again."""

    condition_index: tuple[int, ...] = option("units of the condition codebook", (), low=0, exclusive="condition")
    condition_image: tuple[Path, ...] = option("images whose conditions to take", (), exclusive="condition")
    label: tuple[str, ...] = option("labels of the data set, for a base stage with `use_labels`", ())
    init_image: tuple[Path, ...] = option("images to start from, with --keep-rows or --from-stage", ())
    keep_rows: int = option("rows of the base stage's grid to keep, and what they cover in finer grids", 0, low=0)
    from_stage: int = option("first stage to write anew; coarser tokens are those of --init-image", 0, low=0)

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
    num_images: int = option("images to generate", 25, low=1)
    batch_size: int = option("images generated at once", 25, low=1)
    seed: int = option("one seed, the same pictures, however many are asked for", 0)
    animate: str | None = option("also write the pictures filling in", None, choices=("webp", "gif"), const="webp")


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

        attempted.begin(device)
        generate(cascade, request, options)


def generate(cascade: Cascade, request: Request, options: Options) -> None:
    """Generate batch by batch; write the final images as they come, then the tokens, the grids and the animation."""
    folder, parts = StepFolder(options.out_dir), []
    for start, tokens, scores in cascade.batches(request, options.num_images, options.out_dir.name):
        parts.append([part.cpu() for part in (*tokens, scores)])
        save_images(cascade, request, start, *parts[-1][-2:], folder)
    *tokens, scores = (torch.cat(part) for part in zip(*parts, strict=True))
    names = {folder.final_image(index).name for index in range(options.num_images)}
    remove_unnamed(folder.images, f"image_{'[0-9]' * 5}.png", names)
    save_tokens(tokens, scores, folder.tokens)
    show(cascade, tokens, folder, options.animate)
    for number, stage_scores in enumerate(scores.T.tolist()):
        log.info("scores of stage %d: %s", number, " ".join(f"{score:.1f}" for score in stage_scores[:GRID]))
    log.info("wrote %d images, a grid for each stage and tokens.npz to %s", options.num_images, options.out_dir)


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
    return cascade.tokenize(torch.stack([read_image(path, cascade.image_size) for path in paths]))


def save_images(
    cascade: Cascade, request: Request, start: int, tokens: torch.Tensor, scores: torch.Tensor, folder: StepFolder
) -> None:
    """Write the final images of a batch, from their last stage's tokens, each with what made it as its text chunks."""
    sampling = [{key: getattr(config, key) for key in SAMPLING_KEYS} for config in cascade.configs]
    pictures = cascade.decode(tokens.to(cascade.device), -1).cpu()
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
        save_image(image, folder.final_image(index), {key: json.dumps(value) for key, value in text.items()})


def save_tokens(tokens: list[torch.Tensor], scores: torch.Tensor, path: Path) -> None:
    """Write the tokens of all stages, each (N, T), and their scores (N, stages) as a NumPy archive."""
    names = ["condition", *(f"stage_{number}" for number in range(len(tokens) - 1))]
    with replace_file(path) as temporary:
        arrays = dict(zip(names, (part.numpy().astype(np.uint16) for part in tokens), strict=True))
        np.savez_compressed(temporary, **arrays, scores=scores.numpy())


def show(cascade: Cascade, tokens: list[torch.Tensor], folder: StepFolder, animate: str | None) -> None:
    """Write a grid of the condition and of each stage, and the animation if it is asked for."""
    tokens = [part[:GRID].to(cascade.device) for part in tokens]
    for level, part in enumerate(tokens):
        save_grid(cascade.decode(part, level).cpu(), folder.grid(level))
    if animate:
        frames = cascade.filling_in([part[:ANIMATED] for part in tokens], STEPS)
        save_animation([grid(frame.cpu()) for frame in frames], folder.animation(animate), SECONDS)


if __name__ == "__main__":
    cli.run(main)
