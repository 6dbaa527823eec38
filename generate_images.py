"""Stage 6: generate images with the whole cascade.

Reads the decoder and a JSON config that names each stage's model, codebooks and sampling; writes a grid a stage
(images/recon_model_Cond.png, recon_model_0.png, …), each final image as its own PNG with its seed, settings and scores
inside, and the tokens of all stages (tokens.npz) under --out-dir.

    python generate_images.py --decoder-path out/faces/autoencoder/models_checkpoint/latest.pt \
        --config-path out/faces/generate.json --num-images 25 --seed 0 --out-dir out/faces/generated
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from models.autoencoder import Autoencoder
from models.generation import Cascade, Request, load_generation_config, pick
from utils import cli
from utils.beam_search import SearchConfig
from utils.files import UserError, remove_unnamed, replace_file
from utils.images import grid, read_image, save_animation, save_grid, save_image
from utils.precision import choose_dtype

GRID = 100  # images in a grid, at most
ANIMATED = 16  # images in an animation, at most
STEPS, SECONDS = 64, 8  # pictures of a stage in an animation, at most, and how long it runs
SEARCH_KEYS = [field.name for field in dataclasses.fields(SearchConfig)]


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    args = parse(argv)
    device = cli.choose_device(args.device)
    decoder = Autoencoder.load(args.decoder_path).to(device)
    changes = {key: getattr(args, key) for key in SEARCH_KEYS if getattr(args, key) is not None}
    searches = load_generation_config(args.config_path, **changes)
    dtype = choose_dtype(device, args.precision)
    cascade = Cascade(searches, args.config_path.parent, decoder, device, dtype, args.batch_size, args.compile)
    request = make_request(args, cascade)
    cli.start_log(args, "generate")

    parts = []
    for start, tokens, scores in cascade.batches(request, args.num_images, args.out_dir.name):
        parts.append([part.cpu() for part in (*tokens, scores)])
        save_images(cascade, request, start, *parts[-1][-2:], args.out_dir / "images")
    *tokens, scores = (torch.cat(part) for part in zip(*parts, strict=True))
    names = {f"image_{index:05d}.png" for index in range(args.num_images)}
    remove_unnamed(args.out_dir / "images", f"image_{'[0-9]' * 5}.png", names)
    save_tokens(tokens, scores, args.out_dir / "tokens.npz")
    show(cascade, tokens, args)
    for number, stage_scores in enumerate(scores.T.tolist()):
        cli.log.info("scores of stage %d: %s", number, " ".join(f"{score:.1f}" for score in stage_scores[:GRID]))
    cli.log.info("wrote %d images, a grid a stage and tokens.npz to %s", args.num_images, args.out_dir)


def make_request(args: argparse.Namespace, cascade: Cascade) -> Request:
    """What the arguments ask of the cascade."""
    conditions, start_from = tuple(args.condition_index), ()
    if args.condition_image:
        conditions = tuple(tokens_of(args.condition_image, cascade)[0].flatten().tolist())
    if args.init_image:
        start_from = tokens_of(args.init_image, cascade)
    request = Request(args.seed, conditions, tuple(args.label), start_from, args.from_stage, args.keep_rows)
    cascade.check(request)
    return request


def tokens_of(paths: list[Path], cascade: Cascade) -> tuple[torch.Tensor, ...]:
    """The tokens of image files, whose centres are scaled to the size of the cascade's images."""
    return cascade.tokenize(torch.stack([read_image(path, cascade.image_size) for path in paths]))


def save_images(
    cascade: Cascade, request: Request, start: int, tokens: torch.Tensor, scores: torch.Tensor, folder: Path
) -> None:
    """Write the final images of a batch, from their last stage's tokens, each with what made it as its text chunks."""
    searches = [{key: getattr(search, key) for key in SEARCH_KEYS} for search in cascade.searches]
    pictures = cascade.decode(tokens.to(cascade.device), -1).cpu()
    for index, (image, image_scores) in enumerate(zip(pictures, scores.tolist(), strict=True), start):
        text = {
            "seed": request.seed,
            "image": index,
            "stages": searches,
            "label": pick(request.labels, index),
            "from_stage": request.from_stage,
            "keep_rows": request.keep_rows,
            "scores": [None if np.isnan(score) else round(score, 3) for score in image_scores],
        }
        save_image(image, folder / f"image_{index:05d}.png", {key: json.dumps(value) for key, value in text.items()})


def save_tokens(tokens: list[torch.Tensor], scores: torch.Tensor, path: Path) -> None:
    """Write the tokens of all stages, each (N, T), and their scores (N, stages) as a NumPy archive."""
    names = ["condition", *(f"stage_{number}" for number in range(len(tokens) - 1))]
    with replace_file(path) as temporary:
        arrays = dict(zip(names, (part.numpy().astype(np.uint16) for part in tokens), strict=True))
        np.savez_compressed(temporary, **arrays, scores=scores.numpy())


def show(cascade: Cascade, tokens: list[torch.Tensor], args: argparse.Namespace) -> None:
    """Write a grid of the condition and of each stage, and the animation if it is asked for."""
    tokens = [part[:GRID].to(cascade.device) for part in tokens]
    for level, part in enumerate(tokens):
        name = f"recon_model_{level - 1 if level else 'Cond'}.png"
        save_grid(cascade.decode(part, level).cpu(), args.out_dir / "images" / name)
    if args.animate:
        frames = cascade.filling_in([part[:ANIMATED] for part in tokens], STEPS)
        path = args.out_dir / "images" / f"filling_in.{args.animate}"
        save_animation([grid(frame.cpu()) for frame in frames], path, SECONDS)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = cli.recipe_parser(__doc__)
    parser.add_argument("--decoder-path", type=Path, required=True, help="checkpoint of the autoencoder")
    parser.add_argument("-c", "--config-path", type=Path, required=True, help="JSON config of the generation")
    parser.add_argument("--num-images", type=cli.positive_int, default=25, help="images to generate [25]")
    parser.add_argument("--batch-size", type=cli.positive_int, default=25, help="images generated at once [25]")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw [0]")
    animate = {"nargs": "?", "const": "webp", "choices": ["webp", "gif"]}
    parser.add_argument("--animate", **animate, help="also write how the pictures fill in, as WebP or GIF [webp]")
    cli.add_speed_flags(parser)
    group = parser.add_argument_group("what to generate; of several, image i takes number i, and from the first again")
    one_of = group.add_mutually_exclusive_group()
    one_of.add_argument("--condition-index", type=cli.natural_int, nargs="+", default=[], help="condition units")
    one_of.add_argument("--condition-image", type=Path, nargs="+", default=[], help="images to make more like")
    group.add_argument("--label", nargs="+", default=[], help="labels of the data set, if the base stage uses them")
    group.add_argument("--init-image", type=Path, nargs="+", default=[], help="images to start from")
    group.add_argument("--keep-rows", type=cli.natural_int, default=0, help="rows of the base stage's grid to keep [0]")
    group.add_argument("--from-stage", type=cli.natural_int, default=0, help="first stage to write anew [0]")
    group = parser.add_argument_group("search, in all stages, instead of what the config says")
    for key in ("num-beam", "beam-width", "keep-beam", "top-k"):
        group.add_argument(f"--{key}", type=cli.positive_int)
    for key in ("temperature", "top-p"):
        group.add_argument(f"--{key}", type=cli.positive_float)
    group.add_argument("--guidance-scale", type=cli.natural_float)
    args = parser.parse_args(argv)
    if bool(args.init_image) != bool(args.keep_rows or args.from_stage):
        raise UserError("--init-image goes with --keep-rows or --from-stage: give what to keep of the images, and them")
    return args


if __name__ == "__main__":
    cli.run(main)
