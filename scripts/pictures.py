"""Draw the pictures of the README and of docs/ from a finished demo, but for screenshots and those of other runs.

python -m scripts.pictures out/demo-avatars docs/images
"""

import utils.runtime.threads  # noqa: F401

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

import generate_images
from evaluation.run import TrainedRun
from utils.core.options import option, parse_options
from utils.data.dataset import ImageDataset
from utils.data.images import grid, read_image, save_image
from utils.runs.folders import OutputFolder, RunFolder
from utils.runtime import cli

SHOWN = (3, 8, 15, 21, 30)  # test images to complete, to detail and to vary
WAYS = {
    "completed": ("--init-image", "--keep-rows", 2),
    "detail": ("--init-image", "--from-stage", 1),
    "like": ("--condition-image",),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    run: Path = option("folder that scripts/demo.py wrote", positional=True)
    out_dir: Path = option("where the pictures go", positional=True)


def main(argv: list[str] | None = None) -> None:
    options = parse_options(Options, __doc__, argv)
    run, out, scratch = RunFolder.open(options.run), options.out_dir, options.run / "pictures"
    copies = {f"avatars_{name}": run.generated.grid(level) for level, name in enumerate(("Cond", "0", "1", "2"))}
    for name, level in (("atlas", "cond"), ("atlas", "0"), ("u_matrix", "0"), ("hit_map", "0")):
        copies[f"avatars_{name}_{level}"] = run.step(f"codebook_{level}").newest_picture(name, pruned=False)
    for name, path in (copies | {"avatars_pairs": run.evaluation.pairs}).items():
        shutil.copyfile(path, out / f"{name}.png")
    dataset = ImageDataset(run.images)
    images = dataset[dataset.split(TrainedRun(run, torch.device("cpu")).bounds).test[list(SHOWN)]]
    paths = [scratch / f"{number}.png" for number in SHOWN]
    scratch.mkdir(exist_ok=True)
    for image, path in zip(images, paths, strict=True):
        save_image(image, path)
    for name, (flag, *more) in WAYS.items():
        words = ["--model", run.path, "--out-dir", scratch, "--overwrite", "--num-images", 4 * len(SHOWN), "--seed", 1]
        generate_images.main([str(word) for word in (*words, flag, *paths, *more)])
        generated = torch.stack([read_image(path) for path in OutputFolder(scratch).final_images])
        above, below = grid(images, len(SHOWN)), grid(generated, len(SHOWN))
        gap = above.new_ones(3, 8, above.shape[2])
        save_image(torch.cat([above, gap, below], dim=1), out / f"avatars_{name}.png")


if __name__ == "__main__":
    cli.run(main)
