"""How the hours are divided among the steps of a recipe, and then among what is left of them.

All of this depends on its arguments alone.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scripts.auto.look import Fingerprint
from scripts.dry_run import Cost
from utils.core.files import UserError

# The rest of the training time, as the demo spends it (docs/times.md); the stages between share one part.
SHARES = {"codebook": 0.06, "decoder": 0.08, "transformer_0": 0.08, "between": 0.1, "finest": 0.6}
# Training steps of a section at least; checkpoints; passes over the training images at most, after which a stage of
# few images was the best (docs/experiments.md#few-images), or an autoencoder no longer gained.
LEAST = {"autoencoder": 100, "codebook": 30, "decoder": 30, "stage": 60}
CHECKPOINTS = {"autoencoder": 2, "codebook": 1, "decoder": 2, "transformer_0": 8, "stage": 6}
PASSES = {"autoencoder": 200, "decoder": 60, "transformer_0": 8, "stage": 12}
CODEBOOK_STEPS = 600
WARMUP = {"autoencoder": 100, "decoder": 100, "stage": 50}
EVALUATED = 0.08  # share of all time for the evaluation, at most
PER_FEATURE, PER_SAMPLE = 0.005, 0.05  # of the evaluation: an image's features, and a sample of 256 tokens
EVALUATION = "evaluate"  # what comes after the steps of the chain


def shares_of(autoencoder: float, stages: int) -> dict[str, float]:
    """The share of the training time of each section, with that of the autoencoder given."""
    last = stages - 1
    parts = {name: SHARES[name] for name in ("codebook", "decoder", "transformer_0")[: 3 if last else 2]}
    parts |= {f"transformer_{level}": SHARES["between"] / (last - 1) for level in range(1, last)}
    parts |= {f"transformer_{last}": SHARES["finest"]}
    factor = (1 - autoencoder) / sum(parts.values())
    return {"autoencoder": autoencoder} | {name: part * factor for name, part in parts.items()}


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


def sections_of(recipe: dict, training: int, autoencoder: float) -> dict[str, Section]:
    """The sections of a recipe.json that train on so many images; the share of the autoencoder is given."""
    stages = [name for name in recipe if name.startswith("transformer_")]
    shares, sections = shares_of(autoencoder, len(stages)), {}
    for name in ("autoencoder", "codebook", "decoder", *stages):
        if name not in recipe:
            continue
        kind = "stage" if name in stages else name
        high, options = CODEBOOK_STEPS, recipe[name]
        if name != "codebook":
            size = options["batch_size"] * options.get("grad_accum_step", 1)
            passes = PASSES.get(name, PASSES["stage"]) * (1 + recipe.get("flip", False))
            high = math.ceil(passes * training / size)
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
            options[name] |= {"schedule_step": total}  # also if the training is stopped before
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
