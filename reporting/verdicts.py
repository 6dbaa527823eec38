"""What the numbers of a run say, in words, by simple rules whose thresholds stand here."""

from dataclasses import dataclass
from itertools import pairwise

from reporting.evaluation import FLOOR, QUANTIZED, RECONSTRUCTIONS, SAMPLES
from reporting.figures import checkpoints
from reporting.run import Run, Stage

GOOD, FAIR, POOR = "good", "fair", "poor"
PSNR = (28.0, 23.0)  # dB of held-out reconstructions: good from the first, poor below the second
QUANTIZATION = (4.0, 8.0)  # dB that the finest tokens cost: good up to the first, poor above the second
RISE = 1.02  # of the validation loss above its minimum, while training falls: overfitting
FALL = 0.98  # of the training loss in the last eighth of a run, against the eighth before: still falling
DISTANCE = (1.5, 3.0)  # kernel distance of the samples as a multiple of what their tokens allow
COPIES = (2.0, 5.0)  # share of nearly copies as a multiple of that of held-out images
FEW_COPIES = 0.02  # share of samples that is no concern, whatever the multiple
RECALL = (-0.6, -0.3)  # minus that of the samples, as a share of what their tokens allow
PRECISION = (-0.6, -0.3)  # minus that of the samples, as a share of the floor's
LOSSES = {
    "with the autoencoder": "Most is lost in the autoencoder: train it longer, or give it more latent channels.",
    "with the codebooks": "Most is lost in the codebooks: give the finest one more units, or smaller patches.",
    "with the transformers": "Most is lost in the transformers: train them longer.",
}


@dataclass(frozen=True)
class Verdict:
    """A judgement: of what, how good, what the numbers are, and what to change, if anything."""

    subject: str
    grade: str
    text: str
    advice: str = ""


def what_next(verdicts: list[Verdict]) -> list[str]:
    """The advice of the worst verdicts, each with all that it is for."""
    worst = next((grade for grade in (POOR, FAIR) if any(verdict.grade == grade for verdict in verdicts)), None)
    advice: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.grade == worst:
            advice.setdefault(verdict.advice, []).append(verdict.subject)
    return [f"{', '.join(subjects)}: {text[0].lower()}{text[1:]}" for text, subjects in advice.items()]


def grade(value: float, good: float, poor: float) -> str:
    """By two thresholds, of a number that is better the lower it is."""
    return GOOD if value <= good else POOR if value > poor else FAIR


def judge(run: Run) -> list[Verdict]:
    """All that can be said of a run."""
    verdicts = [reconstruction(run), quantization(run)]
    verdicts += [learning(stage) for stage in run.of_kind("transformer")]
    if run.evaluation is not None:
        verdicts += [samples(run), realism(run), variety(run), novelty(run)]
    return [verdict for verdict in verdicts if verdict is not None]


def decoded_psnr(run: Run) -> float | None:
    """The PSNR of held-out images after the autoencoder, in dB."""
    if run.evaluation is not None and run.evaluation.reconstruction:
        return run.evaluation.reconstruction[0]["psnr"]
    return run.stages["autoencoder"].last("val_psnr") if "autoencoder" in run.stages else None


def quantized_psnr(run: Run) -> float | None:
    """The PSNR of held-out images after the finest codebook, in dB."""
    if run.evaluation is not None and len(run.evaluation.reconstruction) > 1:
        return run.evaluation.reconstruction[-1]["psnr"]
    books = [stage for stage in run.of_kind("codebook") if stage.level != "cond"]
    if not books:
        return None
    pruned = books[-1].last("pruned_psnr_after_quantization")
    return books[-1].last("psnr_after_quantization") if pruned is None else pruned


def image_bits(run: Run) -> float | None:
    """Bits that an image's tokens cost, of all stages."""
    if run.evaluation is not None and run.evaluation.bits:
        return sum(row["bits"] for row in run.evaluation.bits)
    stages = run.of_kind("transformer")
    return stages[-1].last("image_bits") if stages else None


def reconstruction(run: Run) -> Verdict | None:
    """Of the autoencoder."""
    if (psnr := decoded_psnr(run)) is None:
        return None
    found = grade(-psnr, -PSNR[0], -PSNR[1])
    advice = "" if found == GOOD else "Train the autoencoder longer, or give it more latent channels."
    meaning = {GOOD: "close to the originals", FAIR: "visibly softer than the originals", POOR: "blurred"}[found]
    text = f"Held-out images come back from the autoencoder at {psnr:.1f} dB: {meaning}."
    return Verdict("Autoencoder", found, text, advice)


def quantization(run: Run) -> Verdict | None:
    """Of the finest codebook."""
    before, after = decoded_psnr(run), quantized_psnr(run)
    if before is None or after is None:
        return None
    found = grade(before - after, *QUANTIZATION)
    advice = "" if found == GOOD else "Give the finest codebook more units, or smaller patches."
    text = f"The finest tokens bring them from {before:.1f} to {after:.1f} dB: the best that any sample can look."
    return Verdict("Codebooks", found, text, advice)


def learning(stage: Stage) -> Verdict | None:
    """Of a transformer's losses: whether it has learned all it can, or begun to remember its images."""
    rows, training = checkpoints(stage), stage.series("train_loss")
    if not rows or not training:
        return None
    losses = [row["val_loss"] for row in rows]
    lowest = min(range(len(losses)), key=losses.__getitem__)
    subject = f"Transformer {stage.level}"
    at_lowest = [loss for step, loss in training if step <= rows[lowest]["step"]]
    if losses[-1] > RISE * losses[lowest] and at_lowest and training[-1][1] < at_lowest[-1]:
        text = (
            f"Overfitting: the validation loss rose from {losses[lowest]:.3f} at step {rows[lowest]['step']:,} to "
            f"{losses[-1]:.3f} while the training loss went on falling. Images are made with the checkpoint of its "
            "lowest validation loss."
        )
        grade = POOR if losses[-1] > 1.1 * losses[lowest] else FAIR
        return Verdict(subject, grade, text, "Give it more images or more dropout, or stop earlier.")
    text = f"The validation loss ended at {losses[-1]:.3f} nats a token, the training loss at {training[-1][1]:.3f}"
    if is_falling(training):
        return Verdict(subject, FAIR, f"{text}, still falling.", "Train for more steps.")
    return Verdict(subject, GOOD, f"{text}: it has not begun to remember its images.")


def is_falling(points: list[tuple[int, float]]) -> bool:
    """Whether a curve of (step, loss) still falls at its end; False where it is too short to tell."""
    end = points[-1][0]
    eighths = [[loss for step, loss in points if end * low < step <= end * (low + 1 / 8)] for low in (3 / 4, 7 / 8)]
    if not all(eighths):
        return False
    before, last = (sum(part) / len(part) for part in eighths)
    return last < FALL * before


def samples(run: Run) -> Verdict | None:
    """Of the samples' distance to held-out images, beside what their tokens allow."""
    floor, quantized, made = map(run.evaluation.distance, (FLOOR, QUANTIZED, SAMPLES))
    reference = quantized or floor
    if made is None or reference is None:
        return None
    least = max(reference["kernel_high"], floor["kernel_high"] if floor else 0, 1e-6)
    found = grade(made["kernel"] / least, *DISTANCE)
    meaning = {GOOD: "near to it", FAIR: "farther than it", POOR: "much farther than it"}[found]
    text = (
        f"Their kernel distance to held-out images is {made['kernel']:.3f}; the best that their tokens allow is "
        f"{reference['kernel']:.3f}, so they come {meaning}."
    )
    advice = "" if found == GOOD else "Train the transformers longer, or try a lower temperature."
    return Verdict("Samples", found, text, advice)


def realism(run: Run) -> Verdict | None:
    """Of how many samples look real, and which stage takes most of the likeness away."""
    names = (FLOOR, RECONSTRUCTIONS, QUANTIZED, SAMPLES)
    floor, *_, made = rows = [run.evaluation.distance(name) for name in names]
    if None in rows or floor["precision"] <= 0:
        return None
    steps = [max(0.0, after["kernel"] - before["kernel"]) for before, after in pairwise(rows)]
    found = grade(-made["precision"] / floor["precision"], *PRECISION)
    text = (
        f"{made['precision']:.0%} of the samples lie among the real images (precision), of real training images "
        f"{floor['precision']:.0%}."
    )
    if found == GOOD or not sum(steps):
        return Verdict("Realism", found, text)
    shares = ", ".join(f"{step / sum(steps):.0%} {name}" for step, name in zip(steps, LOSSES, strict=True))
    most = steps.index(max(steps))
    return Verdict("Realism", found, f"{text} Of their distance comes {shares}.", list(LOSSES.values())[most])


def variety(run: Run) -> Verdict | None:
    """Of how much of the real images' variety the samples cover."""
    reference = run.evaluation.distance(QUANTIZED) or run.evaluation.distance(FLOOR)
    made = run.evaluation.distance(SAMPLES)
    if reference is None or made is None or reference["recall"] <= 0:
        return None
    found = grade(-made["recall"] / reference["recall"], *RECALL)
    text = (
        f"They cover {made['recall']:.0%} of the variety of held-out images (recall); {reference['name']} "
        f"{reference['recall']:.0%}."
    )
    advice = "" if found == GOOD else "Train the transformers longer, or try a higher temperature."
    return Verdict("Variety", found, text, advice)


def novelty(run: Run) -> Verdict | None:
    """Of how many samples are nearly copies of training images."""
    if (novelty := run.evaluation.novelty) is None:
        return None
    share, held_out = novelty["share_of_samples"], novelty["share_of_held_out"]
    multiple = 0.0 if share <= FEW_COPIES else share / max(held_out, 1e-6)
    found = grade(multiple, *COPIES)
    meaning = {
        GOOD: "the images are new, not remembered",
        FAIR: "some are remembered",
        POOR: "many are remembered",
    }[found]
    text = (
        f"{share:.1%} of the samples are nearly copies of a training image, and {held_out:.1%} of held-out images "
        f"by the same measure: {meaning}."
    )
    advice = "" if found == GOOD else "Give it more images or more dropout, stop earlier, or raise the temperature."
    return Verdict("Novelty", found, text, advice)
