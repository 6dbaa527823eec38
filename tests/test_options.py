"""One definition makes the flags, their help, the checks of a config and the reference."""

import dataclasses
import re
import typing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from scripts import reference
from utils.core.options import flag_of, option, parse_options, repeated


@dataclass(frozen=True, kw_only=True)
class Base:
    """Of all."""

    number: int = option("a number", 3, low=1, is_fixed=True)
    share: float = option("a share", 0.5, above=0, below=1)


@dataclass(frozen=True, kw_only=True)
class Everything(Base):
    """Of this script."""

    path: Path = option("a path", short="-p")
    many: tuple[int, ...] = option("numbers", (), high=9, exclusive="which")
    word: str | None = option("a word", None, unset="any", choices=("a", "b"), const="b", exclusive="which")
    is_quick: bool = option("quick", False)
    folder: Path = option("a folder", positional=True)
    number: int = option("a number", 4, low=1, is_fixed=True)


def parse(*argv):
    return parse_options(Everything, "doc", [*argv, "--path", "x", "y"])


def test_words_become_typed_values_and_what_is_left_out_its_default():
    assert parse() == Everything(path=Path("x"), folder=Path("y"))
    given = parse("--number", "7", "--share", "0.25", "--is-quick", "--many", "1", "2")
    assert (given.number, given.share, given.is_quick, given.many) == (7, 0.25, True, (1, 2))
    assert parse("--word").word == "b"
    assert parse("--word", "a").word == "a"


@pytest.mark.parametrize(
    "argv",
    ["--number 0", "--number x", "--share 1", "--share nan", "--many 3 10", "--word c", "--many 1 --word", "--path="],
)
def test_a_wrong_word_is_named_with_its_flag(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(*argv.split())
    assert stopped.value.code == 2
    assert argv.partition(" ")[0].strip("=") in capsys.readouterr().err.splitlines()[-1]


def wrong_values(field, hint):
    """Words that a flag must refuse, by its type, its range and its choices."""
    spec, kind = field.metadata["option"], next((kind for kind in ("int", "float") if kind in str(hint)), "")
    if spec.choices is not None:
        return ["no-such-choice"]
    if spec.convert is not None or not kind:
        return []
    limits = [limit + step for limit, step in ((spec.low, -1), (spec.high, 1)) if limit is not None]
    limits += [limit for limit in (spec.above, spec.below) if limit is not None]
    wrong = {"int": ["1.5"], "float": ["nan", "inf"] if limits else []}[kind]
    return ["x", *wrong, *(f"{limit:g}" for limit in limits)]


LIMITED = ("num_workers", "nproc")


@pytest.mark.parametrize("script", reference.SCRIPTS)
def test_every_flag_refuses_what_is_out_of_its_range_by_its_name(script, tmp_path, monkeypatch, capsys):
    """Before the script does anything."""
    monkeypatch.chdir(tmp_path)
    module = import_module(script)
    hints = typing.get_type_hints(module.Options)
    for field in dataclasses.fields(module.Options):
        wrong, flag = wrong_values(field, hints[field.name]), flag_of(field)
        # Without a limit, a typing error would start a million processes.
        assert field.name not in LIMITED or field.metadata["option"].high == 1024
        is_positional = field.metadata["option"].positional
        for value in wrong:
            with pytest.raises(SystemExit) as stopped:
                module.main([value] if is_positional else [f"{flag}={value}"])
            line = capsys.readouterr().err.splitlines()[-1]
            named = re.search(rf"error: argument ([-\w]+/)?{flag}: .*{re.escape(value)}", line)
            assert (stopped.value.code, bool(named)) == (2, True), f"{flag} {value}: {line}"
    assert list(tmp_path.iterdir()) == []


def test_options_of_several_values_are_none_unless_given():
    cls = repeated(Base, "Wishes")
    assert parse_options(cls, "", []) == cls(number=None, share=None)
    assert parse_options(cls, "", ["--share", "0.1", "0.2"]) == cls(number=None, share=(0.1, 0.2))


def test_the_reference_is_up_to_date_and_complete():
    assert reference.PAGE.read_text(encoding="utf-8") == reference.render()
    scripts = {path.name for path in reference.PAGE.parent.parent.glob("*.py")}
    assert scripts == {f"{name}.py" for name in reference.STEPS}
