"""The environment: makes .venv where there is none, and installs requirement files there, all in one resolve.

It never clears a .venv that it did not make. Needs Python's standard library alone.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from utils.core.files import ROOT, UserError, write_file
from utils.runtime.child import Attendant

FILES = ("requirements.txt", "requirements-extra.txt", "requirements-dev.txt")  # each includes the one before
TESTED = "constraints.txt"  # the versions with which the tests last passed
VENV = Path(".venv")  # of ROOT, where all of this happens
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# Exists until .venv is made: so an interrupted one is known as ours, and replaced.
INCOMPLETE = VENV / "incomplete"
INSTALLED = VENV / "installed"  # says what was installed last; missing while pip is at work


def ensure_environment(attendant: Attendant, file: str, *, latest: bool = False) -> Path:
    """Install a requirement file in .venv, at the tested versions or the `latest`; return its Python.

    Raises `UserError` where a person must act.
    """
    os.chdir(ROOT)
    if INCOMPLETE.exists() or not os.path.lexists(VENV):
        make(attendant)
    if not runs(PYTHON, "-c", ""):
        raise UserError(f"{PYTHON} does not run; repair .venv, or remove it and run this again")
    enough = [mark_of(name, latest) for name in FILES[FILES.index(file) :]]
    if latest or not INSTALLED.is_file() or INSTALLED.read_text(encoding="utf-8") not in enough:
        INSTALLED.unlink(missing_ok=True)
        print(f"installing {file} (once; PyTorch may take some minutes)")
        install(attendant, file, latest)
        write_file(INSTALLED, enough[0])
    return PYTHON


def mark_of(file: str, latest: bool) -> str:
    return json.dumps([file, latest, *(Path(ROOT, name).read_text(encoding="utf-8") for name in (TESTED, *FILES))])


def install(attendant: Attendant, file: str, latest: bool) -> None:
    if runs(PYTHON, "-m", "pip", "--version"):
        pip, where, upgrade = [PYTHON, "-m", "pip"], [], ["--upgrade", "--upgrade-strategy", "eager"]
        quiet = ["--quiet", "--disable-pip-version-check"]
    elif shutil.which("uv"):  # which makes environments without pip
        pip, where, upgrade, quiet = ["uv", "pip"], ["--python", PYTHON], ["--upgrade"], ["--quiet"]
    else:
        raise UserError(".venv has no pip, and there is no uv; install one of them, or remove .venv and run this again")
    command = [*pip, "install", *quiet, *where, "-r", file]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:

        def last_line() -> str:
            said.seek(0)
            return (said.read().strip().splitlines() or [""])[-1].strip()

        if latest or attendant.run([*command, "-c", TESTED], stderr=said):
            if not latest and not attendant.stop:
                print(f"{TESTED}: not all of these versions install here; using the ranges of {file} ({last_line()})")
            attendant.check([*command, *(upgrade if latest else [])])
        said.truncate(0)
        if attendant.run([*pip, "check", *where], stdout=said, stderr=said):
            raise UserError(f".venv: its packages do not fit together ({last_line()}); remove it and run this again")


def make(attendant: Attendant) -> None:
    own = getattr(sys, "_base_executable", sys.executable)  # not that of an environment that may be made anew
    needed = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    pythons = [python for python in (os.environ.get("PYTHON"), own) if python and runs(python, "-c", needed)]
    if not pythons and not shutil.which("uv"):
        raise UserError(
            f"{own} has no venv; install that or uv, or name a Python 3.11 or newer in the variable PYTHON of the "
            "environment"
        )
    python = pythons[0] if pythons else own
    version = subprocess.run([python, "--version"], capture_output=True, text=True).stdout.strip()
    print("making .venv with", version)
    VENV.mkdir(exist_ok=True)
    INCOMPLETE.touch()
    for path in VENV.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != INCOMPLETE:
            path.unlink()
    by_uv = ["uv", "venv", "--quiet", "--allow-existing", "--python", python, VENV]
    attendant.check([python, "-m", "venv", VENV] if pythons else by_uv)
    INCOMPLETE.unlink()


def runs(*command: str | Path) -> bool:
    with suppress(OSError):
        return subprocess.run([*map(str, command)], capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
    return False
