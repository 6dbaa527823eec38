"""What scripts/environment.py does with .venv: makes it where there is none, and clears none that a person has made."""

import shutil
import subprocess
import sys

import pytest

from utils.runs.chain import ROOT

FILES = ("requirements.txt", "requirements-extra.txt", "requirements-dev.txt")
TOOLS = ("bash", "cp", "env", "mkdir")  # of the stub
# Stands for Python: finds venv, makes environments with itself as their Python, and has pip. REFUSED is a part of the
# calls of pip that fail.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-m venv "*)
        if [ ! -e .venv/incomplete ]; then echo "no mark" >&2; exit 1; fi
        mkdir -p .venv/bin
        cp "$0" .venv/bin/python
        if [ -n "${INTERRUPTED:-}" ]; then kill -TERM $PPID; while :; do :; done; fi ;;
    "-m pip --version") ;;
    "-m pip "*)
        echo "${*:2}" >> calls
        if [ -n "${REFUSED:-}" ] && [[ "$*" = *"$REFUSED"* ]]; then echo "no such version" >&2; exit 3; fi ;;
    --version) echo Python 3 ;;
esac
"""
ENSURE = """
import sys
sys.path.insert(0, ".")
from scripts.environment import ensure_environment
from utils.runtime import child
with child.attending() as attendant:
    child.main(lambda: ensure_environment(attendant, sys.argv[1], latest="--latest" in sys.argv))
print("ok")
"""
UV = """#!/usr/bin/env bash
echo "uv $*" >> calls
if [ "$1" = venv ]; then mkdir -p .venv/bin; cp without-pip .venv/bin/python; fi
"""


class Project:
    """A folder with the scripts and requirement files, and a PATH of few commands."""

    def __init__(self, folder):
        self.folder, self.venv, self.tools = folder, folder / ".venv", folder / "tools"
        for name in ("scripts", "utils"):
            shutil.copytree(ROOT / name, folder / name)
        for name in (*FILES, "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        self.tools.mkdir()
        for name in TOOLS:
            (self.tools / name).symlink_to(shutil.which(name))

    def command(self, name, text):
        """Make a command; return its path."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def ensure(self, *words, code=ENSURE, **environment):
        """Call ensure_environment as the scripts do; return status and the lines of output and errors."""
        environment = {"PATH": str(self.tools), "PYTHON": str(self.folder / "python")} | environment
        command = [sys.executable, "-ISs", "-c", code, *(words or [FILES[1]])]
        more = {"capture_output": True, "text": True}
        result = subprocess.run(command, cwd=self.folder, env=environment, **more)
        return result.returncode, result.stdout.splitlines(), result.stderr.splitlines()

    def calls(self):
        """The calls of pip and uv since the last time, without the options that only make them quiet."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.replace(" --quiet", "").replace(" --disable-pip-version-check", "") for line in lines]

    @property
    def marks(self):
        return sorted(path.name for path in self.venv.glob("i*") if path.is_file())

    def make_without_pip(self):
        """Make .venv as a person does with uv: without pip."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        (self.venv / "mine").touch()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


ONCE = ["pip install -r requirements-extra.txt -c constraints.txt", "pip check"]


def test_an_environment_is_made_in_one_resolve_and_not_again(project):
    project.command("python", PYTHON)
    status, _, errors = project.ensure()
    assert (status, project.calls(), errors) == (0, ONCE, [])
    assert project.ensure() == project.ensure(FILES[0]) == (0, ["ok"], [])  # a smaller file is installed with it
    project.ensure(FILES[2])
    assert project.calls() == ["pip install -r requirements-dev.txt -c constraints.txt", "pip check"]
    assert project.ensure() == (0, ["ok"], [])


@pytest.mark.parametrize("name", [*FILES, "constraints.txt"])
def test_a_changed_file_is_installed(name, project):
    project.command("python", PYTHON)
    project.ensure()
    (project.folder / name).write_text("more>=1\n")
    project.ensure()
    assert project.calls() == ONCE * 2
    assert project.ensure() == (0, ["ok"], [])


def test_versions_that_do_not_exist_here_give_way_to_the_ranges_in_one_line(project):
    project.command("python", PYTHON)
    status, output, errors = project.ensure(REFUSED="-c constraints.txt")
    assert (status, project.calls(), errors) == (0, [ONCE[0], ONCE[0].removesuffix(" -c constraints.txt"), ONCE[1]], [])
    (line,) = [line for line in output if "constraints.txt:" in line]
    assert FILES[1] in line and "no such version" in line
    assert project.ensure() == (0, ["ok"], [])


def test_latest_ignores_the_tested_versions_once(project):
    project.command("python", PYTHON)
    newest = ["pip install -r requirements-dev.txt --upgrade --upgrade-strategy eager", "pip check"]
    for _ in range(2):  # newer ones may have come out
        project.ensure(FILES[2], "--latest")
        assert project.calls() == newest
    project.ensure(FILES[2])
    assert project.calls()[0].endswith("-c constraints.txt")


@pytest.mark.parametrize(("refused", "expected"), [("pip install", 3), ("pip check", 2)])
def test_one_whose_installation_failed_or_contradicts_itself_is_installed_anew(refused, expected, project):
    project.command("python", PYTHON)
    status, output, errors = project.ensure(REFUSED=refused)
    assert (status, "ok" in output, len(errors)) == (expected, False, 1)
    assert "no such version" in errors[0]
    project.calls()
    status, _, errors = project.ensure()
    assert (status, project.calls(), errors) == (0, ONCE, [])


def test_one_whose_making_was_interrupted_is_made_anew(project):
    project.command("python", PYTHON)
    assert project.ensure(INTERRUPTED="yes")[0] == 143
    assert project.marks == ["incomplete"]
    (project.venv / "half").touch()
    status, _, errors = project.ensure()
    assert (status, errors) == (0, [])
    assert project.marks == ["installed"]
    assert not (project.venv / "half").exists()


def test_the_commands_that_make_the_environment_need_no_package():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import scripts.demo, scripts.test"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_one_without_pip_is_left_alone_where_there_is_no_uv(project):
    project.make_without_pip()
    status, _, errors = project.ensure()
    assert (status, len(errors)) == (2, 1)
    assert ".venv has no pip" in errors[0]
    assert (project.marks, (project.venv / "mine").exists()) == ([], True)


def test_uv_installs_once_where_there_is_no_pip(project):
    project.make_without_pip()
    project.command("tools/uv", UV)
    status, _, errors = project.ensure()
    assert (status, errors) == (0, [])
    install = "uv pip install --python .venv/bin/python -r requirements-extra.txt -c constraints.txt"
    assert project.calls() == [install, "uv pip check --python .venv/bin/python"]
    assert (project.venv / "mine").exists()
    assert project.ensure() == (0, ["ok"], [])


def test_uv_makes_the_environment_where_python_cannot(project):
    python = project.command("python", "#!/bin/sh\nexit 1\n")
    project.command("tools/uv", UV)
    code = ENSURE.replace("import sys\n", f"import sys\nsys._base_executable = {str(python)!r}\n", 1)
    project.command("without-pip", '#!/bin/sh\n[ "$2" != pip ]\n')
    status, _, errors = project.ensure(code=code)
    assert (status, errors, project.marks) == (0, [], ["installed"])
    assert project.calls()[0] == f"uv venv --allow-existing --python {python} .venv"


@pytest.mark.parametrize("python", ["missing", "dangling", "broken"])
def test_one_whose_python_does_not_run_is_left_alone(python, project):
    project.command("python", PYTHON)
    (project.venv / "bin").mkdir(parents=True)
    if python == "dangling":
        (project.venv / "bin/python").symlink_to("/no/such/python")
    elif python == "broken":
        project.command(".venv/bin/python", "#!/bin/sh\nexit 1\n")
    before = sorted((project.venv / "bin").iterdir())
    status, output, errors = project.ensure()
    assert (status, output, len(errors)) == (2, [], 1)
    assert ".venv/bin/python does not run" in errors[0]
    assert sorted((project.venv / "bin").iterdir()) == before
