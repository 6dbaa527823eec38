"""Make the pictures of README.md and docs/ from the runs of the demos, except the screenshot of the report and a plot.

Those of the playground need a Chromium, and the packages of requirements-extra.txt and requirements-dev.txt.

Writes to docs/images. The demos must have been run before:

    python scripts/demo.py; python scripts/demo.py --source openmoji; python scripts/demo.py --size 128
    .venv/bin/python -m docs.pictures out/demo-avatars out/demo-openmoji out/demo-128-avatars out/portraits \
        out/photos out/pixels

docs/scaling.md has the commands that make out/portraits. The last two are runs on the photographs and on the pixel art
of scripts.demo_data.
"""

import dataclasses
import shutil
from io import BytesIO
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

import generate_images
from benchmarks.common import options
from evaluation.distances import kernel_interval
from evaluation.features import EfficientNetFeatures
from evaluation.run import TrainedRun
from models.cascade import Cascade
from models.requests import Request, load_generation_config
from playground.browser import open_page, served
from utils.core.options import option, parse_options
from utils.data.dataset import ImageDataset
from utils.data.images import grid, read_image, save_grid, save_image
from utils.runs.folders import OutputFolder, RunFolder
from utils.runtime import cli

IMAGES = Path(__file__).parent / "images"
SHOWN = (3, 8, 15, 21, 30)  # held-out faces
GROUPS = ("flags", "people-body", "food-drink", "smileys-emotion")
WALK = (50, 12)  # units of the condition codebook
PORTRAITS = 7  # of each kind
EARLY = (100, 200, 600)  # training steps of the demo's stages, at the first checkpoint that each keeps
BATCH = 64  # samples at once
WINDOW = {"viewport": {"width": 1366, "height": 768}}
SCREENSHOTS = {
    "playground": WINDOW,
    "playground_dark": WINDOW | {"color_scheme": "dark"},
    "playground_phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}
TILE = 35  # of the map, which is clicked for them
GAP = 8  # pixels between the images that were given and those that were generated


Options = options(
    avatars=(Path, option("folder that scripts/demo.py wrote", positional=True)),
    openmoji=(Path, option("folder that scripts/demo.py --source openmoji wrote", positional=True)),
    large=(Path, option("folder that scripts/demo.py --size 128 wrote", positional=True)),
    portraits=(Path, option("folder of the run of portrait-64x96", positional=True)),
    photos=(Path, option("folder of a run on photographs", positional=True)),
    pixels=(Path, option("folder of a run on pixel art", positional=True)),
)


def copy_pictures(
    avatars: RunFolder, openmoji: RunFolder, large: RunFolder, photos: RunFolder, pixels: RunFolder
) -> None:
    """Copy the pictures that the steps have drawn."""
    copies = {f"avatars_{name}": avatars.generated.grid(level) for level, name in enumerate(("Cond", "0", "1", "2"))}
    copies |= {"openmoji_2": openmoji.generated.grids[-1], "avatars_128": large.generated.grids[-1]}
    copies |= {"photos_samples": photos.generated.grids[-1], "pixels_samples": pixels.generated.grids[-1]}
    copies |= {"avatars_pairs": avatars.evaluation.pairs}
    for name, levels in {"atlas": ("cond", "0", "2"), "u_matrix": "0", "hit_map": "0", "comparison": "0"}.items():
        for level in levels:
            copies[f"avatars_{name}_{level}"] = avatars.step(f"codebook_{level}").newest_picture(name, pruned=False)
    for name, path in copies.items():
        shutil.copyfile(path, IMAGES / f"{name}.png")


def generate(run: RunFolder, out: Path, *more: object) -> torch.Tensor:
    """Run generate_images.py; return the final images, (N, 3, H, W)."""
    generate_images.main([str(word) for word in ("--model", run.path, "--out-dir", out, "--overwrite", *more)])
    return torch.stack([read_image(path) for path in OutputFolder(out).final_images])


def generate_pictures(run: RunFolder, scratch: Path) -> None:
    """Draw what generation and all models make of held-out faces."""
    trained, dataset = TrainedRun(run, torch.device("cpu")), ImageDataset(run.images)
    test = dataset.split(trained.bounds).test
    draw_steps(trained, dataset[test[:10]])
    images = dataset[test[list(SHOWN)]]
    paths = [scratch / f"held_out_{number}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        save_image(image, path)
    asked = {
        "completed": ["--init-image", *paths, "--keep-rows", 2],
        "detail": ["--init-image", *paths, "--from-stage", 1],
        "like": ["--condition-image", *paths],
    }
    for name, arguments in asked.items():
        generated = generate(run, scratch, "--num-images", 20, "--seed", 1, *arguments)
        above, below = grid(images, len(images)), grid(generated, len(images))
        gap = above.new_ones(3, GAP, above.shape[2])
        save_image(torch.cat([above, gap, below], dim=1), IMAGES / f"avatars_{name}.png")
    generate(run, scratch, "--num-images", 9, "--animate")
    shutil.copyfile(OutputFolder(scratch).animation("webp"), IMAGES / "avatars_filling_in.webp")
    generate(run, scratch, "--condition-atlas")
    shutil.copyfile(OutputFolder(scratch).condition_atlas, IMAGES / "avatars_condition_atlas.png")
    walked = generate(run, scratch, "--condition-walk", *WALK, "--animate")
    shutil.copyfile(OutputFolder(scratch).animation("webp", "walk"), IMAGES / "avatars_walk.webp")
    save_grid(walked, IMAGES / "avatars_walk.png", columns=12)


@torch.no_grad()
def draw_steps(trained: TrainedRun, images: torch.Tensor) -> None:
    """Draw what the models make of images: below them, rows of as many images.

    `reconstructed`: reconstructions. `feature_maps`: each channel in grey. `levels`: reconstructions, then the images
    decoded from the tokens of each codebook, from the finest to the condition. `stage_1`: the images decoded from the
    tokens that stage 1 reads, from those that it should write, and from those that it samples.
    """
    run, autoencoder = trained.folder, trained.autoencoder
    cascade = Cascade(load_generation_config(run.generation), run.path, trained.decoder, trained.device)
    fmap, tokens = autoencoder.encode(images), cascade.tokens(images)
    generated, _ = cascade.generate(Request(init_tokens=tokens, from_stage=1), range(len(images)))
    reconstructed = autoencoder.decode(fmap)
    decoded = [cascade.decode(part, level) for level, part in enumerate(tokens)]
    channels = F.interpolate(fmap, images.shape[2:]).unbind(1)
    pictures = {
        "reconstructed": [reconstructed],
        "feature_maps": [channel[:, None].expand(-1, 3, -1, -1) for channel in channels],
        "levels": [reconstructed, *reversed(decoded)],
        "stage_1": [decoded[1], decoded[2], cascade.decode(generated[2], 2)],
    }
    for name, rows in pictures.items():
        save_grid(torch.cat([images, *rows]), IMAGES / f"avatars_{name}.png", columns=len(images))


@torch.no_grad()
def draw_distances(run: RunFolder) -> None:
    """Draw samples after few training steps, at temperature 1 and as the run samples; its samples; and training images.

    Prints the kernel distance of each set to the test images, with its 95 % interval.
    """
    trained, extractor = TrainedRun(run, torch.device("cpu")), EfficientNetFeatures()
    dataset, configs = ImageDataset(run.images), load_generation_config(run.generation)
    split = dataset.split(trained.bounds)
    number = len(split.test)
    early = [
        dataclasses.replace(config, model_path=f"transformer_{stage}/models_checkpoint/model_{step}.pt")
        for stage, (config, step) in enumerate(zip(configs, EARLY, strict=True))
    ]
    rows = []
    for each in ([dataclasses.replace(config, temperature=1.0) for config in early], early, configs):
        cascade = Cascade(each, run.path, trained.decoder, trained.device, batch_size=min(number, BATCH))
        batches = cascade.batches(Request(), number, "samples")
        rows.append(torch.cat([cascade.decode(tokens[-1]) for _, tokens, _ in batches]))
    rows.append(dataset[split.training[:number]])
    real = extractor(dataset[split.test])
    for images in rows:
        print("kernel distance {:.3f} ({:.3f} to {:.3f})".format(*kernel_interval(extractor(images), real)))
    columns = 2 * len(SHOWN)
    save_grid(torch.cat([images[:columns] for images in rows]), IMAGES / "distances.png", columns=columns)


def draw_portraits(run: RunFolder, scratch: Path) -> None:
    """Draw held-out portraits, and below them generated ones."""
    dataset = ImageDataset(run.images)
    held_out = dataset[dataset.split(TrainedRun(run, torch.device("cpu")).bounds).test[:PORTRAITS]]
    generated = generate(run, scratch, "--num-images", len(held_out))
    save_grid(torch.cat([held_out, generated]), IMAGES / "portraits.png", columns=len(held_out))


def take_screenshots(run: RunFolder) -> None:
    """Take the screenshots of the playground, once it has drawn the pictures of a tile and its map."""
    with served(run.path) as (browser, address, _):
        for name, options in SCREENSHOTS.items():
            page = open_page(browser, address, **options)
            page.set_default_timeout(10 * 60_000)  # milliseconds: the map of a large model takes minutes
            page.click(f"#map .tile >> nth={TILE}")
            page.wait_for_selector("#details img")
            page.wait_for_function("!document.querySelector('#chosen').innerText.includes('being drawn')")
            page.mouse.move(0, 0)
            with Image.open(BytesIO(page.screenshot())) as image:
                small = image.convert("RGB").quantize(kmeans=1)  # 256 colours: a third of the bytes
            small.save(IMAGES / f"{name}.png", optimize=True)


def main(argv: list[str] | None = None) -> None:
    """Make all pictures."""
    args = parse_options(Options, __doc__, argv)
    avatars, openmoji, large, portraits, photos, pixels = map(RunFolder.open, vars(args).values())
    copy_pictures(avatars, openmoji, large, photos, pixels)
    generate_pictures(avatars, avatars.path / "pictures")
    draw_distances(avatars)
    draw_portraits(portraits, portraits.path / "pictures")
    take_screenshots(avatars)
    labelled = generate(openmoji, openmoji.path / "pictures/labels", "--num-images", 24, "--label", *GROUPS)
    save_grid(labelled, IMAGES / "openmoji_labels.png", columns=len(GROUPS))


if __name__ == "__main__":
    cli.run(main)
