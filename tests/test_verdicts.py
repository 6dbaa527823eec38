"""The verdicts of the report, on runs made up of numbers: noise is never praised, and one step is to be improved."""

import pytest

from evaluation.results import Results
from reporting import verdicts
from reporting.run import Job, Run, Step
from tests.helpers.reports import EVALUATION, spans
from utils.core.config import build_config
from utils.runs.folders import RunFolder
from utils.runs.manifest import FINISHED, Attempt

UNITS = 512


def losses(training, validation):
    """Metrics of a run of 100 steps, with training losses and those of checkpoints spread evenly over it."""
    rows = [{"step": (index + 1) * 100 // len(training), "train_loss": loss} for index, loss in enumerate(training)]
    steps = [(index + 1) * 100 // len(validation) for index in range(len(validation))]
    rows += [{"step": step, "epoch": 0, "val_loss": loss} for step, loss in zip(steps, validation, strict=True)]
    return sorted(rows, key=lambda row: row["step"])


LEARNED = losses([4 * 0.8**index for index in range(14)] + [0.2] * 6, [2.0, 1.2, 1.0])
EARLY = losses([6.2, 5.5], [5.2])  # of so few training steps that no trend shows
CONSTANT = losses([6.0] * 20, [6.0, 6.0])
BY_HEART = losses([4 - 0.19 * index for index in range(20)], [3.0, 1.2, 1.9])


def level(name, kernel, bits=20.0, precision=0.7, recall=0.8):
    """A level whose floor is 0.00 ± 0.01, with precision and recall 0.8."""
    row = spans(kernel, 0.02, "kernel") | spans(0.0, 0.01, "floor") | spans(bits, 1, "bits")
    shares = {"precision": precision, "recall": recall, "floor_precision": 0.8, "floor_recall": 0.8}
    return {"name": name, "num_drawn": 8, "test_bits": 20.0} | row | shares


def distance(name, kernel, precision, recall):
    """Distances of a set."""
    row = spans(kernel, 0.1 * kernel + 0.002, "kernel")
    return {"name": name, "precision": precision, "recall": recall} | row


def evaluation(samples, levels=(), copies=0.01, psnr=(35.0, 34.0), num_images=400):
    """An evaluation: kernel distance, precision and recall of samples, and the share of near copies among them."""
    near = {"median_distance": 1.0}
    novelty = {"threshold": 1.0, "pairs": "", "nearest": [], "layout": None}
    novelty |= {"samples": near | {"share": copies}, "held_out": near | {"share": 0.01}}
    novelty |= {"share_low": copies / 2, "share_high": 2 * copies}
    rows = [distance("training images", 0.001, 0.9, 0.9), distance("quantized reconstructions", 0.03, 0.8, 0.8)]
    fidelity = [{"name": name, "psnr": dB} for name, dB in zip(("autoencoder", "after"), psnr, strict=True)]
    return EVALUATION | {
        "num_images": num_images, "reconstruction": fidelity, "bits": [], "novelty": novelty, "levels": [*levels],
        "distances": [*rows, distance("samples", *samples)],
    }  # fmt: skip


def judged(folder, metrics=(), results=None, units=UNITS):
    """The verdicts by their subjects, and the advice, on a run with these metrics of its stages and this evaluation."""
    run = RunFolder(folder, max(1, len(metrics)))
    steps = [Step(step, {}, rows) for step, rows in zip(run.transformers, metrics, strict=False)]
    steps += [Step(book, {}, [{"step": 9, "units": units}]) for book in run.codebooks]
    results = results and build_config(Results, results, "evaluation.json")
    judgements = verdicts.judge(Run(run, {step.folder.name: step for step in steps}, None, results))
    return {verdict.subject: verdict for verdict in judgements}, verdicts.what_next(judgements)


AT_FLOOR = [level("stage 0", 0.0), level("stage 1", 0.01)]
ABOVE = [level("stage 0", 0.0), level("stage 1", 0.9, precision=0.6, recall=0.05)]
MADE_UP = {
    "good": ([LEARNED] * 2, evaluation((0.03, 0.8, 0.8), AT_FLOOR), "gg" + "gg" + "gggg", ""),
    "untrained": (
        [EARLY] * 2,
        evaluation((2.0, 0.1, 0.0), [level("stage 0", 0.9, 30, 0.1, 0.0), level("stage 1", 1.2, 30)], 0.0, (16, 15.5)),
        "pg" + "pp" + "ppp",
        "Autoencoder: train the autoencoder longer",
    ),
    "untrained, of few images": (
        [EARLY] * 2, evaluation((0.1, 0.93, 0.8), AT_FLOOR, 0.0, num_images=14), "gg" + "pp" + "u",
        "Stage 0: train for more steps",
    ),
    "collapsed": (
        [LEARNED] * 2, evaluation((0.5, 1.0, 0.02), ABOVE), "gg" + "gp" + "pup", "Stage 1: train it longer"
    ),
    "memorizing": (
        [LEARNED, BY_HEART], evaluation((0.03, 0.9, 0.8), AT_FLOOR, 0.3), "gg" + "gf" + "uuu" + "p",
        "Novelty: use more images",
    ),
    "flat": (
        [LEARNED, CONSTANT], evaluation((0.08, 0.93, 0.05), ABOVE), "gg" + "gp" + "fup" + "u",
        "Stage 1: its loss has ceased to fall",
    ),
}  # fmt: skip
GRADES = {"g": "good", "f": "fair", "p": "poor", "u": "unclear"}
SUBJECTS = ("Autoencoder", "Codebooks", "Stage 0", "Stage 1", "Samples", "Realism", "Variety", "Novelty")


@pytest.mark.parametrize("name", MADE_UP)
def test_a_made_up_run_gets_its_grades_and_one_piece_of_advice(name, tmp_path):
    metrics, results, grades, advice = MADE_UP[name]
    by_subject, given = judged(tmp_path, metrics, results)
    expected = dict(zip(SUBJECTS, (GRADES[grade] for grade in grades), strict=False))
    assert {subject: verdict.grade for subject, verdict in by_subject.items()} == expected
    assert given.startswith(advice) and bool(given) == bool(advice)


@pytest.mark.parametrize(("copies", "grade"), [(0.015, None), (0.03, None), (0.3, "poor")])
def test_copies_are_certain_even_among_few_images(copies, grade, tmp_path):
    by_subject, _ = judged(tmp_path, results=evaluation((0.03, 0.8, 0.8), copies=copies, num_images=99))
    assert by_subject["Samples"].grade == "unclear"
    assert (by_subject["Novelty"].grade if grade else by_subject.get("Novelty")) == grade


@pytest.mark.parametrize(
    ("floor", "samples", "more", "grade"),
    [
        (0.155, 0.16, {}, "unclear"),  # of a data set that is split badly nothing can be told
        (0.155, 1.0, {}, "poor"),
        (0.0, 0.03, {"num_groups": 8}, "unclear"),
        (0.0, 0.03, {"num_groups": 300}, "good"),
        (0.0, 1.0, {"num_images": 65}, "poor"),
    ],
)
def test_samples_are_judged_where_the_test_images_can_tell(floor, samples, more, grade, tmp_path):
    results = evaluation((samples, 0.8, 0.8)) | more
    results["distances"][0] = distance("training images", floor, 0.9, 0.9)
    results["distances"][1] = distance("quantized reconstructions", floor + 0.03, 0.8, 0.8)
    verdict = judged(tmp_path, results=results)[0]["Samples"]
    assert verdict.grade == grade
    assert ("differ from the training images as a whole" in verdict.text) == (grade == "unclear")


@pytest.mark.parametrize(
    ("left", "keep", "grade"),
    [(64, None, None), (32, None, None), (17, None, "fair"), (15, None, "poor"), (17, 17, None)],
)
def test_few_units_that_pruning_has_left_are_a_verdict_with_a_remedy(left, keep, grade, tmp_path):
    folder = RunFolder(tmp_path).step("codebook_cond")
    time, script = "2026-01-01T00:00:00+00:00", "prune_codebook.py"
    attempt = Attempt(script, {"keep": keep}, None, {}, "cpu", 1, time, time, FINISHED)
    step = Step(folder, {script: Job([attempt])}, [{"step": 9, "units": 64}, {"pruned_units": left}])
    result = verdicts.judge(Run(RunFolder(tmp_path), {folder.name: step}, None, None))
    assert [(each.subject, each.grade) for each in result] == ([("Condition codebook", grade)] if grade else [])


@pytest.mark.parametrize(
    ("levels", "grades", "advice"),
    [
        ([level("stage 0", 0.02), level("stage 1", 0.023), level("stage 2", 0.9)], "gff", "stage 1 first. Train it"),
        ([level("stage 0", 0.03, 15), level("stage 1", 0.5)], "ff", "stage 0 first. Use more images"),
        ([level("stage 0", 0.03, recall=0.1)], "p", "stage 0 first. Train it"),
        ([level("stage 0", 0.0), level("stage 1", 0.022)], "gg", "train the autoencoder or its decoder longer"),
        ([], "", "Evaluate the run again"),
    ],
    ids=["the first that is clearly above", "overconfident", "without variety", "none", "an older evaluation"],
)
def test_the_first_level_that_is_above_its_floor_is_to_be_improved(levels, grades, advice, tmp_path):
    by_subject, _ = judged(tmp_path, results=evaluation((0.5, 0.8, 0.8), levels))
    assert advice in by_subject["Samples"].advice
    stages = [verdict.grade[0] for subject, verdict in by_subject.items() if subject.startswith("Stage")]
    assert "".join(stages) == grades


@pytest.mark.parametrize(("bits", "grade"), [(18.5, "good"), (17.0, "fair"), (14.0, "poor"), (30.0, "good")])
def test_a_stage_whose_samples_are_cheap_is_overconfident(bits, grade, tmp_path):
    levels = [level("stage 0", 0.0), level("stage 1", 0.0, bits)]
    verdict = judged(tmp_path, results=evaluation((0.03, 0.8, 0.8), levels))[0]["Stage 1"]
    assert verdict.grade == grade


def test_layouts_that_are_learned_by_heart_are_judged_like_copies(tmp_path):
    results = evaluation((0.03, 0.8, 0.8))
    layout = EVALUATION["novelty"]["layout"]
    for novelty, grade in ((results["novelty"] | {"layout": layout}, "poor"), (results["novelty"], "good")):
        judgement = judged(tmp_path, results=results | {"novelty": novelty})[0]["Novelty"]
        assert judgement.grade == grade
