"""How the hours are divided among the steps of a recipe, and then among what is left of them.

All of this depends on its arguments alone.
"""

import math
from typing import NamedTuple

from scripts.dry_run import Cost
from utils.runs.chain import maps_per_image

# Of a section of recipe.json: training steps at least; passes over the training images at most, after which a stage of
# few images was the best (docs/experiments.md#few-images), or an autoencoder no longer gained; checkpoints at most; and
# training steps of warm-up, at most a tenth of all.
RULES = {
    "autoencoder": (100, 200, 2, 100),
    "codebook": (30, 2, 1, 0),  # or `CODEBOOK_STEPS`
    "decoder": (30, 60, 2, 100),
    "transformer_0": (60, 8, 8, 50),
    "finer": (60, 12, 6, 50),  # the other stages
}
PASSES = RULES["finer"][1]
CODEBOOK_STEPS = 300  # that a codebook may make of few images too (docs/experiments.md#codebooks)
# The rest of the training time, as the demo spends it (docs/scaling.md#times); later stages share a part.
SHARES = {"codebook": 0.06, "decoder": 0.08, "transformer_0": 0.08}
FINER = 0.7
EVALUATED = 0.08  # share of all time for the evaluation, at most
BEGIN, PER_FEATURE, PER_SAMPLE = 6.0, 0.005, 0.05  # seconds: to begin, an image's features, a sample of 256 tokens
EVALUATION = "evaluate"  # what comes after the steps of the chain


class Shares(NamedTuple):
    autoencoder: float  # of all of it
    between: float = 0.1  # of the rest, as those above, for the stages between the base stage and the finest


def shares_of(given: Shares, stages: int) -> dict[str, float]:
    """The share of the training time of each section, with what depends on the images given."""
    autoencoder, between = given
    parts = SHARES | {f"transformer_{level}": between / (stages - 2) for level in range(1, stages - 1)}
    if stages == 2:  # the base stage writes what a stage between would
        parts["transformer_0"] += between
    parts[f"transformer_{stages - 1}"] = FINER - between
    factor = (1 - autoencoder) / sum(parts.values())
    return {"autoencoder": autoencoder} | {name: part * factor for name, part in parts.items()}


def choose_evaluation(
    held_out: int, training: int, tokens: int, seconds: float, slowness: float
) -> tuple[dict[str, int], float]:
    least, chosen = min(held_out, training), ({}, 0.0)
    for number in (1000, 500, 250, 120, 60) if least >= 4 else ():
        number = min(number, least)
        trained = min(training, 20 * number)  # that are searched for copies
        needed = PER_FEATURE * (trained + 12 * number) + PER_SAMPLE * tokens / 256 * (number + min(number, 128))
        chosen = {"num_images": number, "num_training": trained}, slowness * (BEGIN + needed)
        if chosen[1] <= seconds:
            break
    return chosen


class Section(NamedTuple):
    """Options of recipe.json that a number of training steps belongs to."""

    share: float  # of the training time
    low: int  # training steps
    high: int
    checkpoints: int
    warmup: int


def sections_of(recipe: dict, training: int, given: Shares) -> dict[str, Section]:
    sections = {}
    for name, share in shares_of(given, sum(name.startswith("transformer_") for name in recipe)).items():
        low, passes, *rest = RULES.get(name, RULES["finer"])
        size = recipe[name]["batch_size"] * recipe[name].get("grad_accum_step", 1)
        high = math.ceil(passes * maps_per_image(recipe, name) * training / size)
        high = max(high, CODEBOOK_STEPS) if name == "codebook" else high
        sections[name] = Section(share, min(low, high), high, *rest)
    return sections


def section_of(step: str) -> str:
    return "codebook" if step.startswith("codebook_") else step


def choose_steps(
    left: float, costs: dict[str, Cost], sections: dict[str, Section]
) -> tuple[dict[str, dict[str, int]], dict[str, float]]:
    """Divide the seconds that are left among the steps that have these costs.

    Returns the options of each section, and the seconds of each step. The sum of these is at most `left`, unless that
    is too little even for the least numbers of training steps, which are then returned.
    """
    free = left - sum(cost.once for cost in costs.values())
    own = {}  # of each section: seconds for a training step and for a checkpoint
    for step, cost in costs.items():
        if (name := section_of(step)) in sections:
            rate, each = own.get(name, (0.0, 0.0))
            own[name] = rate + cost.per_step, each + cost.per_checkpoint
    least = {name: sections[name].low * rate + each for name, (rate, each) in own.items()}
    most = {name: sections[name].high * rate + sections[name].checkpoints * each for name, (rate, each) in own.items()}
    given = divide(max(free, sum(least.values())), {name: sections[name].share for name in own}, least, most)
    options, numbers = {}, {}
    for name, (rate, each) in own.items():
        section = sections[name]
        spare = min(0.15 * given[name], given[name] - section.low * rate)  # seconds for checkpoints
        number = max(1, min(section.checkpoints, int(spare / max(each, 1e-9))))
        total = min(section.high, max(section.low, int((given[name] - number * each) / max(rate, 1e-9))))
        numbers[name], options[name] = (total, number), {"max_step": total}
        if name != "codebook":
            warmup = min(section.warmup, total // 10)
            options[name] |= {"checkpoint_step": math.ceil(total / number), "warmup_step": warmup}
            options[name] |= {"schedule_step": total}  # also if the training is stopped before
    return options, {step: cost.seconds(*numbers.get(section_of(step), (0, 0))) for step, cost in costs.items()}


def divide(total: float, shares: dict[str, float], least: dict[str, float], most: dict[str, float]) -> dict[str, float]:
    """Divide a total by shares, within limits; what those at their limit leave goes to the others."""
    unit = total / sum(shares.values()) if shares else 0.0
    low = {name: least[name] for name, share in shares.items() if share * unit < least[name]}
    high = {name: most[name] for name, share in shares.items() if share * unit > most[name]}
    # Both at once could leave too little for the first, so those below their least come first.
    if not (fixed := low or high):
        return {name: share * unit for name, share in shares.items()}
    others = {name: share for name, share in shares.items() if name not in fixed}
    return fixed | divide(total - sum(fixed.values()), others, least, most)
