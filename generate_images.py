"""Stage 6: generate images with the whole cascade.

Reads the decoder and a JSON config that names each stage's model, codebooks and sampling; writes a grid a stage
(images/recon_model_Cond.png, recon_model_0.png, …) and each final image as its own PNG under --out-dir.

    python generate_images.py --decoder-path out/faces/autoencoder/models_checkpoint/latest.pt \
        --config-path out/faces/generate.json --num-images 25 --seed 0 --out-dir out/faces/generated
"""

from pathlib import Path

import torch
from tqdm import tqdm

from models.autoencoder import Autoencoder
from models.cascade import Cascade
from utils import cli
from utils.images import save_grid, save_image

GRID = 100  # images in a grid, at most


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    parser = cli.recipe_parser(__doc__)
    parser.add_argument("--decoder-path", type=Path, required=True, help="checkpoint of the autoencoder")
    parser.add_argument("-c", "--config-path", type=Path, required=True, help="JSON config of the generation")
    parser.add_argument("--num-images", type=cli.positive_int, default=25, help="images to generate [25]")
    parser.add_argument("--batch-size", type=cli.positive_int, default=25, help="images generated at once [25]")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw [0]")
    args = parser.parse_args(argv)
    device = cli.choose_device(args.device)
    decoder = Autoencoder.load(args.decoder_path).to(device)
    cascade = Cascade(args.config_path, decoder, device)
    cli.start_log(args, "generate")

    names = ["Cond", *map(str, range(len(cascade.stages)))]
    shown: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    folder = args.out_dir / "images"
    starts = range(0, args.num_images, args.batch_size)
    with tqdm(total=cascade.length * len(starts), unit="token", desc=args.out_dir.name) as bar:
        for start in starts:
            # The last batch is full as well: how many images are asked for never changes a picture.
            tokens = cascade.generate(args.seed, range(start, start + args.batch_size), bar.update)
            for name, codebook, stage_tokens in zip(names, cascade.codebooks, tokens, strict=True):
                images = decoder.decode(codebook.lookup(stage_tokens)).cpu()[: args.num_images - start]
                shown[name].append(images[: max(0, GRID - start)])
            for index, image in enumerate(images, start):  # of the last stage
                save_image(image, folder / f"image_{index:05d}.png", {"seed": str(args.seed)})
    for name, parts in shown.items():
        save_grid(torch.cat(parts), folder / f"recon_model_{name}.png")
    cli.log.info("wrote %d images and a grid a stage to %s", args.num_images, folder)


if __name__ == "__main__":
    cli.run(main)
