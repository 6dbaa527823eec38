"""The choice of temperatures: by made-up measures, and by scripts.temperatures on the tiny trained cascade."""

import json
import math

import pytest

from scripts import temperatures
from scripts.temperatures import LOSS, Quality, choose
from tests.helpers.features import quick_features
from tests.helpers.runs import BOUNDS
from tests.helpers.scripts import run_main
from utils.data.dataset import ImageDataset

VALUES = (0.25, 0.5, 1.0)


def measured(asked, distance_of, recall_of):
    def measure(setting):
        asked.append(setting)
        return Quality(distance_of(setting), recall_of(setting))

    return measure


def test_the_nearest_setting_is_chosen_and_each_is_measured_once():
    asked, nearest = [], (1.0, 0.5, 0.25)
    assert (
        choose((0.7, 0.7, 0.7), VALUES, measured(asked, lambda each: math.dist(each, nearest), lambda _: 0.9))
        == nearest
    )
    assert len(asked) == len(set(asked)) == 10 and asked[0] == (0.7, 0.7, 0.7)


def test_a_smaller_distance_does_not_pay_for_recall():
    def chosen(loss):
        return choose((0.5, 0.25), VALUES, measured([], sum, lambda each: 0.9 if each[1] > 0.5 else 0.9 - loss))

    assert chosen(LOSS / 2) == (0.25, 0.25) and chosen(2 * LOSS) == (0.25, 1.0)


@pytest.fixture
def run(run_with_images, monkeypatch):
    quick_features(monkeypatch)
    return run_with_images


def test_the_script_writes_what_it_chose_and_nothing_else(run, read, monkeypatch, capsys):
    monkeypatch.setattr(temperatures, "FEWEST", 2)
    before = json.loads((run / "generate.json").read_text())
    (run / "generate.json").write_text(json.dumps(dict(reversed(before.items()))))  # as a person may have written it
    run_main(temperatures.main, run, "--temperatures", 0.5, 1.5, "--num-images", 8, "--device", "cpu")
    assert read == ImageDataset(run / "data/dataset.json").split(BOUNDS).validation.tolist()
    out = capsys.readouterr().out
    after = json.loads((run / "generate.json").read_text())
    best = [after[str(number)].pop("temperature") for number in range(len(after))]
    assert set(best) <= {0.5, 1.5, *(stage.pop("temperature") for stage in before.values())} and before == after
    rows = {cells[1]: cells[2:] for line in out.splitlines() if len(cells := [c.strip() for c in line.split("|")]) == 6}
    largest = max(float(cells[2]) for cells in rows.values() if cells[2][0].isdigit())
    assert float(rows[", ".join(f"{value:g}" for value in best)][2]) >= largest - LOSS - 0.01
