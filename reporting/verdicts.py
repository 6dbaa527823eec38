"""What the numbers of a run mean, in words, by simple rules with the thresholds below."""

from dataclasses import dataclass
from itertools import pairwise

from evaluation.results import SETS, Novelty, Results
from reporting.run import Run, Step

GRADES = GOOD, FAIR, POOR = "good", "fair", "poor"
# Limits of a value that is better the lower it is: good up to the first, poor above the second.
PSNR = (-28.0, -23.0)  # minus the dB of held-out reconstructions
QUANTIZATION = (4.0, 8.0)  # dB that the finest codebook costs
OVERFITTING = (1.02, 1.1)  # final validation loss, as a multiple of the lowest one
DISTANCE = (1.5, 3.0)  # kernel distance of the samples, as a multiple of that of quantized reconstructions
COPIES = (2.0, 5.0)  # share of near copies, as a multiple of that among held-out images
RECALL = (-0.6, -0.3)  # minus that of the samples, as a share of that of quantized reconstructions
PRECISION = (-0.6, -0.3)  # minus that of the samples, as a share of that of training images
FEW_COPIES = 0.02  # a share of near copies that is no concern, whatever the multiple
FALL = 0.98  # training loss in the last eighth of a run, as a multiple of that in the eighth before: still falling
LOSSES = {
    "autoencoder": "Most is lost in the autoencoder: train it longer, or give it more latent channels.",
    "codebooks": "Most is lost in the codebooks: give the finest one more units, or smaller patches.",
    "transformers": "Most is lost in the transformers: train them longer.",
}


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
    verdicts = [*fidelity(decoded_psnr(run), quantized_psnr(run)), *map(learning, run.of_kind("transformer"))]
    if run.evaluation is not None:
        verdicts += [*comparison(run.evaluation), novelty(run.evaluation.novelty)]
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
    """The bits that a held-out image costs: its condition, its label if there is one, and its tokens."""
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
    floor, _, quantized, samples = rows = [results.distance(name) for name in SETS]
    reference = quantized or floor
    if samples is None or reference is None:
        return []
    least = max(reference.kernel_high, floor.kernel_high if floor else 0, 1e-6)
    text = (
        f"The kernel distance between samples and test images is {samples.kernel:.3f}; that of {reference.name} "
        f"is {reference.kernel:.3f}, the best that samples can reach. The samples are "
    )
    advice = "Train the transformers longer, or try a lower temperature."
    meanings = ("close to that", "some way from that", "far from that")
    verdicts = [verdict("Samples", samples.kernel / least, DISTANCE, text, advice, *meanings)]
    if None not in rows and floor.precision > 0:
        text = (
            f"{samples.precision:.0%} of the samples look like real images (precision); of training images, "
            f"{floor.precision:.0%} do."
        )
        added = [max(0.0, after.kernel - before.kernel) for before, after in pairwise(rows)]
        most, advice = added.index(max(added)), ""
        if added[most]:
            shares = ", ".join(
                f"{part / sum(added):.0%} from the {name}" for part, name in zip(added, LOSSES, strict=True)
            )
            text, advice = f"{text} Their distance comes {shares}.", list(LOSSES.values())[most]
        verdicts.append(verdict("Realism", -samples.precision / floor.precision, PRECISION, text, advice))
    if reference.recall > 0:
        text = (
            f"The samples cover {samples.recall:.0%} of the variety of test images (recall); {reference.name} "
            f"cover {reference.recall:.0%}."
        )
        advice = "Train the transformers longer, or try a higher temperature."
        verdicts.append(verdict("Variety", -samples.recall / reference.recall, RECALL, text, advice))
    return verdicts


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
