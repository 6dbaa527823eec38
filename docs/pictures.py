"""Make the pictures of README.md and docs/ from the runs of both demos, except the screenshot of the report.

Writes to docs/images. The demos must have been run before:

    bash scripts/demo.sh && bash scripts/demo.sh --source openmoji
    .venv/bin/python -m docs.pictures out/demo-avatars out/demo-openmoji
"""

import argparse
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F

import generate_images
from models.autoencoder import Autoencoder
from models.generation import Cascade, Request, load_generation_config
from utils import cli
from utils.dataset import VAL_FRACTION, ImageDataset
from utils.images import grid, read_image, save_grid, save_image
from utils.run_folder import RunFolder, StepFolder

IMAGES = Path(__file__).parent / "images"
SHOWN = (3, 8, 15, 21, 30)  # which of the held-out faces
GROUPS = ("flags", "people-body", "food-drink", "smileys-emotion")
GAP = 8  # pixels between the given images and those made from them


def copy_pictures(avatars: RunFolder, openmoji: RunFolder) -> None:
    """Pictures that the steps have drawn already."""
    for level, name in enumerate(("Cond", "0", "1", "2")):
        shutil.copyfile(avatars.generated.grid(level), IMAGES / f"avatars_{name}.png")
    shutil.copyfile(openmoji.generated.grid(3), IMAGES / "openmoji_2.png")
    shutil.copyfile(avatars.evaluation.pairs, IMAGES / "avatars_pairs.png")
    for name, levels in {"atlas": ("cond", "0", "2"), "u_matrix": "0", "hit_map": "0", "comparison": "0"}.items():
        for level in levels:
            path = avatars.codebook(level).newest_picture(name, pruned=False)
            shutil.copyfile(path, IMAGES / f"avatars_{name}_{level}.png")


def generate(run: RunFolder, out: Path, *more: object) -> torch.Tensor:
    """Run generate_images.py; return the final images, (N, 3, H, W)."""
    argv = ["--decoder-path", run.autoencoder.latest, "--config-path", run.generation, "--out-dir", out, *more]
    generate_images.main([str(argument) for argument in argv])
    return torch.stack([read_image(path) for path in StepFolder(out).final_images])


def beneath(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Two grids of as many columns as there are images above, in one picture (3, H, W)."""
    first, second = grid(above, len(above)), grid(below, len(above))
    return torch.cat([first, first.new_ones(3, GAP, first.shape[2]), second], dim=1)


def load_cascade(run: RunFolder) -> Cascade:
    """The trained cascade of a run, with the sampling of its generate.json."""
    decoder = Autoencoder.load(run.autoencoder.latest)
    return Cascade(load_generation_config(run.generation), run.path, decoder, torch.device("cpu"))


@torch.no_grad()
def reconstructed(cascade: Cascade, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Pictures of what the autoencoder and the codebooks keep of images, each as rows of as many images.

    `reconstructed`: reconstructions. `feature_maps`: each channel in grey. `levels`: reconstructions, then the images
    decoded from the tokens of each codebook, from the finest to the condition.
    """
    fmap, tokens = cascade.decoder.encode(images), cascade.tokenize(images)
    again = cascade.decoder.decode(fmap)
    channels = [channel[:, None].expand(-1, 3, -1, -1) for channel in fmap.unbind(1)]
    return {
        "reconstructed": torch.cat((images, again)),
        "feature_maps": torch.cat((images, *(F.interpolate(part, images.shape[2:]) for part in channels))),
        "levels": torch.cat((images, again, *(cascade.decode(tokens[level], level) for level in (3, 2, 1, 0)))),
    }


@torch.no_grad()
def written(cascade: Cascade, images: torch.Tensor) -> torch.Tensor:
    """Rows of as many images: as given, by their coarsest tokens, by those of stage 1, and by those that it writes."""
    tokens = cascade.tokenize(images)
    found, _ = cascade.generate(Request(init_tokens=tokens, from_stage=1), range(len(images)))
    rows = (cascade.decode(tokens[1], 1), cascade.decode(tokens[2], 2), cascade.decode(found[2], 2))
    return torch.cat((images, *rows))


@torch.no_grad()
def generate_pictures(run: RunFolder, scratch: Path) -> None:
    """Faces completed, with new detail, like others, filling in; and what each model makes of held-out faces."""
    dataset = ImageDataset(run.images)
    _, held_out = dataset.split(VAL_FRACTION)
    images = dataset[held_out[list(SHOWN)]]
    paths = [scratch / f"held_out_{number}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        save_image(image, path)
    asked = {
        "completed": ["--init-image", *paths, "--keep-rows", 2],
        "detail": ["--init-image", *paths, "--from-stage", 1],
        "like": ["--condition-image", *paths],
    }
    for name, arguments in asked.items():
        made = generate(run, scratch / name, "--num-images", 20, "--seed", 1, *arguments)
        save_image(beneath(images, made), IMAGES / f"avatars_{name}.png")
    generate(run, scratch / "filling_in", "--num-images", 9, "--animate")
    shutil.copyfile(StepFolder(scratch / "filling_in").animation("webp"), IMAGES / "avatars_filling_in.webp")
    cascade, images = load_cascade(run), dataset[held_out[:10]]
    for name, rows in (reconstructed(cascade, images) | {"stage_1": written(cascade, images)}).items():
        save_grid(rows, IMAGES / f"avatars_{name}.png", columns=len(images))


def main() -> None:
    """Make them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("avatars", type=Path, help="folder of scripts/demo.sh")
    parser.add_argument("openmoji", type=Path, help="folder of scripts/demo.sh --source openmoji")
    args = parser.parse_args()
    avatars, openmoji = RunFolder.open(args.avatars), RunFolder.open(args.openmoji)
    copy_pictures(avatars, openmoji)
    generate_pictures(avatars, avatars.path / "pictures")
    made = generate(openmoji, openmoji.path / "pictures/labels", "--num-images", 24, "--label", *GROUPS)
    save_grid(made, IMAGES / "openmoji_labels.png", columns=len(GROUPS))


if __name__ == "__main__":
    cli.run(main)
