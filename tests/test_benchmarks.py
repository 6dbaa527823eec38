"""The benchmarks run, at a small size; what they measure is in the documents."""

import re
import sys

from benchmarks import codebook, codebook_limits


def test_the_codebook_benchmark(tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(codebook, "SIZES", ((8, 4, 10, None), (2, 16, 20, 30)))
    monkeypatch.setattr(codebook, "OTHERS", ((4, 8),))
    monkeypatch.setattr(codebook, "RADII", (0, 1))
    monkeypatch.setattr(codebook, "MINISOM_PASSES", 1)
    monkeypatch.setattr(sys, "argv", ["codebook", str(tiny_run / "feature_maps/dataset.json")])
    codebook.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    names = [row[0].strip() for row in rows if row[0].strip()]
    expected = []
    for steps in (10, 20):
        expected += [
            "k-means, converged",
            "k-means, arranged",
            "MiniBatchKMeans",
            f"this map, {steps} steps",
            r"this map, \d+ steps",
        ]
        expected += ["minisom, 1 passes"]
    expected += ["0", "1", "k-means, converged", "this map"]
    assert len(names) == len(expected)
    assert all(re.fullmatch(pattern, name) for pattern, name in zip(expected, names, strict=True))
    for row in rows:
        if row[0].strip():
            seconds, error, torn = (float(cell) for cell in row[1:4])
            assert seconds >= 0 and error > 0 and 0 <= torn <= 1
            assert error == 1 or row[0].strip() not in ("k-means, converged", "0")


def test_the_benchmark_of_limits(monkeypatch, capfd):
    monkeypatch.setattr(codebook_limits, "LIMITS", ((4, 2, 8, 20, 4),))
    monkeypatch.setattr(sys, "argv", ["codebook_limits"])
    codebook_limits.main()
    numbers = capfd.readouterr().out.splitlines()[-1].split("|")[1:-1]
    assert [int(number) for number in numbers[:4]] == [16, 8, 4, 0]
    assert 0 <= int(numbers[4]) < 1024
