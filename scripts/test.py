"""Make the environment if it is missing, then lint and run all tests. Arguments go to pytest, but for --latest.

python scripts/test.py             # with the versions of constraints.txt, which are those that passed last
python scripts/test.py --latest    # with the newest versions that the requirement files allow
"""

import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036
    print("error: this needs Python 3.11 or newer; start it with one", file=sys.stderr)
    sys.exit(2)
if not __package__:  # started by its path, from anywhere
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scripts.environment import FILES, ensure_environment
from utils.runtime import child


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--latest"]
    with child.attending() as attendant:
        python = ensure_environment(attendant, FILES[-1], latest="--latest" in sys.argv[1:])
        for lint in (["ruff", "check", "."], ["ruff", "format", "--check", "."]):
            attendant.check([python, "-m", *lint])
        options = ["--numprocesses", "auto", "--maxprocesses", "4", "--dist", "worksteal"]
        attendant.check([python, "-m", "pytest", *options, *words])


if __name__ == "__main__":
    child.main(main)
