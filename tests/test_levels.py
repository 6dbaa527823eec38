"""The table by levels: what its numbers are of, and the advice on a run whose middle stage writes noise."""

import math

import numpy as np
import pytest
import torch

from evaluation.distances import kernel_distance
from evaluation.evaluator import Evaluator
from evaluation.results import SAMPLES, Results
from evaluation.run import TrainedRun
from models.requests import Request
from models.stage import Stage
from reporting import verdicts
from reporting.run import Run
from tests.helpers.features import FewFeatures, quick_features
from tests.helpers.runs import BOUNDS
from tests.test_evaluate import run_on
from utils.core.config import build_config
from utils.data.dataset import ImageDataset
from utils.data.split import Bounds
from utils.runs.folders import RunFolder
from utils.sampling import SamplingConfig


@pytest.fixture(autouse=True)
def few_features(monkeypatch):
    quick_features(monkeypatch)


@torch.no_grad()
def test_each_level_compares_decoded_tokens_and_its_bits_are_those_of_a_fresh_stage(tiny_run, faces, tmp_path):
    content = run_on(tiny_run, faces, tmp_path, "--batch-size", 4, "--num-training", 9)
    number = content["num_images"]
    run = TrainedRun(RunFolder(tiny_run), torch.device("cpu"))
    cascade, dataset, extractor = run.cascade(4), ImageDataset(faces), FewFeatures()
    test = dataset.split(BOUNDS).test[:number]
    training = np.random.default_rng(0).permutation(dataset.split(BOUNDS).training)[:number]
    drawn = [cascade.generate(Request(0), range(start, start + 4))[0] for start in range(0, number, 4)]
    plain = Request(0, sampling=(SamplingConfig(),) * 3)
    own = [cascade.generate(plain, range(start, start + 4))[0] for start in range(0, number, 4)]
    for level, row in enumerate(content["levels"]):
        book = cascade.codebooks[level + 1]
        sets = [torch.cat([part[level + 1] for part in drawn])[:number]]
        sets += [book.find_bmu(run.decoder.encode(dataset[part])) for part in (training, test)]
        samples, floor, real = (extractor(run.decoder.decode(book.lookup(each)).clamp(-1, 1)) for each in sets)
        assert row["name"] == f"stage {level}"
        assert row["kernel"] == pytest.approx(kernel_distance(samples, real), rel=1e-4, abs=1e-6)
        assert row["floor"] == pytest.approx(kernel_distance(floor, real), rel=1e-4, abs=1e-6)
        assert row["kernel_low"] < row["kernel"] < row["kernel_high"]
        # A fresh stage in float32, without a cache, that reads the drawn tokens of both grids.
        paths = (tiny_run / f"transformer_{level}/models_checkpoint/best.pt", cascade.codebooks[level], book)
        stage = Stage.load(*paths)
        pairs = [batch[level : level + 2] for batch in own]
        each = [[grid[image : image + 1] for grid in pair] for pair in pairs for image in range(4)][:number]
        costs = [float(stage(*pair)["bits"]) * stage.config.fine.length for pair in each]
        assert row["bits"] == pytest.approx(np.mean(costs), rel=0.01)
        margin = 1.96 * np.std(costs, ddof=1) / math.sqrt(number)
        assert (row["bits_high"] - row["bits_low"]) / 2 == pytest.approx(margin, rel=0.1)
        assert row["num_drawn"] == number and row["test_bits"] == content["bits"][level + 1]["bits"]
    assert content["levels"][-1]["kernel"] != content["distances"][-1]["kernel"]  # which are to the images themselves


def test_the_advice_names_the_stage_that_writes_noise(tiny_run, faces, tmp_path, monkeypatch):
    """Samples are true tokens of training images, but those of stage 1 are drawn at random."""
    draw = Evaluator.draw

    def noisy(self, request, number, name):
        tokens, scores = draw(self, request, number, name)
        if name == SAMPLES:
            tokens = list(self.cascade.tokens(self.dataset[self.training[:number]]))
            tokens[2] = torch.randint(len(self.cascade.codebooks[2]), tokens[2].shape)
        return tokens, scores

    monkeypatch.setattr(Evaluator, "draw", noisy)
    monkeypatch.setattr(TrainedRun, "bounds", Bounds(0.0, 0.5))
    content = run_on(tiny_run, faces, tmp_path, "--num-training", 20)
    results = build_config(Results, content, "evaluation.json")
    assert [row.is_above_floor for row in results.levels] == [False, True, False]
    judged = {verdict.subject: verdict for verdict in verdicts.judge(Run(RunFolder(tiny_run), {}, None, results))}
    assert [judged[f"Stage {number}"].grade == verdicts.GOOD for number in range(3)] == [True, False, True]
    assert "clearly above the floor" in judged["Stage 1"].text
