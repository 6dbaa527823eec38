"""What scripts/environment.py does with .venv: makes it where there is none, and clears none that a person has made."""

import shutil
import subprocess
import sys

import pytest

from utils.runs.chain import ROOT

FILES = ("requirements.txt", "requirements-demo.txt")
TOOLS = ("bash", "cp", "env", "mkdir")  # of the stub
# Stands for Python: finds venv, makes environments with itself as their Python, and has pip.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-m venv "*)
        if [ ! -e .venv/incomplete ]; then echo "no mark" >&2; exit 1; fi
        mkdir -p .venv/bin
        cp "$0" .venv/bin/python
        if [ -n "${INTERRUPTED:-}" ]; then kill -TERM $PPID; while :; do :; done; fi ;;
    "-m pip install "*) echo "pip: ${*: -1}"; exit "${STATUS:-0}" ;;
    --version) echo Python 3 ;;
esac
"""
ENSURE = f"""
import sys
sys.path.insert(0, ".")
from scripts.environment import ensure_environment
from utils.runtime import child
with child.attending() as attendant:
    child.main(lambda: ensure_environment(attendant, *{FILES}))
print("ok")
"""
UV = '#!/usr/bin/env bash\necho "uv: $*"\n'


class Project:
    """A folder with the scripts and requirement files, and a PATH of few commands."""

    def __init__(self, folder):
        self.folder, self.venv, self.tools = folder, folder / ".venv", folder / "tools"
        for name in ("scripts", "utils"):
            shutil.copytree(ROOT / name, folder / name)
        (folder / FILES[0]).write_text("torch>=2.5   # models\n# more\nnumpy>=1.26\n")
        (folder / FILES[1]).write_text("resvg-py>=0.5,<1   # draws\n")
        self.tools.mkdir()
        for name in TOOLS:
            (self.tools / name).symlink_to(shutil.which(name))

    def command(self, name, text):
        """Make a command; return its path."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def ensure(self, **environment):
        """Call ensure_environment as the scripts do; return status and the lines of output and errors."""
        environment = {"PATH": str(self.tools), "PYTHON": str(self.folder / "python")} | environment
        command, more = [sys.executable, "-ISs", "-c", ENSURE], {"capture_output": True, "text": True}
        result = subprocess.run(command, cwd=self.folder, env=environment, **more)
        return result.returncode, result.stdout.splitlines(), result.stderr.splitlines()

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


INSTALLED = sorted(f"installed-{file}" for file in FILES)


def test_an_environment_is_made_once_where_there_is_none_or_its_installation_failed(project):
    project.command("python", PYTHON)
    status, output, _ = project.ensure(STATUS="3")
    assert (status, project.marks, "ok" in output) == (3, [], False)
    status, output, errors = project.ensure()
    assert (status, errors) == (0, [])
    assert [line for line in output if line.startswith("pip: ")] == [f"pip: {file}" for file in FILES]
    assert project.marks == INSTALLED
    assert project.ensure() == (0, ["ok"], [])
    (project.folder / FILES[1]).write_text("more>=1\n")
    assert f"pip: {FILES[1]}" in project.ensure()[1]
    assert project.ensure() == (0, ["ok"], [])


def test_one_whose_making_was_interrupted_is_made_anew(project):
    project.command("python", PYTHON)
    assert project.ensure(INTERRUPTED="yes")[0] == 143
    assert project.marks == ["incomplete"]
    (project.venv / "half").touch()
    status, _, errors = project.ensure()
    assert (status, errors) == (0, [])
    assert project.marks == INSTALLED
    assert not (project.venv / "half").exists()


@pytest.mark.parametrize("name", ["demo", "test"])
def test_an_old_python_is_refused_in_one_line(name, tmp_path):
    script = f"import runpy, sys; sys.version_info = (3, 10); runpy.run_path({str(ROOT / f'scripts/{name}.py')!r})"
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (2, "error: this needs Python 3.11 or newer; start it with one\n")


def test_the_commands_that_make_the_environment_need_no_package():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import scripts.demo, scripts.test"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_one_without_pip_is_left_alone_where_there_is_no_uv(project):
    project.make_without_pip()
    status, _, errors = project.ensure()
    assert (status, errors) == (
        2,
        ["error: .venv has no pip, and there is no uv; install one of them, or remove .venv and run this again"],
    )
    assert (project.marks, (project.venv / "mine").exists()) == ([], True)


def test_uv_installs_once_where_there_is_no_pip(project):
    project.make_without_pip()
    project.command("tools/uv", UV)
    status, output, errors = project.ensure()
    assert (status, errors) == (0, [])
    calls = [line for line in output if line.startswith("uv: ")]
    assert calls == [f"uv: pip install --quiet --python .venv/bin/python -r {file}" for file in FILES]
    assert (project.venv / "mine").exists()
    assert project.ensure() == (0, ["ok"], [])


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
