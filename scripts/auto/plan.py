"""*Plan*: a recipe for a fingerprint and a number of hours, each value with its reason and where that was measured.

`choose_models` decides what a person would write into a recipe by hand, by its arguments alone; the numbers of training
steps come from `hours.py`.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from scripts.auto import hours as dividing
from scripts.auto.hours import PASSES, Section, Shares, section_of, shares_of
from scripts.auto.kept import Plan, read_recipe
from scripts.auto.look import DRAWINGS, HELD_OUT, PHOTOGRAPHS, PIXEL_ART, Fingerprint
from scripts.dry_run import Cost
from utils.core.files import UserError
from utils.core.size import Size
from utils.core.tables import table
from utils.runs.chain import CONFIGS, maps_per_image
from utils.runs.folders import CONDITION, RunFolder

DEMO = CONFIGS / "demo-64"  # what is not decided here is as in this recipe


class Choice(NamedTuple):
    """What depends on the kind of images; each reason stands with its source."""

    shares: Shares  # of the training time
    temperatures: tuple[tuple[float, float, float], str, str]  # of the base, between, finest; why
    autoencoder: tuple[dict, dict, str, str]  # keys of autoencoder.json, and options, that differ from DEMO; why
    is_fine: bool = False  # whether to halve images once less, and to write the finest grid in cells
    moved: int = 0  # copies of each image, where fewer than `ENOUGH` have at least the `variety` `UNALIGNED`


FEW = "docs/experiments.md#few-images"
PERMUTED = {"permute_colours": True}
# The choices by data. A measurement of another kind, or a better one of these, changes this table and nothing else.
CHOICES = {
    DRAWINGS: Choice(
        Shares(autoencoder=0.22),
        ((1.0, 0.6, 0.4), "as the demo's faces", "docs/experiments.md#which-settings-look-best"),
        ({}, {}, "as the demo's", "docs/scaling.md#times"),
        moved=5,
    ),
    PHOTOGRAPHS: Choice(
        Shares(autoencoder=0.3),
        ((1.0, 1.0, 0.6), "nearest of those with a base stage at 1", FEW),
        ({"latent_channel": 8}, PERMUTED, "8 channels and permuted colours: 29.9 dB instead of 26.8", FEW),
    ),
    PIXEL_ART: Choice(
        Shares(autoencoder=0.3, between=0.35),  # in cells the finest grid has no more positions than the one before
        ((1.0, 0.85, 0.6), "lower ones are flat and far", FEW),
        ({"latent_channel": 6}, PERMUTED, "one halving, 6 channels and permuted colours: 29 dB instead of 21", FEW),
        is_fine=True,
    ),
}
CELLS = {"cell": 2, "head_features": 128}  # of the finest stage, where the grid before has half as many on each side
TIERS = ((128, 3, 4, 2), (256, 4, 5, 4), (512, 6, 8, 8))  # of a stage: width, encoder and decoder layers, heads
CHANNELS = ((32, 96), (64, 192), (128, 256))  # of an autoencoder: the narrowest and the widest layer
ENOUGH, MANY = 4000, 1000  # training images, from which wider stages, and a wider autoencoder, are tried
LONG = 20_000  # training steps, from which a wider autoencoder is tried
SYMMETRIC, OFTEN = 1.15, 36  # of `mirrored`, and passes over the images, from which mirror images are added
UNALIGNED = 0.7  # `variety` from which moved copies are made of few images
HOURS_128 = 1.5  # without a GPU, from which images have 128 pixels a side: twice what laptop-128 takes
MOST_TOKENS, BASE_TOKENS = 2304, 64  # of the finest grid, and of the coarsest
# Seconds on two idle cores of an EPYC (docs/scaling.md#times, commit bc161fa), for a first guess; a GPU is guessed
# to be so many times as fast.
START, PER_STEP, PER_TOKEN, GPU = 4.0, 0.04, 0.08 / 1024, 20.0
STAGE_BYTES, IMAGE_BYTES = 15e6, 1.5e6  # memory of an image of 256 tokens at width 128, and of one of 64×64 pixels


def power(value: float, low: int, high: int) -> int:
    return min(high, max(low, 2 ** math.floor(math.log2(max(value, 1)))))


def choose_size(sizes: list[Size], hours: float, *, is_gpu: bool) -> Size:
    """The size to bring images of many sizes to: never larger than most are, in steps of 16 pixels."""
    shorter = sorted(min(size.width, size.height) for size in sizes)[len(sizes) // 2]
    side = max(16, min(shorter, 128 if is_gpu or hours >= HOURS_128 else 64) // 16 * 16)
    ratios = sorted(size.width / size.height for size in sizes)
    ratio = ratios[len(ratios) // 2]
    if sum(abs(each / ratio - 1) < 0.05 for each in ratios) < 0.9 * len(ratios) or 0.8 < ratio < 1.25:
        return Size(side, side)  # of several shapes their centres are cut out
    longer = min(2 * side, round(side * max(ratio, 1 / ratio) / 16) * 16)
    return Size(longer, side) if ratio > 1 else Size(side, longer)


def cells_of(plan: Plan) -> int:
    size = Size.parse(plan.settings["image_size"])
    return size.width * size.height >> 2 * plan.files["autoencoder"]["num_layers"]


def choose_grids(size: Size, is_fine: bool = False) -> tuple[int, list[int]]:
    """Halvings of an image, one less if it is fine, and the sides of the patches of each grid, coarse to fine.

    Raises `UserError` naming the nearest sizes for one that cannot be halved as often as it must be.
    """
    area, common = size.width * size.height, math.gcd(size.width, size.height)
    wanted = 1 if area <= 32**2 else max(2, math.ceil(math.log2(math.sqrt(area) / 32)))
    fits = [each for each in range(1, 9) if common % 2**each == 0 and 4 <= area >> 2 * each <= MOST_TOKENS]
    if not fits:
        near = " or ".join(map(str, size.multiples(16, 16)))
        raise UserError(f"images of {size.shown} pixels cannot be halved to small feature maps; make them {near}")
    layers = min(fits, key=lambda each: abs(each - max(1, wanted - is_fine)))
    area, common, patches = area >> 2 * layers, common >> layers, [1]
    while (tokens := area // patches[0] ** 2) > BASE_TOKENS or len(patches) < 2:
        sides = (patches[0] * by for by in (2, 3, 5, 7) if tokens >= 4 * by**2 and common % (patches[0] * by) == 0)
        if not (side := next(sides, 0)):
            break
        patches.insert(0, side)
    return layers, patches


class Sizes(NamedTuple):
    """What is decided together, since each depends on the others."""

    layers: int  # halvings of an image
    patches: list[int]  # sides in cells, coarse to fine
    tokens: list[int]  # of each grid
    units: list[int]  # of the condition codebook, and of each grid's
    passes: float  # of the narrowest finest stage over the images, in its share of the time
    tier: tuple[int, int, int, int]  # of `TIERS`
    channels: tuple[int, int]  # of `CHANNELS`
    is_mirrored: bool
    moved: int  # copies of each image


def choose_sizes(prints: Fingerprint, hours: float, is_gpu: bool) -> Sizes:
    size = Size.parse(prints.size)
    layers, patches = choose_grids(size, CHOICES[prints.kind].is_fine)
    tokens = [(size.width >> layers) * (size.height >> layers) // patch**2 for patch in patches]
    seconds, shares = 3600 * hours * (GPU if is_gpu else 1.0), shares_of(CHOICES[prints.kind].shares, len(patches))
    passes = shares[f"transformer_{len(patches) - 1}"] * seconds / (tokens[-1] * PER_TOKEN) / prints.training
    wide = [tier for tier in TIERS if passes / cost_of(tier) >= PASSES and prints.training >= ENOUGH]
    tier = max(wide, default=TIERS[0])
    steps = shares["autoencoder"] * seconds / (PER_STEP * size.width * size.height / 4096)
    rich = [each for each in CHANNELS if steps * (32 / each[0]) ** 2 >= LONG and prints.training >= MANY]
    finest, condition = (2048, 64) if tier == TIERS[0] else (4096, 256)
    units = [power(prints.training / 25, 4, condition)]
    units += [power(prints.training * number / 200, 16, 512) for number in tokens[:-1]]
    units += [power(prints.training * tokens[-1] / 128, 16, finest)]
    is_mirrored = prints.mirrored < SYMMETRIC and passes >= OFTEN
    is_moved = prints.training < ENOUGH and prints.variety >= UNALIGNED and passes >= PASSES and len(patches) > 1
    moved = CHOICES[prints.kind].moved * is_moved
    return Sizes(layers, patches, tokens, units, passes, tier, max(rich, default=CHANNELS[0]), is_mirrored, moved)


def cost_of(tier: tuple[int, int, int, int]) -> float:
    (width, *layers, _), (narrow, *few, _) = tier, TIERS[0]
    return (width / narrow) ** 2 * sum(layers) / sum(few)


def fit(batch: int, is_gpu: bool, memory: float, per_image: float) -> dict[str, int]:
    """Images of a batch, and batches of a training step, so that a batch takes at most half of the memory in bytes."""
    batch *= 4 if is_gpu else 1
    parts = 1
    while batch // parts * per_image > memory / 2:
        parts *= 2
    if parts > batch:
        sizes = f"one image needs {2 * per_image / 2**30:.1f} GiB, and {memory / 2**30:.1f} are free"
        raise UserError(f"memory: the smallest recipe does not fit, {sizes}; make the images smaller")
    return {"batch_size": batch // parts, "grad_accum_step": parts}


def choose_models(prints: Fingerprint, hours: float, *, is_gpu: bool = False, memory: float = math.inf) -> Plan:
    sizes, demo, size = choose_sizes(prints, hours, is_gpu), read_recipe(DEMO), Size.parse(prints.size)
    area, (width, encoder, decoder, heads), choice = size.width * size.height, sizes.tier, CHOICES[prints.kind]
    last, (base, between, finest) = len(sizes.patches) - 1, choice.temperatures[0]
    temperatures = [base, *[between] * (last - 1), finest][: last + 1]
    held_out = dict.fromkeys(("val_fraction", "test_fraction"), prints.fraction)
    common, files = {"keep_checkpoint": 2} | held_out, {}
    widths = dict(zip(("min_channel", "max_channel"), sizes.channels, strict=True))
    changes, options, *_ = choice.autoencoder
    files["autoencoder"] = demo["autoencoder"] | widths | {"num_layers": sizes.layers} | changes
    given, run = demo["recipe"], RunFolder(Path(), last + 1)
    batch = fit(8 if area <= 8192 else 4, is_gpu, memory, IMAGE_BYTES * area / 4096 * sizes.channels[0] / 32)
    settings = {"description": f"{prints.images} {prints.kind}, {hours:g} hours", "image_size": prints.size}
    settings |= {"flip": True} if sizes.is_mirrored else {}
    settings |= {name: given[name] | batch | common for name in ("autoencoder", "decoder")}
    settings["autoencoder"] |= options
    settings |= {name: given[name] | held_out for name in ("codebook", "prune")}
    moved = {"num_moved": sizes.moved} if sizes.moved else {}
    settings |= {"feature_maps": given["feature_maps"] | moved, "generate": given["generate"]}
    for book, patch, units in zip(run.codebooks, (0, *sizes.patches), sizes.units, strict=True):
        sides = {"patch_H": patch, "patch_W": patch} if patch else {}
        files[book.name] = demo[f"codebook_{CONDITION}"] | sides | {"num_embeddings": units}
    for level, tokens in enumerate(sizes.tokens):
        like = "transformer_0" if level == 0 else "transformer_2" if level == last else "transformer_1"
        shape = {"num_enc_layers": encoder, "num_dec_layers": decoder, "in_dim": width, "hidden_dim": 2 * width}
        files[f"transformer_{level}"] = demo[like] | shape | {"self_attn_heads": heads, "cross_attn_heads": heads}
        batch = fit(max(4, min(64, 2048 // tokens)), is_gpu, memory, STAGE_BYTES * tokens / 256 * width / 128)
        settings[f"transformer_{level}"] = given[like] | batch | common
    if choice.is_fine and last and sizes.patches[-2] == 2:
        files[f"transformer_{last}"] |= CELLS
    stages = zip(run.transformers, pairwise(run.codebooks), temperatures, strict=True)
    files["generate"] = {
        stage.level: {
            "model_path": stage.best.as_posix(),
            "lr_codebook_path": coarse.pruned.as_posix(),
            "hr_codebook_path": fine.pruned.as_posix(),
            "temperature": temperature,
        }
        for stage, (coarse, fine), temperature in stages
    }
    return Plan(files | {"recipe": settings}, hours, reasons_for(prints, sizes, temperatures))


def reasons_for(prints: Fingerprint, sizes: Sizes, temperatures: list[float]) -> list[tuple[str, str, str, str]]:
    size, choice, (width, *_) = Size.parse(prints.size), CHOICES[prints.kind], sizes.tier
    sides = [patch << sizes.layers for patch in sizes.patches]
    grids = " → ".join(f"{size.width // side}×{size.height // side}" for side in sides)
    often = f"the finest stage of width {TIERS[0][0]} could pass {sizes.passes:.1f} times over the images"
    symmetric = f"mirror images are {prints.mirrored:.2f} times as far from the nearest image as images are"
    mirror = f"{symmetric} (at most {SYMMETRIC}), and {often} (at least {OFTEN})"
    sides_of = f"here {prints.validation} and {prints.test}"
    held_out = f"the least of 5, 10 and 15 % with {HELD_OUT} images on each side, else 15 %; {sides_of}"
    coarsest = f"halvings: {sizes.layers}; the coarsest has at most {BASE_TOKENS} tokens, where the size allows it"
    units = "25 training images for one of the condition, 200 patches for others, 128 for the finest"
    wider = f"{often}; wider from {PASSES} passes and {ENOUGH:,} training images on"
    varied = f"at least {UNALIGNED:.0%} of the variance differs from image to image (here {prints.variety:.0%})"
    few = f"for fewer than {ENOUGH:,} training images, from {PASSES} passes on"
    moved = f"of {prints.kind}: {choice.moved} {few}, where {varied}; {often}"
    _, _, because, source = choice.autoencoder
    channels = "{} to {} channels".format(*sizes.channels)
    return [
        ("image size", size.shown, "that of the images", ""),
        ("held out", f"{prints.fraction:.0%} twice", held_out, "docs/evaluation.md#the-split"),
        ("flip", "yes" if sizes.is_mirrored else "no", mirror, "docs/experiments.md#mirror-images"),
        ("moved copies", str(sizes.moved), moved, "docs/experiments.md#moved-copies"),
        ("autoencoder", channels, f"{choice.shares.autoencoder:.0%} of the time: {because}", source),
        ("grids", grids, coarsest, "docs/scaling.md#faces-of-128128-pixels"),
        ("units", ", ".join(map(str, sizes.units)), units, "configs/demo-64"),
        ("stages", f"{len(sides)} of width {width}", wider, "docs/scaling.md#loss-over-compute"),
        ("temperatures", ", ".join(map(str, temperatures)), *choice.temperatures[1:]),
    ]


def guess_costs(plan: Plan, prints: Fingerprint, is_gpu: bool = False) -> dict[str, Cost]:
    size, speed = Size.parse(prints.size), GPU if is_gpu else 1.0
    pixels = size.width * size.height / 4096
    model, recipe = plan.files["autoencoder"], plan.settings
    batch = recipe["autoencoder"]["batch_size"] * recipe["autoencoder"]["grad_accum_step"]
    wide = (model["min_channel"] / 32) ** 2 * pixels * batch / 8
    wide *= min(1.0, model["num_layers"] / 2)
    costs = dict.fromkeys(("autoencoder", "decoder"), Cost(START + 3, PER_STEP * wide / speed, 2))
    reading = prints.images * maps_per_image(recipe) * 0.001 * pixels
    costs |= {"feature_maps": Cost(START + reading), "generate": Cost(START + 6)}
    for name, model in plan.files.items():
        kind, _, level = name.partition("_")
        if kind == "codebook":
            costs |= {name: Cost(START + 8, 0.02, 4), f"prune_{name}": Cost(START + 3)}
        elif kind == "transformer":
            size = recipe[name]["batch_size"] * recipe[name]["grad_accum_step"]
            tokens = cells_of(plan) // plan.files[f"codebook_{level}"]["patch_H"] ** 2 * size
            tier = model["in_dim"], model["num_enc_layers"], model["num_dec_layers"], 0
            costs[name] = Cost(START + 6, tokens * PER_TOKEN * cost_of(tier) / speed, 4 + int(level))
    return costs


def sections_of(plan: Plan, prints: Fingerprint) -> dict[str, Section]:
    return dividing.sections_of(plan.settings, prints.training, CHOICES[prints.kind].shares)


def describe(plan: Plan, prints: Fingerprint) -> str:
    """The text of recipe.md: the data, each value with its reason, and the minutes of each step."""
    took, rows = plan.took, []
    for name, seconds in plan.seconds.items():
        steps = plan.settings.get(section_of(name), {}).get("max_step", "")
        rows.append([name, steps, f"{seconds / 60:.1f}", f"{took[name] / 60:.1f}" if name in took else ""])
    planned, true = (sum(seconds.values()) / 60 for seconds in (plan.seconds, took))
    rows.append(["all", "", f"{planned:.1f}", f"{true:.1f}" if took else ""])
    lines = [f"# A recipe for {plan.hours:g} hours", "", *(f"- {line}" for line in (*prints.lines(), *plan.notes))]
    lines += ["", table(("", "value", "why", "source"), plan.reasons)]
    return "\n".join([*lines, "", table(("step", "training steps", "planned minutes", "minutes"), rows), ""])
