"""Damaged files of every kind are read or refused in one line; scripts.fuzz tries more of them."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import fuzz


def test_no_damaged_file_ends_a_reader_with_a_traceback(tiny_run, faces, tmp_path, record_property):
    options = fuzz.Options(run_dir=tiny_run, dataset=faces, inputs=300)
    counts, failures = fuzz.fuzz(options, tmp_path)
    assert failures == []
    assert sum(map(sum, counts.values())) == 300
    assert all(refused for name, (_, refused) in counts.items() if name != "metrics.jsonl")  # whose lines are left out
    record_property("tried", "300 damaged files")


@pytest.mark.parametrize("error", [ValueError("x"), RecursionError()])
def test_another_error_of_a_reader_is_a_failure(error, tiny_run, faces, tmp_path, monkeypatch):
    def fail(text):
        raise error

    targets = fuzz.targets_of

    def one(*arguments):
        target = next(targets(*arguments))
        calls = iter([target.read, *[lambda: fail("")] * 3])
        yield replace(target, read=lambda: next(calls)())

    monkeypatch.setattr(fuzz, "targets_of", one)
    _, failures = fuzz.fuzz(fuzz.Options(run_dir=tiny_run, dataset=faces, inputs=3), tmp_path)
    assert len(failures) == 3
    assert failures[0].startswith("input 0, dataset.json of images: Traceback")


@given(st.integers(), st.sampled_from([".json", ".jsonl", ".tar"]))
def test_damage_is_a_function_of_the_seed(seed, suffix):
    lines = [json.dumps({"a": [1, {"b": "c"}], "d": None}).encode()] * (3 if suffix == ".jsonl" else 1)
    content = b"\n".join(lines)
    first, second = (fuzz.damage(content, random.Random(seed), suffix) for _ in range(2))
    assert first == second
