"""docs/design.md names every Python file of the project, and no file that does not exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
DESIGN = (ROOT / "docs/design.md").read_text(encoding="utf-8")
QUOTED = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", DESIGN, flags=re.S)))
# What looks like a path in the repository: a folder, or a file of a kind that no run writes.
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*(/|\.(py|sh|md|toml|txt|j2|css|js))")


def test_every_file_that_the_design_names_exists():
    named = {text for text in QUOTED if PATH.fullmatch(text)}
    assert len(named) > 50
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_design_names_every_python_file():
    folders = ("models", "utils", "evaluation", "reporting", "playground", "scripts", "benchmarks", "docs")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    names = {path.relative_to(ROOT).as_posix() for path in files if path.name != "__init__.py"}
    assert names - QUOTED == set()
