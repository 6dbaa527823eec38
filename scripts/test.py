"""Make the environment if it is missing, then lint and run all tests. Arguments go to pytest.

python scripts/test.py
"""

import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036
    print("error: this needs Python 3.11 or newer; start it with one", file=sys.stderr)
    sys.exit(2)
if not __package__:  # started by its path, from anywhere
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scripts.environment import ensure_environment
from utils.runtime import child

FILES = ("requirements.txt", *(f"requirements-{name}.txt" for name in ("data", "demo", "bench", "eval", "app", "dev")))


def main() -> None:
    """Install, lint, test."""
    with child.attending() as attendant:
        python = ensure_environment(attendant, *FILES)
        for words in (["ruff", "check", "."], ["ruff", "format", "--check", "."]):
            attendant.check([python, "-m", *words])
        options = ["--numprocesses", "auto", "--maxprocesses", "4", "--dist", "worksteal"]
        attendant.check([python, "-m", "pytest", *options, *sys.argv[1:]])


if __name__ == "__main__":
    child.main(main)
