"""The environment: sees that .venv meets requirement files. It makes .venv where there is none, and clears no other.

Needs Python's standard library alone.
"""

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from utils.core.files import UserError, write_file
from utils.runtime.child import Attendant

ROOT = Path(__file__).parent.parent
VENV = Path(".venv")  # of ROOT, where all of this happens
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# There until .venv is whole: so one whose making was interrupted is known as ours, and made anew.
INCOMPLETE = VENV / "incomplete"
PYTHONS = ("python3", "python3.14", "python3.13", "python3.12", "python3.11", "python")
VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}))
"""


def ensure_environment(attendant: Attendant, *files: str) -> Path:
    """See that .venv meets these requirement files; return its Python. Raises `UserError` where a person must act."""
    os.chdir(ROOT)
    if INCOMPLETE.exists() or not os.path.lexists(VENV):
        make(attendant)
    if not runs(PYTHON, "-c", ""):
        raise UserError(f"{PYTHON} does not run; repair .venv, or remove it and run this again")
    if runs(PYTHON, "-m", "pip", "--version"):
        for file in files:
            mark = VENV / f"installed-{file}"
            if mark.is_file() and filecmp.cmp(file, mark, shallow=False):
                continue
            print(f"installing {file} (once; PyTorch may take some minutes)")
            attendant.check([PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", file])
            write_file(mark, Path(file).read_bytes())
    elif lacking := unmet(files):
        if shutil.which("uv") is None:
            raise UserError(
                f".venv has no pip and lacks {' '.join(lacking)}; install them there, or remove .venv and run this "
                "again"
            )
        for file in files:
            print(f"installing {file} with uv")
            attendant.check(["uv", "pip", "install", "--quiet", "--python", PYTHON, "-r", file])
    return PYTHON


def find_python() -> str:
    """A Python that can make an environment: that of `PYTHON`, or this one, or another."""
    needed = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    own = getattr(sys, "_base_executable", sys.executable)  # not that of an environment that may be made anew
    for candidate in (os.environ.get("PYTHON"), own, *PYTHONS):
        if candidate and runs(candidate, "-c", needed):
            return candidate
    raise UserError(
        "no Python 3.11 or newer with venv was found; install one, or name it in the variable PYTHON of the environment"
    )


def make(attendant: Attendant) -> None:
    """Make .venv, in place of what an interrupted start has left of it."""
    python = find_python()
    print("making .venv with", subprocess.run([python, "--version"], capture_output=True, text=True).stdout.strip())
    VENV.mkdir(exist_ok=True)
    INCOMPLETE.touch()
    for path in VENV.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != INCOMPLETE:
            path.unlink()
    attendant.check([python, "-m", "venv", VENV])
    INCOMPLETE.unlink()


def runs(*command: str | Path) -> bool:
    """Whether a command ends well."""
    with suppress(OSError):
        return subprocess.run([*map(str, command)], capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
    return False


def unmet(files: tuple[str, ...]) -> list[str]:
    """The requirements that .venv does not meet. It works without pip."""
    output = subprocess.run([PYTHON, "-c", VERSIONS], check=True, capture_output=True, text=True).stdout
    versions = {normal(name): numbers(version) for name, version in json.loads(output).items()}
    lines = [line.partition("#")[0].strip() for file in files for line in Path(file).read_text("utf-8").splitlines()]
    return [line for line in lines if line and not is_met(line, versions)]


def is_met(requirement: str, versions: dict[str, list[int]]) -> bool:
    """Whether one of these versions is within the limits of a requirement."""
    name, limits = re.match(r"([\w.-]+)(.*)", requirement).groups()
    version, low, high = versions.get(normal(name)), *(re.search(sign + r"([\d.]+)", limits) for sign in (">=", "<"))
    return (
        version is not None and not (low and version < numbers(low[1])) and not (high and version >= numbers(high[1]))
    )


def normal(name: str) -> str:
    """The name of a package as all its spellings have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def numbers(version: str) -> list[int]:
    """The numbers that a version begins with."""
    return [int(number) for number in re.match(r"[\d.]*", version)[0].split(".") if number]
