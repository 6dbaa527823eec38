"""The tables of the documents and the commands that measure them."""

import re
import shutil
import subprocess
from dataclasses import replace
from importlib import import_module

import pytest

from docs import numbers
from tests.helpers.scripts import expect_error, run_main
from utils.core.options import make_parser
from utils.runs.chain import ROOT


@pytest.mark.parametrize("name", numbers.TABLES)
def test_a_table_has_its_place_in_its_document_and_a_command_that_is_one(name):
    numbers.block_of(name)
    own = numbers.TABLES[name]
    for command in (own.command, *(command for folder in own.runs for command in numbers.RUNS[folder])):
        module, *words = numbers.shlex.split(command)
        make_parser(import_module(module).Options, "").parse_args(words)


def test_every_place_in_a_document_is_that_of_a_table():
    marked = [(f"docs/{path.name}", name) for path in (ROOT / "docs").glob("*.md") for name in places(path.read_text())]
    assert sorted(marked) == sorted((table.document, name) for name, table in numbers.TABLES.items())


def places(text):
    return re.findall(r"^<!-- numbers: (.+) -->$", text, re.MULTILINE)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the documents, in which a cheap command measures two tables and has too few for a third."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("images"))
    command, run = "benchmarks.scaling tiny-32", subprocess.run
    parts = {"scaling": ((), "seed 0"), "scale": ((-1,), ""), "reading": ((1,), "")}
    cheap = {name: numbers.Table(numbers.SCALING, command, seeds, part) for name, (part, seeds) in parts.items()}
    monkeypatch.setattr(numbers, "TABLES", cheap)
    monkeypatch.setattr(numbers, "commit", lambda: "1234567")
    monkeypatch.setattr(numbers.os, "sched_setaffinity", lambda *_: None, raising=False)
    monkeypatch.setattr(numbers.subprocess, "run", lambda words, cwd, **more: run(words, cwd=ROOT, **more))
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    numbers.run.cache_clear()
    return tmp_path / numbers.SCALING


def test_tables_are_measured_written_and_not_measured_again(copy, capsys, monkeypatch):
    before = copy.read_text()
    line = expect_error(capsys, numbers.main, [])
    assert line == "error: these tables were not measured, for the reasons above: reading"
    text = copy.read_text()
    blocks = {name: text.split(f"<!-- numbers: {name} -->")[1].split("<!-- end -->")[0] for name in places(text)}
    for name in ("scaling", "scale"):
        assert "\n| tiny-32, autoencoder | " in blocks[name] and "gpu-128" not in blocks[name]
    command = r"`python -m benchmarks\.scaling tiny-32`, seed 0: \d+ cores of .+, commit 1234567\."
    assert re.search(command, blocks["scaling"].replace("\n", " "))
    others = [re.sub(r"(?<=numbers: scal)(ing|e) -->.*?<!-- end", "", each, flags=re.DOTALL) for each in (before, text)]
    assert others[0] == others[1]
    monkeypatch.setattr(numbers, "output_of", None)
    run_main(numbers.main, "--only", "scale", "scaling")
    assert copy.read_text() == text
    scale = numbers.TABLES["scale"]
    for table, state in ((scale, "measured"), (replace(scale, command="benchmarks.scaling demo-64"), "to do")):
        monkeypatch.setitem(numbers.TABLES, "scale", table)
        run_main(numbers.main, "--list")
        states = [line.split(", ")[1].split(")")[0] for line in capsys.readouterr().out.splitlines()]
        assert states == ["measured", state, "to do"]


def test_tables_are_not_measured_by_changed_code_and_one_without_a_place_is_named(copy, capsys, monkeypatch):
    copy.write_text(copy.read_text().replace("<!-- numbers: reading -->", ""))
    assert "0 places between '<!-- numbers: reading -->'" in expect_error(capsys, numbers.main, ["--only", "reading"])
    names = iter(["1234567"])
    monkeypatch.setattr(numbers, "commit", lambda: next(names, "7654321"))
    before = copy.read_text()
    line = expect_error(capsys, numbers.main, ["--only", "scaling", "scale"])
    assert "has changed meanwhile, from commit 1234567 to 7654321" in line and copy.read_text() == before
    monkeypatch.setattr(numbers, "commit", lambda: "1234567+")
    assert "commit your changes first" in expect_error(capsys, numbers.main, [])
