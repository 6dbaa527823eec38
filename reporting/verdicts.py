"""What the numbers of a run mean, in words, by simple rules with the thresholds below.

First come the verdicts on the steps, in their order, then those on the samples. What looks good is not called so where
something that it depends on is poor: noise is new, and copies look real. Numbers in the reasons are those of
docs/evaluation.md, docs/experiments.md and docs/scaling.md.
"""

import dataclasses
import math
from dataclasses import dataclass

from evaluation.results import SETS, Level, Results
from models.som.statistics import FEW_KEPT, FEW_KEPT_ADVICE
from reporting.run import Run, Step
from utils.runs.folders import CONDITION

GRADES = GOOD, FAIR, POOR = "good", "fair", "poor"
UNCLEAR = "unclear"  # the numbers do not show it
# Limits of a value that is better the lower it is: good up to the first, poor above the second.
PSNR = (-28.0, -23.0)  # minus the dB of held-out reconstructions: emoji are clean at 28, faces of 22 are blurred
QUANTIZATION = (4.0, 8.0)  # dB that the finest codebook costs: the demo 1; 6 double the error
KEPT = (-FEW_KEPT, -FEW_KEPT / 2)  # minus the share of the units that pruning by a threshold has left
# The validation loss of a stage as a share of that of a uniform guess: faces 0.05 to 0.27; emoji, which are recognized
# but not clean, 0.39 to 0.48; stages of three epochs, which write noise, 0.52 to 0.65.
GUESS = (0.4, 0.6)
# The kernel distance of samples, as a multiple of what it can reach: 9,000 faces 1, 1,500 faces 2 to 3.
DISTANCE = (1.5, 3.0)
COVERAGE = (-0.6, -0.3)  # minus precision or recall as a share of the best possible: faces 0.9, flat photographs 0.1
COPIES = (2.0, 5.0)  # share of near copies, as a multiple of that of held-out images: 2.4 are chance in 442 images
CONFIDENCE = (-0.9, -0.75)  # minus the bits of a stage's samples, as a share of test images': 9,000 faces 0.9, 400 0.77
# Other limits.
OVERFITTING = 1.02  # final validation loss, as a multiple of the lowest: checkpoints that have converged differ by less
LEAST = 0.03  # a kernel distance that is no concern, whatever the multiple: that of the demo's quantized faces
FEW_COPIES = 0.02  # a share of near copies that is no concern, whatever the multiple: 1 % is one by definition
FALL = 0.98  # training loss in the last eighth of a run, as a multiple of that in the eighth before: still falling
ENOUGH = 100  # images in a set: the 95 % interval of a share of fewer reaches more than 10 points to each side
LEARN_LESS = "Use more images or more dropout, or stop training earlier."


@dataclass(frozen=True)
class Verdict:
    subject: str
    grade: str
    text: str
    advice: str = ""


def what_next(verdicts: list[Verdict]) -> str:
    """One piece of advice: that of the first of the worst verdicts, since later steps cannot repair an earlier one."""
    first = [each for grade in (POOR, FAIR, UNCLEAR, GOOD) for each in verdicts if each.grade == grade and each.advice]
    return f"{first[0].subject}: {first[0].advice[0].lower()}{first[0].advice[1:]}" if first else ""


def verdict(subject: str, value: float, limits: tuple[float, float], text: str, advice: str, *meanings: str) -> Verdict:
    grade = GOOD if value <= limits[0] else POOR if value > limits[1] else FAIR
    if meanings:
        text += f"{meanings[GRADES.index(grade)]}."
    return Verdict(subject, grade, text, "" if grade == GOOD else advice)


def judge(run: Run) -> list[Verdict]:
    steps = [*fidelity(decoded_psnr(run), quantized_psnr(run)), *map(pruning, run.of_kind("codebook")), *stages(run)]
    steps = [each for each in steps if each is not None]
    outcomes = [] if run.evaluation is None else comparison(run.evaluation)
    if run.evaluation is not None:  # it is no praise that what is far from real pictures is new
        is_far = any(each.subject == "Samples" and each.grade == POOR for each in outcomes)
        outcomes += [each for each in novelty(run.evaluation) if not (is_far and each.grade == GOOD)]
    poor = next((each.subject.lower() for each in [*steps, *outcomes] if each.grade == POOR), None)
    return [*steps, *(doubted(each, poor) if poor and each.grade == GOOD else each for each in outcomes)]


def doubted(praise: Verdict, poor: str) -> Verdict:
    """What is left of a good verdict on samples where `poor` is."""
    return dataclasses.replace(
        praise, grade=UNCLEAR, text=f"{praise.text} This says little: the verdict on {poor} is poor."
    )


def decoded_psnr(run: Run) -> float | None:
    if run.evaluation is not None and run.evaluation.reconstruction:
        return run.evaluation.reconstruction[0].psnr
    return run.steps["autoencoder"].last("val_psnr") if "autoencoder" in run.steps else None


def quantized_psnr(run: Run) -> float | None:
    if run.evaluation is not None and len(run.evaluation.reconstruction) > 1:
        return run.evaluation.reconstruction[-1].psnr
    books = [step for step in run.of_kind("codebook") if step.folder.level != CONDITION]
    values = [books[-1].last(f"{prefix}psnr_after_quantization") for prefix in ("pruned_", "")] if books else []
    return next((psnr for psnr in values if psnr is not None), None)


def image_bits(run: Run) -> float | None:
    if run.evaluation is not None and run.evaluation.bits:
        return sum(row.bits for row in run.evaluation.bits)
    transformers = run.of_kind("transformer")
    return transformers[-1].last("image_bits") if transformers else None


def fidelity(decoded: float | None, quantized: float | None) -> list[Verdict]:
    if decoded is None:
        return []
    text = f"The autoencoder reconstructs held-out images at {decoded:.1f} dB: the results are "
    advice = "Train the autoencoder longer, or give it more latent channels."
    meanings = ("close to the originals", "visibly softer than the originals", "blurred")
    verdicts = [verdict("Autoencoder", -decoded, PSNR, text, advice, *meanings)]
    if quantized is not None:
        text = f"Quantization lowers this from {decoded:.1f} to {quantized:.1f} dB, which limits all samples."
        advice = "Give the finest codebook more units, or smaller patches."
        verdicts.append(verdict("Codebooks", decoded - quantized, QUANTIZATION, text, advice))
    return verdicts


def pruning(step: Step) -> Verdict | None:
    """Whether pruning has left only few units of a codebook, unless it was told how many; nothing if it has not."""
    units, left, job = step.last("units"), step.last("pruned_units"), step.jobs.get("prune_codebook.py")
    if not units or left is None or job is None or job.last.arguments.get("keep") or left >= FEW_KEPT * units:
        return None
    subject = "Condition codebook" if step.folder.level == CONDITION else f"Codebook {step.folder.level}"
    text = f"Pruning has left {left} of {units} units: the others were nearest to too few training patches."
    return verdict(subject, -left / units, KEPT, text, FEW_KEPT_ADVICE)


def stages(run: Run) -> list[Verdict]:
    """Each stage by its losses and by what it writes at its own level; the worst of its parts is its grade."""
    steps = {f"stage {step.folder.level}": step for step in run.of_kind("transformer")}
    rows = {row.name: row for row in run.evaluation.levels} if run.evaluation else {}
    verdicts = []
    for name in dict.fromkeys([*steps, *rows]):
        parts = learning(steps[name], units_of(run, steps[name])) if name in steps else []
        parts += writing(run.evaluation, rows[name]) if name in rows else []
        if parts:
            worst = max(parts, key=lambda part: GRADES.index(part.grade))  # the first of them
            verdicts.append(dataclasses.replace(worst, text=" ".join(part.text for part in parts)))
    return verdicts


def units_of(run: Run, step: Step) -> float | None:
    book = run.steps.get(f"codebook_{step.folder.level}")
    return book and (book.last("pruned_units") or book.last("units"))


def learning(step: Step, units: float | None) -> list[Verdict]:
    """Whether a stage still improves, has begun to overfit, and predicts tokens better than a guess does."""
    losses = [(row["val_loss"], row["step"]) for row in step.checkpoints]
    training = [(row["step"], row["train_loss"]) for row in step.rows if "train_loss" in row]
    if not losses or not training:
        return []
    subject, final, (lowest, at) = f"Stage {step.folder.level}", losses[-1][0], min(losses)
    earlier, change = [loss for number, loss in training if number <= at], change_of(training)
    if final > OVERFITTING * lowest and earlier and training[-1][1] < earlier[-1]:
        text = (
            f"Overfitting: the validation loss rose from {lowest:.3f} at step {at:,} to {final:.3f} while the training "
            "loss kept falling. Generation uses the checkpoint with the lowest validation loss."
        )
        parts, advice = [Verdict(subject, FAIR, text, LEARN_LESS)], LEARN_LESS
    else:
        is_falling, more = change is not None and change < FALL, "Train for more steps."
        text = f"The validation loss ended at {final:.3f} nats per token, the training loss at {training[-1][1]:.3f}"
        parts = [Verdict(subject, GOOD, f"{text}{' and still falling' * is_falling}.", more * is_falling)]
        has_ceased = "Its loss has ceased to fall: use more images, a larger 'in_dim' or another 'model_lr'."
        advice = more if change is None or is_falling else has_ceased
    if units and units > 1:
        share = lowest / math.log(units)
        text = f"The lowest is {share:.0%} of what a uniform guess over its {units:,.0f} units costs."
        parts.append(verdict(subject, share, GUESS, text, advice))
    return parts


def change_of(points: list[tuple[int, float]]) -> float | None:
    """The loss in the last eighth of a curve of (step, loss), as a multiple of that before; None if it is too short."""
    end = points[-1][0]
    eighths = [[loss for step, loss in points if end * low < step <= end * (low + 1 / 8)] for low in (3 / 4, 7 / 8)]
    if not all(eighths):
        return None
    before, last = (sum(part) / len(part) for part in eighths)
    return last / before


def writing(results: Results, row: Level) -> list[Verdict]:
    """What a stage writes beside true tokens of its level, and whether it is surer of it than it should be."""
    subject, first, own = row.name.capitalize(), results.first_loss, f"{row.bits:.1f} bits ({row.bits_low:.1f} to"
    text = f"At its own level, samples are at a kernel distance of {row.kernel:.3f}, "
    pairs = ((row.precision, row.floor_precision), (row.recall, row.floor_recall))
    least = min((share / floor for share, floor in pairs if floor > 0), default=1.0)
    if row is first:
        grade = POOR if -least > COVERAGE[1] else FAIR
        parts = [Verdict(subject, grade, f"{text}clearly above the floor of {row.floor:.3f}.", improvement(row))]
    elif row.is_above_floor:
        text += f"clearly above the floor of {row.floor:.3f}, perhaps because of {first.name}."
        parts = [Verdict(subject, FAIR, text)]
    else:
        text += f"at the floor of {row.floor:.3f} as far as {results.num_images} images show."
        parts = [Verdict(subject, GOOD, text)]
    if is_overconfident(row):
        text = (
            f"Samples at temperature 1 cost {own} {row.bits_high:.1f}), {results.held_out} {row.test_bits:.1f}: it is "
        )
        meanings = ("", "overconfident", "far too confident")
        parts.append(verdict(subject, -row.bits / row.test_bits, CONFIDENCE, text, LEARN_LESS, *meanings))
    return parts


def is_overconfident(row: Level) -> bool:
    return row.test_bits is not None and row.bits_high < row.test_bits and row.bits < -CONFIDENCE[0] * row.test_bits


def improvement(row: Level) -> str:
    return LEARN_LESS if is_overconfident(row) else "Train it longer."


def what_to_improve(results: Results) -> str:
    """The first stage that loses something at its own level, or else what decodes the tokens."""
    if not results.levels:
        return "Evaluate the run again: the table by levels shows which stage to improve."
    if (first := results.first_loss) is None:
        return "No stage loses anything at its own level: train the autoencoder or its decoder longer."
    return f"Improve {first.name} first. {improvement(first)}"


def comparison(results: Results) -> list[Verdict]:
    floor, _, quantized, samples = (results.distance(name) for name in SETS)
    reference = quantized or floor
    if samples is None or reference is None:
        return []
    least = max(reference.kernel_high, floor.kernel_high if floor else 0, LEAST)
    if samples.kernel_low > DISTANCE[1] * least and (results.caveat or results.num_images < ENOUGH):
        text = (
            f"The samples are far from real pictures: at a kernel distance of {samples.kernel:.3f} "
            f"({samples.kernel_low:.3f} to {samples.kernel_high:.3f}), where {reference.name} are at most at "
            f"{least:.3f}."
        )
        return [Verdict("Samples", POOR, text, what_to_improve(results))]
    if results.caveat:
        advice = "Make the data set again with groups of your own, so that all kinds of pictures are held out."
        return [Verdict("Samples", UNCLEAR, results.caveat, advice)]
    if results.num_images < ENOUGH:
        text = (
            f"{results.num_images} images in each set are too few to judge how close samples come to real images, how "
            "many look real, how varied they are, and whether they are new."
        )
        advice = f"Evaluate at least {ENOUGH} {results.held_out}; by default 5 % of all images are held out as such."
        return [Verdict("Samples", UNCLEAR, text, advice)]
    text = (
        f"The kernel distance between samples and {results.held_out} is {samples.kernel:.3f}; that of {reference.name} "
        f"is {reference.kernel:.3f}, the best that samples can reach. The samples are "
    )
    advice = what_to_improve(results)
    meanings = ("close to that", "some way from that", "far from that")
    verdicts = [verdict("Samples", samples.kernel / least, DISTANCE, text, advice, *meanings)]
    if floor is not None and floor.precision > 0:
        text = (
            f"{samples.precision:.0%} of the samples look like real images (precision); of training images, "
            f"{floor.precision:.0%} do."
        )
        verdicts.append(verdict("Realism", -samples.precision / floor.precision, COVERAGE, text, advice))
    if reference.recall > 0:
        text = (
            f"The samples cover {samples.recall:.0%} of the variety of {results.held_out} (recall); {reference.name} "
            f"cover {reference.recall:.0%}."
        )
        advice = "Train the transformers longer, or try a higher temperature."
        verdicts.append(verdict("Variety", -samples.recall / reference.recall, COVERAGE, text, advice))
    return verdicts


def novelty(results: Results) -> list[Verdict]:
    """How many samples are near copies of training images, or have their layout; of few images only what is certain."""
    measured, is_few = results.novelty, results.num_images < ENOUGH
    if measured is None:
        return []
    text, multiple = "", 0.0
    for near, likeness in ((measured, "are near copies"), (measured.layout, "have the layout")):
        if near is not None:
            share, real = near.samples.share, near.held_out.share
            text += (
                f"{share:.1%} of the samples ({near.share_low:.1%} to {near.share_high:.1%}) {likeness} of a training "
                f"image, compared with {real:.1%} of the held-out images{': ' if near.layout is None else '; '}"
            )
            share = near.share_low if is_few else share
            multiple = max(multiple, 0.0 if share <= FEW_COPIES else share / max(real, 1e-6))
    meanings = (
        "the samples are new images",
        "some training images are memorized",
        "many training images are memorized",
    )
    judged = verdict("Novelty", multiple, COPIES, text, LEARN_LESS, *meanings)
    return [] if is_few and judged.grade == GOOD else [judged]
