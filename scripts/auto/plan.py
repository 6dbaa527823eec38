"""*Plan*: a recipe for a fingerprint and a number of hours, each value with its reason and where that was measured.

`choose_models` decides what a person would write into a recipe by hand, `choose_steps` how long each step trains. Both
are functions of their arguments alone. `choose_steps` is called again before each step, with the rates measured so far
and the time left.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

from scripts.auto.look import DRAWINGS, PHOTOGRAPHS, PIXEL_ART, Fingerprint
from scripts.dry_run import Cost
from utils.core.files import UserError, write_file
from utils.core.size import Size
from utils.core.tables import table
from utils.runs.folders import CONDITION


class Choice(NamedTuple):
    """What depends on the kind of images."""

    temperatures: tuple[float, float, float]  # of the base stage, of stages between, of the finest stage
    autoencoder: dict  # keys of autoencoder.json that differ from configs/demo-64
    share: float  # of the training time, for the autoencoder
    reason: str
    source: str


# The choices by data. A measurement of another kind, or a better one of these, changes this table and nothing else.
CHOICES = {
    DRAWINGS: Choice((1.0, 0.6, 0.4), {}, 0.22, "as the demo's faces", "docs/experiments.md#which-settings-look-best"),
    PHOTOGRAPHS: Choice(
        (1.0, 0.9, 0.9), {}, 0.22, "lower temperatures are flat: a recall of 0.08", "docs/experiments.md#few-images"
    ),
    PIXEL_ART: Choice(
        (1.0, 0.6, 0.4), {}, 0.4, "its autoencoder is what limits samples", "docs/experiments.md#few-images"
    ),
}
# The rest of the training time, as the demo spends it (docs/times.md); the stages between share one part.
SHARES = {"codebook": 0.06, "decoder": 0.08, "transformer_0": 0.08, "between": 0.1, "finest": 0.6}
# Training steps of a section at least; checkpoints; passes over the training images at most, after which a stage of
# few images was the best (docs/experiments.md#few-images), or an autoencoder no longer gained.
LEAST = {"autoencoder": 100, "codebook": 30, "decoder": 30, "stage": 60}
CHECKPOINTS = {"autoencoder": 2, "codebook": 1, "decoder": 2, "transformer_0": 8, "stage": 6}
PASSES = {"autoencoder": 200, "decoder": 60, "transformer_0": 8, "stage": 12}
CODEBOOK_STEPS = 600
WARMUP = {"autoencoder": 100, "decoder": 100, "stage": 50}
TIERS = ((128, 3, 4, 2), (256, 4, 5, 4), (512, 6, 8, 8))  # of a stage: width, encoder and decoder layers, heads
CHANNELS = ((32, 96), (64, 192), (128, 256))  # of an autoencoder: the narrowest and the widest layer
ENOUGH, MANY = 4000, 1000  # training images, from which wider stages, and a wider autoencoder, are tried
LONG = 20_000  # training steps, from which a wider autoencoder is tried
SYMMETRIC, OFTEN = 1.15, 36  # of `mirrored`, and passes over the images, from which mirror images are added
HOURS_128 = 1.5  # without a GPU, from which images have 128 pixels a side: twice what laptop-128 takes
MOST_TOKENS, BASE_TOKENS = 2304, 64  # of the finest grid, and of the coarsest
EVALUATED = 0.08  # share of all time for the evaluation, at most
# Seconds on two cores of an EPYC with nothing beside it (docs/times.md, commit bc161fa), for a first guess; a GPU is
# guessed to be so many times as fast.
START, PER_STEP, PER_TOKENS, GPU = 4.0, 0.04, 0.08 / 1024, 20.0
PER_FEATURE, PER_SAMPLE = 0.005, 0.05  # of the evaluation: an image's features, and a sample of 256 tokens
STAGE_BYTES, IMAGE_BYTES = 15e6, 1.5e6  # memory of an image of 256 tokens at width 128, and of one of 64×64 pixels
EVALUATION, REPORT = "evaluate", "report"  # what comes after the steps of the chain


@dataclass(frozen=True)
class Reason:
    """A value, why it was chosen, and where that was measured."""

    what: str
    value: str
    reason: str
    source: str = ""


@dataclass
class Plan:
    """A recipe: its files by their names, without endings, the reasons, and the seconds that each step should take."""

    files: dict[str, dict] = field(default_factory=dict)
    reasons: list[Reason] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> dict:
        """Its recipe.json."""
        return self.files["recipe"]

    def write(self, folder: Path) -> None:
        """Write the recipe, recipe.json last: with it the folder is one."""
        for name, content in sorted(self.files.items(), key=lambda item: item[0] == "recipe"):
            write_file(folder / f"{name}.json", json.dumps(content, indent=4) + "\n")


def power(value: float, low: int, high: int) -> int:
    """The largest power of two that is not above a value, within limits."""
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
    """Cells of a feature map, which are the tokens of the finest grid."""
    size = Size.parse(plan.settings["image_size"])
    return size.width * size.height >> 2 * plan.files["autoencoder"]["num_layers"]


def choose_grids(size: Size) -> tuple[int, list[int]]:
    """Halvings of an image, and the sides of the patches of each grid, coarse to fine.

    Raises `UserError` naming the nearest sizes for one that cannot be halved as often as it must be.
    """
    side = math.sqrt(size.width * size.height)
    wanted = 1 if side <= 32 else max(2, math.ceil(math.log2(side / 32)))
    fits = [
        layers
        for layers in range(1, 9)
        if size.width % 2**layers == size.height % 2**layers == 0
        and 4 <= size.width * size.height // 4**layers <= MOST_TOKENS
    ]
    if not fits:
        near = " or ".join(map(str, size.multiples(16, 16)))
        raise UserError(f"images of {size.shown} pixels cannot be halved to small feature maps; make them {near}")
    layers = min(fits, key=lambda each: abs(each - wanted))
    width, height, patches = size.width >> layers, size.height >> layers, [1]
    while (tokens := width * height // patches[0] ** 2) > BASE_TOKENS or len(patches) < 2:
        longer = [
            patches[0] * by
            for by in (2, 3, 5, 7)
            if tokens >= 4 * by**2 and width % (patches[0] * by) == height % (patches[0] * by) == 0
        ]
        if not longer:
            break
        patches.insert(0, longer[0])
    return layers, patches


def choose_models(prints: Fingerprint, hours: float, *, is_gpu: bool = False, memory: float = math.inf) -> Plan:
    """All of a recipe but the numbers of training steps, for which it has guesses. Raises `UserError`."""
    plan, size, choice = Plan(), Size.parse(prints.size), CHOICES[prints.kind]
    layers, patches = choose_grids(size)
    cells = [(size.width >> layers) * (size.height >> layers) // patch**2 for patch in patches]
    stages, speed = len(patches), GPU if is_gpu else 1.0
    seconds = 3600 * hours * speed
    shares = shares_of(prints, stages)

    def say(what: str, value: object, reason: str, source: str = "") -> None:
        plan.reasons.append(Reason(what, str(value), reason, source))

    # How often the finest stage can see the images decides how wide it may be, and whether mirror images are needed.
    passes = shares["finest"] * seconds / (cells[-1] * PER_TOKENS) / prints.training
    affordable = [tier for tier in TIERS if passes / cost_of(tier) >= PASSES["stage"] and prints.training >= ENOUGH]
    width, encoder, decoder, heads = max(affordable, default=TIERS[0])
    is_mirrored = prints.mirrored < SYMMETRIC and passes >= OFTEN
    steps = shares["autoencoder"] * seconds / (PER_STEP * size.width * size.height / 4096)
    wider = [each for each in CHANNELS if steps * (32 / each[0]) ** 2 >= LONG and prints.training >= MANY]
    channels = max(wider, default=CHANNELS[0])

    say("image_size", size.shown, "that of the images")
    say(
        "mirror images",
        "yes" if is_mirrored else "no",
        mirror_reason(prints, passes),
        "docs/experiments.md#mirror-images",
    )
    grid = " → ".join(f"{size.width // (patch << layers)}×{size.height // (patch << layers)}" for patch in patches)
    say(
        "grids",
        grid,
        f"{layers} halvings; from at most {BASE_TOKENS} tokens on",
        "docs/scaling.md#grids-for-128128-pixels",
    )

    batch, accumulated = fit(
        8 if size.width * size.height <= 8192 else 4,
        is_gpu,
        memory,
        IMAGE_BYTES * size.width * size.height / 4096 * channels[0] / 32,
    )
    plan.files["autoencoder"] = {
        "model_lr": 0.02,
        "image_channel": 3,
        "min_channel": channels[0],
        "max_channel": channels[1],
        "num_layers": layers,
        "latent_channel": 4,
        "hidden_activation_type": "silu",
        "use_final_enc_activation": True,
        "encoder_activation_type": "tanh",
        "use_final_dec_activation": True,
        "decoder_activation_type": "tanh",
        "latent_noise": 0.05,
        "num_enc_res_blocks": 0,
        "num_dec_res_blocks": 2,
        "loss": "l1",
        "edge_weight": 2,
    } | choice.autoencoder
    say(
        "autoencoder",
        f"{channels[0]} to {channels[1]} channels, l1 and edges",
        f"{prints.kind}: {choice.reason}",
        choice.source,
    )
    held_out = {} if prints.fraction == 0.05 else {"val_fraction": prints.fraction, "test_fraction": prints.fraction}
    common = {"lr_schedule": "cosine", "keep_checkpoint": 2} | held_out
    plain = {"batch_size": batch, "grad_accum_step": accumulated, "ema_decay": 0, "log_step": 200} | common
    settings = {
        "description": f"{prints.images} {prints.kind}, {hours:g} hours: scripts.train_cascade auto wrote it.",
        "image_size": prints.size,
        **({"flip": True} if is_mirrored else {}),
        "autoencoder": dict(plain),
        "feature_maps": {"batch_size": 64},
        "codebook": {"batch_size": 64} | held_out,
        "prune": {"batch_size": 64, "prune_threshold": 10} | held_out,
        "decoder": dict(plain),
    }
    if held_out:
        say("held out", f"{prints.fraction:.0%} and {prints.fraction:.0%}", "so that enough images choose and test")
    units = [power(prints.training / 25, 4, 64 if width == 128 else 256)]
    for level, (patch, tokens) in enumerate(zip(patches, cells, strict=True)):
        is_finest = level == stages - 1
        most = (2048 if width == 128 else 4096) if is_finest else 512
        units.append(power(prints.training * tokens / (128 if is_finest else 200), 16, most))
        plan.files[f"codebook_{level}"] = {"model_lr": 0.0001, "patch_H": patch, "patch_W": patch}
    for name, number in zip((CONDITION, *map(str, range(stages))), units, strict=True):
        book = plan.files.setdefault(f"codebook_{name}", {"model_lr": 0.0001})
        book |= {"num_embeddings": number, "neighbourhood_step": 200}
    say(
        "units",
        ", ".join(map(str, units)),
        "128 patches or more for a unit, 25 images for one of the condition",
        "configs/demo-64",
    )

    base, between, finest = choice.temperatures
    temperatures = [base, *[between] * (stages - 2), finest][: max(stages, 1)] if stages > 1 else [base]
    generation, books = (
        {},
        [f"codebook_{name}/models_checkpoint/pruned_codebook.pt" for name in (CONDITION, *range(stages))],
    )
    for level, tokens in enumerate(cells):
        name, is_finest = f"transformer_{level}", level == stages - 1
        config = {"model_lr": 0.013 if level == 0 else 0.014 if is_finest else 0.019}
        config |= {
            "use_sliding_window": True,
            "sliding_window": 256,
            "num_enc_layers": encoder,
            "num_dec_layers": decoder,
        }
        config |= {"self_attn_heads": heads, "cross_attn_heads": heads, "in_dim": width, "hidden_dim": 2 * width}
        config |= {"hidden_activation": "silu"}
        config |= {"dropout": 0.1, "use_labels": True} if level == 0 else {"condition_noise": 0.1 if is_finest else 0.2}
        plan.files[name] = config
        wanted = max(4, min(64, 2048 // tokens))
        batch, accumulated = fit(wanted, is_gpu, memory, STAGE_BYTES * tokens / 256 * width / 128)
        settings[name] = {"batch_size": batch, "grad_accum_step": accumulated, "ema_decay": 0.98} | common
        paths = {"model_path": f"{name}/models_checkpoint/best.pt", "lr_codebook_path": books[level]}
        generation[str(level)] = paths | {"hr_codebook_path": books[level + 1], "temperature": temperatures[level]}
    say(
        "stages",
        f"{stages} of width {width}",
        f"the finest can pass {passes / cost_of((width, encoder, decoder, heads)):.1f} "
        f"times over the images; wider from {PASSES['stage']} passes and {ENOUGH:,} images on",
        "docs/scaling.md#loss-over-compute",
    )
    say("temperatures", ", ".join(map(str, temperatures)), choice.reason, choice.source)
    settings["generate"] = {"num_images": 25, "seed": 0, "animate": "webp"}
    plan.files |= {"recipe": settings, "generate": generation}
    return plan


def cost_of(tier: tuple[int, int, int, int]) -> float:
    """Operations of a stage of some width and layers, in those of the narrowest."""
    (width, *layers, _), (narrow, *few, _) = tier, TIERS[0]
    return (width / narrow) ** 2 * sum(layers) / sum(few)


def mirror_reason(prints: Fingerprint, passes: float) -> str:
    """Why mirror images are learned from, or not."""
    if prints.mirrored >= SYMMETRIC:
        return f"left and right differ: mirror images are {prints.mirrored:.2f} times as far from the images"
    often = f"the finest stage could pass {passes:.0f} times over the images"
    return (
        f"{often}, and mirror images are about as near as images"
        if passes >= OFTEN
        else f"{often}: they pay from {OFTEN} on"
    )


def fit(batch: int, is_gpu: bool, memory: float, per_image: float) -> tuple[int, int]:
    """Images of a batch, and batches of a training step, so that a batch takes at most half of the memory in bytes."""
    batch *= 4 if is_gpu else 1
    parts = next(
        parts for parts in (2**n for n in count()) if parts > batch or batch // parts * per_image <= memory / 2
    )
    if parts > batch:
        need, free = 2 * per_image / 2**30, memory / 2**30
        raise UserError(f"memory: one image needs {need:.1f} GiB, and {free:.1f} are free; make the images smaller")
    return batch // parts, parts


def shares_of(prints: Fingerprint, stages: int) -> dict[str, float]:
    """The share of the training time of each section; `finest` once more under that name."""
    own = CHOICES[prints.kind].share
    rest = {name: share for name, share in SHARES.items() if name in ("codebook", "decoder")}
    for level in range(stages):
        name = f"transformer_{level}"
        if level == stages - 1:
            rest[name] = SHARES["finest"]
        else:
            rest[name] = SHARES[name] if level == 0 else SHARES["between"] / max(1, stages - 2)
    factor = (1 - own) / sum(rest.values())
    shares = {"autoencoder": own} | {name: share * factor for name, share in rest.items()}
    return shares | {"finest": shares[f"transformer_{stages - 1}"]}


def guess_costs(plan: Plan, prints: Fingerprint, is_gpu: bool = False) -> dict[str, Cost]:
    """What each step may cost, before anything was measured on this machine."""
    size, speed = Size.parse(prints.size), GPU if is_gpu else 1.0
    pixels = size.width * size.height / 4096
    model, recipe = plan.files["autoencoder"], plan.settings
    wide = (model["min_channel"] / 32) ** 2 * pixels * recipe["autoencoder"]["batch_size"] / 8
    reading = START + prints.images * (1 + recipe.get("flip", False)) * 0.001 * pixels
    costs = {"autoencoder": Cost(START + 3, PER_STEP * wide / speed, 2), "feature_maps": Cost(reading)}
    cells = cells_of(plan)
    for level, name in enumerate((CONDITION, *range(sum(each.startswith("transformer_") for each in plan.files)))):
        costs[f"codebook_{name}"] = Cost(START + 8, 0.02, 4)
        costs[f"prune_codebook_{name}"] = Cost(START + 3)
        if name != CONDITION:
            stage, own = plan.files[f"transformer_{name}"], recipe[f"transformer_{name}"]
            tokens = (
                cells // plan.files[f"codebook_{name}"]["patch_H"] ** 2 * own["batch_size"] * own["grad_accum_step"]
            )
            tier = stage["in_dim"], stage["num_enc_layers"], stage["num_dec_layers"], 0
            costs[f"transformer_{name}"] = Cost(START + 6, tokens * PER_TOKENS * cost_of(tier) / speed, 3 + level)
    return costs | {"decoder": Cost(START + 3, PER_STEP * wide / speed, 2), "generate": Cost(START + 6)}


@dataclass(frozen=True)
class Evaluation:
    """How many images the evaluation compares, and reads to look for copies, and the seconds that it takes."""

    num_images: int
    num_training: int
    seconds: float


def choose_evaluation(
    prints: Fingerprint, tokens: int, seconds: float, slowness: float, start: float
) -> Evaluation | None:
    """The largest evaluation that `seconds` allow, the smallest if they allow none; None without images for it."""
    least = min(prints.test or prints.validation, prints.training)
    if least < 4:
        return None
    for number in (1000, 500, 250, 120, 60):
        number = min(number, least)
        trained = min(prints.training, 20 * number)
        needed = PER_FEATURE * (trained + 12 * number) + PER_SAMPLE * tokens / 256 * (number + min(number, 128))
        chosen = Evaluation(number, trained, 3 * start + slowness * needed)
        if chosen.seconds <= seconds:
            break
    return chosen


@dataclass(frozen=True)
class Section:
    """Options of recipe.json that a number of training steps belongs to."""

    share: float  # of the training time
    low: int  # training steps
    high: int
    checkpoints: int
    warmup: int = 0


def sections_of(recipe: dict, prints: Fingerprint) -> dict[str, Section]:
    """The sections of a recipe.json that train."""
    stages = [name for name in recipe if name.startswith("transformer_")]
    shares, sections = shares_of(prints, len(stages)), {}
    for name in ("autoencoder", "codebook", "decoder", *stages):
        if name not in recipe:
            continue
        kind = "stage" if name in stages else name
        high, options = CODEBOOK_STEPS, recipe[name]
        if name != "codebook":
            size = options["batch_size"] * options.get("grad_accum_step", 1)
            passes = PASSES.get(name, PASSES["stage"]) * (1 + recipe.get("flip", False))
            high = math.ceil(passes * prints.training / size)
        low = min(LEAST[kind], high)
        checkpoints = CHECKPOINTS.get(name, CHECKPOINTS["stage"])
        sections[name] = Section(shares[name], low, high, checkpoints, WARMUP.get(kind, 0))
    return sections


def section_of(step: str) -> str:
    """The section of a step's training steps."""
    return "codebook" if step.startswith("codebook_") else step


def choose_steps(
    left: float, steps: Iterable[str], costs: dict[str, Cost], sections: dict[str, Section]
) -> tuple[dict[str, dict[str, int]], dict[str, float]]:
    """Divide the seconds that are left among the steps that have not begun.

    Returns the options of each section, and the seconds of each step, whose sum is at most `left`. Raises `UserError`
    with the least hours if they do not suffice.
    """
    steps = [step for step in steps if step in costs]
    once = sum(costs[step].once for step in steps)
    own = {}  # of each section: seconds for a training step and for a checkpoint
    for step in steps:
        if (name := section_of(step)) in sections:
            before = own.get(name, (0.0, 0.0))
            own[name] = before[0] + costs[step].per_step, before[1] + costs[step].per_checkpoint
    least = {name: sections[name].low * rate + checkpoint for name, (rate, checkpoint) in own.items()}
    free = left - once
    if free < sum(least.values()):
        raise TooShort(once + sum(least.values()))
    most = {name: sections[name].high * rate + sections[name].checkpoints * each for name, (rate, each) in own.items()}
    given = divide(free, {name: sections[name].share for name in own}, least, most)
    options, numbers = {}, {}
    for name, (rate, checkpoint) in own.items():
        section = sections[name]
        spare = min(0.15 * given[name], given[name] - section.low * rate)  # seconds for checkpoints
        number = max(1, min(section.checkpoints, int(spare / max(checkpoint, 1e-9))))
        total = min(section.high, max(section.low, int((given[name] - number * checkpoint) / max(rate, 1e-9))))
        numbers[name] = total, number
        options[name] = {"max_step": total}
        if name != "codebook":
            warmup = min(section.warmup, total // 10)
            options[name] |= {"checkpoint_step": math.ceil(total / number), "warmup_step": warmup}
    seconds = {step: costs[step].seconds(*numbers.get(section_of(step), (0, 0))) for step in steps}
    return options, seconds


class TooShort(UserError):
    """The time does not suffice for the least number of training steps."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"{seconds / 3600:.2f} hours are needed at least")
        self.seconds = seconds


def divide(total: float, shares: dict[str, float], least: dict[str, float], most: dict[str, float]) -> dict[str, float]:
    """Divide a total by shares, within limits; what those at their limit leave goes to the others."""
    given, is_open = {}, dict(shares)
    while is_open:
        rest = total - sum(given.values())
        unit = rest / sum(is_open.values())
        low = {name: least[name] for name, share in is_open.items() if share * unit < least[name]}
        high = {name: most[name] for name, share in is_open.items() if share * unit > most[name]}
        # Both at once could leave too little for the first, so those below their least come first.
        if not (fixed := low or high):
            return given | {name: share * unit for name, share in is_open.items()}
        given |= fixed
        is_open = {name: share for name, share in is_open.items() if name not in fixed}
    return given


def describe(plan: Plan, prints: Fingerprint, hours: float, took: dict[str, float], notes: list[str]) -> str:
    """The text of recipe.md: the data, each value with its reason, and the minutes of each step."""
    rows = [[each.what, each.value, each.reason, each.source] for each in plan.reasons]
    times = []
    for name, seconds in plan.seconds.items():
        options = plan.settings.get(section_of(name), {})
        true = f"{took[name] / 60:.1f}" if name in took else ""
        times.append([name, options.get("max_step", ""), f"{seconds / 60:.1f}", true])
    planned, true = sum(plan.seconds.values()) / 60, sum(took.values()) / 60
    times.append(["all", "", f"{planned:.1f}", f"{true:.1f}" if took else ""])
    lines = [f"# A recipe for {hours:g} hours", "", *(f"- {line}" for line in (*prints.lines(), *notes)), ""]
    lines += [table(("", "value", "why", "source"), rows), ""]
    lines += [table(("step", "training steps", "planned minutes", "minutes"), times), ""]
    return "\n".join(lines)
