"""The environment: makes .venv where there is none, and installs requirement files there.

It never clears a .venv that it did not make. Needs Python's standard library alone.
"""

import filecmp
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from utils.core.files import ROOT, UserError, write_file
from utils.runtime.child import Attendant

VENV = Path(".venv")  # of ROOT, where all of this happens
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# Exists until .venv is whole: so an interrupted one is known as ours, and replaced.
INCOMPLETE = VENV / "incomplete"


def ensure_environment(attendant: Attendant, *files: str) -> Path:
    """Install these requirement files in .venv; return its Python. Raises `UserError` where a person must act."""
    os.chdir(ROOT)
    if INCOMPLETE.exists() or not os.path.lexists(VENV):
        make(attendant)
    if not runs(PYTHON, "-c", ""):
        raise UserError(f"{PYTHON} does not run; repair .venv, or remove it and run this again")
    for file in files:
        mark = VENV / f"installed-{file}"
        if not (mark.is_file() and filecmp.cmp(file, mark, shallow=False)):
            print(f"installing {file} (once; PyTorch may take some minutes)")
            attendant.check([*installer(), "-r", file])
            write_file(mark, Path(file).read_bytes())
    return PYTHON


def installer() -> list[str | Path]:
    """The command that installs packages in .venv: pip, or uv, which makes environments without pip."""
    if runs(PYTHON, "-m", "pip", "--version"):
        return [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if shutil.which("uv"):
        return ["uv", "pip", "install", "--quiet", "--python", PYTHON]
    raise UserError(".venv has no pip, and there is no uv; install one of them, or remove .venv and run this again")


def make(attendant: Attendant) -> None:
    """Make .venv, in place of what an interrupted start has left of it."""
    own = getattr(sys, "_base_executable", sys.executable)  # not that of an environment that may be made anew
    needed = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    pythons = [python for python in (os.environ.get("PYTHON"), own) if python and runs(python, "-c", needed)]
    if not pythons:
        raise UserError(
            f"{own} has no venv; install that, or name a Python 3.11 or newer in the variable PYTHON of the environment"
        )
    version = subprocess.run([pythons[0], "--version"], capture_output=True, text=True).stdout.strip()
    print("making .venv with", version)
    VENV.mkdir(exist_ok=True)
    INCOMPLETE.touch()
    for path in VENV.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != INCOMPLETE:
            path.unlink()
    attendant.check([pythons[0], "-m", "venv", VENV])
    INCOMPLETE.unlink()


def runs(*command: str | Path) -> bool:
    """Whether a command ends well."""
    with suppress(OSError):
        return subprocess.run([*map(str, command)], capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
    return False
