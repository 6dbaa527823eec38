"""What the numbers of a run mean, in words, by simple rules with the thresholds below."""

from dataclasses import dataclass

from evaluation.results import SETS, Level, Novelty, Results
from models.som.statistics import FEW_KEPT, FEW_KEPT_ADVICE
from reporting.run import Run, Step
from utils.runs.folders import CONDITION

GRADES = GOOD, FAIR, POOR = "good", "fair", "poor"
# Limits of a value that is better the lower it is: good up to the first, poor above the second.
PSNR = (-28.0, -23.0)  # minus the dB of held-out reconstructions
QUANTIZATION = (4.0, 8.0)  # dB that the finest codebook costs
KEPT = (-FEW_KEPT, -FEW_KEPT / 2)  # minus the share of the units that pruning by a threshold has left
OVERFITTING = (1.02, 1.1)  # final validation loss, as a multiple of the lowest one
DISTANCE = (1.5, 3.0)  # kernel distance of the samples, as a multiple of that of quantized reconstructions
COPIES = (2.0, 5.0)  # share of near copies, as a multiple of that among held-out images
RECALL = (-0.6, -0.3)  # minus that of the samples, as a share of that of quantized reconstructions
PRECISION = (-0.6, -0.3)  # minus that of the samples, as a share of that of training images
FEW_COPIES = 0.02  # a share of near copies that is no concern, whatever the multiple
FALL = 0.98  # training loss in the last eighth of a run, as a multiple of that in the eighth before: still falling
COVERAGE = PRECISION  # minus the precision or recall of a stage at its level, as a share of that of training images
CONFIDENCE = (-0.9, -0.75)  # minus the bits of a stage's own samples, as a share of those of test images
LEARN_LESS = "use more images or more dropout, or stop training earlier"


@dataclass(frozen=True)
class Verdict:
    """A judgement: its subject, its grade, the numbers in words, and what to change, if anything."""

    subject: str
    grade: str
    text: str
    advice: str = ""


def what_next(verdicts: list[Verdict]) -> list[str]:
    """The advice of the worst verdicts, each with all subjects that it applies to."""
    worst = next((grade for grade in (POOR, FAIR) if any(verdict.grade == grade for verdict in verdicts)), None)
    advice: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.grade == worst and verdict.advice:
            advice.setdefault(verdict.advice, []).append(verdict.subject)
    return [f"{', '.join(subjects)}: {text[0].lower()}{text[1:]}" for text, subjects in advice.items()]


def verdict(subject: str, value: float, limits: tuple[float, float], text: str, advice: str, *meanings: str) -> Verdict:
    """The verdict on a value by its limits; of `meanings` the one of the grade ends the text."""
    grade = GOOD if value <= limits[0] else POOR if value > limits[1] else FAIR
    if meanings:
        text += f"{meanings[GRADES.index(grade)]}."
    return Verdict(subject, grade, text, "" if grade == GOOD else advice)


def judge(run: Run) -> list[Verdict]:
    """All verdicts that the numbers of a run allow."""
    verdicts = [*fidelity(decoded_psnr(run), quantized_psnr(run)), *map(pruning, run.of_kind("codebook"))]
    verdicts += map(learning, run.of_kind("transformer"))
    if run.evaluation is not None:
        results = run.evaluation
        verdicts += [*comparison(results), writing(results), confidence(results), novelty(results.novelty)]
    return [verdict for verdict in verdicts if verdict is not None]


def decoded_psnr(run: Run) -> float | None:
    """The PSNR of held-out images after the autoencoder, in dB."""
    if run.evaluation is not None and run.evaluation.reconstruction:
        return run.evaluation.reconstruction[0].psnr
    return run.steps["autoencoder"].last("val_psnr") if "autoencoder" in run.steps else None


def quantized_psnr(run: Run) -> float | None:
    """The PSNR of held-out images after quantization with the finest codebook, in dB."""
    if run.evaluation is not None and len(run.evaluation.reconstruction) > 1:
        return run.evaluation.reconstruction[-1].psnr
    books = [step for step in run.of_kind("codebook") if step.folder.level != "cond"]
    values = [books[-1].last(f"{prefix}psnr_after_quantization") for prefix in ("pruned_", "")] if books else []
    return next((psnr for psnr in values if psnr is not None), None)


def image_bits(run: Run) -> float | None:
    """The bits that a held-out image costs: its condition, its labels if there are any, and its tokens."""
    if run.evaluation is not None and run.evaluation.bits:
        return sum(row.bits for row in run.evaluation.bits)
    transformers = run.of_kind("transformer")
    return transformers[-1].last("image_bits") if transformers else None


def fidelity(decoded: float | None, quantized: float | None) -> list[Verdict]:
    """How much the autoencoder and the finest codebook lose, by the PSNR of held-out images after each."""
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


def learning(step: Step) -> Verdict | None:
    """Whether a transformer still improves, or has begun to overfit."""
    losses = [(row["val_loss"], row["step"]) for row in step.checkpoints]
    training = [(row["step"], row["train_loss"]) for row in step.rows if "train_loss" in row]
    if not losses or not training:
        return None
    subject, final, (lowest, at) = f"Transformer {step.folder.level}", losses[-1][0], min(losses)
    earlier = [loss for number, loss in training if number <= at]
    if final > OVERFITTING[0] * lowest and earlier and training[-1][1] < earlier[-1]:
        text = (
            f"Overfitting: the validation loss rose from {lowest:.3f} at step {at:,} to {final:.3f} while the training "
            "loss kept falling. Generation uses the checkpoint with the lowest validation loss."
        )
        return verdict(
            subject, final / lowest, OVERFITTING, text, "Use more images or more dropout, or stop training earlier."
        )
    text = f"The validation loss ended at {final:.3f} nats per token, the training loss at {training[-1][1]:.3f}"
    if is_falling(training):
        return Verdict(subject, FAIR, f"{text} and still falling.", "Train for more steps.")
    return Verdict(subject, GOOD, f"{text}: there is no sign of overfitting.")


def is_falling(points: list[tuple[int, float]]) -> bool:
    """Whether a curve of (step, loss) still falls at its end; False where it is too short to know."""
    end = points[-1][0]
    eighths = [[loss for step, loss in points if end * low < step <= end * (low + 1 / 8)] for low in (3 / 4, 7 / 8)]
    if not all(eighths):
        return False
    before, last = (sum(part) / len(part) for part in eighths)
    return last < FALL * before


def comparison(results: Results) -> list[Verdict]:
    """How close samples come to real images, how many look real, and how much of the variety they cover."""
    floor, _, quantized, samples = (results.distance(name) for name in SETS)
    reference = quantized or floor
    if samples is None or reference is None:
        return []
    least = max(reference.kernel_high, floor.kernel_high if floor else 0, 1e-6)
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
        verdicts.append(verdict("Realism", -samples.precision / floor.precision, PRECISION, text, advice))
    if reference.recall > 0:
        text = (
            f"The samples cover {samples.recall:.0%} of the variety of {results.held_out} (recall); {reference.name} "
            f"cover {reference.recall:.0%}."
        )
        advice = "Train the transformers longer, or try a higher temperature."
        verdicts.append(verdict("Variety", -samples.recall / reference.recall, RECALL, text, advice))
    return verdicts


def what_to_improve(results: Results) -> str:
    """The first stage that loses something at its own level, or else what decodes the tokens."""
    if not results.levels:
        return "Evaluate the run again: the table by levels shows which stage to improve."
    first = results.first_loss
    if first is None:
        return "No stage loses anything at its own level: train the autoencoder or its decoder longer."
    how = "train it longer, or try another temperature"
    return f"Improve {first.name} first: {LEARN_LESS if is_overconfident(first) else how}."


def writing(results: Results) -> Verdict | None:
    """Which stage is the first whose samples are clearly above the floor of its level."""
    if not results.levels:
        return None
    rows = ", ".join(f"{row.name} {row.kernel:.3f} (floor {row.floor:.3f})" for row in results.levels)
    text = f"Distances of samples from {results.held_out} at the level of each stage, all decoded alike: {rows}. "
    first = results.first_loss
    if first is None:
        return Verdict("Stages", GOOD, f"{text}{results.num_images} images show no stage that loses anything.")
    pairs = ((first.precision, first.floor_precision), (first.recall, first.floor_recall))
    least = min((share / floor for share, floor in pairs if floor > 0), default=1.0)
    text += f"{first.name.capitalize()} is the first that is clearly above its floor."
    grade = POOR if -least > COVERAGE[1] else FAIR
    return Verdict("Stages", grade, text, what_to_improve(results))


def is_overconfident(row: Level) -> bool:
    """Whether what a stage writes is much likelier to it than test images are."""
    return row.test_bits is not None and row.bits_high < row.test_bits and row.bits < -CONFIDENCE[0] * row.test_bits


def confidence(results: Results) -> Verdict | None:
    """Whether a stage is surer of its own samples than it should be."""
    rows = [row for row in results.levels if row.test_bits]
    if not rows:
        return None
    row = min([*filter(is_overconfident, rows)] or rows, key=lambda row: row.bits / row.test_bits)
    text = (
        f"Samples of {row.name} at temperature 1 cost {row.bits:.1f} bits ({row.bits_low:.1f} to {row.bits_high:.1f}), "
        f"{results.held_out} {row.test_bits:.1f}: "
    )
    if not is_overconfident(row):
        return Verdict("Confidence", GOOD, f"{text}no stage is much surer of what it writes than it should be.")
    advice = f"{LEARN_LESS[0].upper()}{LEARN_LESS[1:]}."
    meanings = ("", "it is overconfident", "it is far too confident")
    return verdict("Confidence", -row.bits / row.test_bits, CONFIDENCE, text, advice, *meanings)


def novelty(measured: Novelty | None) -> Verdict | None:
    """How many samples are near copies of training images, or have their layout."""
    if measured is None:
        return None
    text, multiple = "", 0.0
    for near, likeness in ((measured, "are near copies"), (measured.layout, "have the layout")):
        if near is not None:
            share, real = near.samples.share, near.held_out.share
            text += (
                f"{share:.1%} of the samples ({near.share_low:.1%} to {near.share_high:.1%}) {likeness} of a training "
                f"image, compared with {real:.1%} of the held-out images{': ' if near.layout is None else '; '}"
            )
            multiple = max(multiple, 0.0 if share <= FEW_COPIES else share / max(real, 1e-6))
    advice = "Use more images or more dropout, stop training earlier, or raise the temperature."
    meanings = (
        "the samples are new images",
        "some training images are memorized",
        "many training images are memorized",
    )
    return verdict("Novelty", multiple, COPIES, text, advice, *meanings)
