"""`pip install -e .`: its requirements are those of the files, imports work from any folder, a plain one is refused.

pip runs without a network: it takes setuptools from this environment, and installs no requirement.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from utils.runs.chain import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
STEPS = sorted(path.stem for path in ROOT.glob("*.py"))


def install(project, prefix, *words):
    if not importlib.util.find_spec("pip"):
        pytest.skip("an environment made by uv lacks pip")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    return subprocess.run([*pip, "--prefix", prefix, *words, project], capture_output=True, text=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what is installed."""
    folder = tmp_path_factory.mktemp("install") / "project"
    for name in SETTINGS["packages"]:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (ROOT / "pyproject.toml", ROOT / "LICENSE", *ROOT.glob("*.py"), *ROOT.glob("requirements*.txt")):
        shutil.copy(path, folder)
    return folder


def test_an_editable_install_imports_from_any_folder_and_needs_what_the_files_list(project, tmp_path):
    ended = install(project, tmp_path / "prefix", "-e")
    assert ended.returncode == 0, ended.stderr
    (installed,) = tmp_path.rglob("*.dist-info")
    names = [*SETTINGS["packages"], *STEPS, "models.cascade"]
    code = f"""
import importlib, site, sys
site.addsitedir({str(installed.parent)!r})
sys.path += {[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]}
from models.cascade import Cascade
print(Cascade.load.__name__, *(importlib.util.find_spec(name).origin for name in {names}), sep="\\n")
"""
    words = [sys.executable, "-I", "-S", "-c", code]  # no folder of this project or environment but those of the code
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    name, *files = result.stdout.splitlines()
    assert name == "load"
    assert len(files) == len(names)
    assert all(Path(file).is_relative_to(project) for file in files)

    needed = {
        (each.name, str(each.specifier), str(each.marker))
        for each in map(Requirement, Distribution.at(installed).requires)
    }
    listed = {("quantized-cascade", "", 'extra == "dev"')}  # with the extra "extra"
    for path in ROOT.glob("requirements*.txt"):
        marker = f'extra == "{extra}"' if (extra := path.stem.removeprefix("requirements").strip("-")) else "None"
        lines = re.findall(r"^[^#\s-].*?(?=\s+#)", path.read_text(), re.MULTILINE)
        listed |= {(each.name, str(each.specifier), marker) for each in map(Requirement, lines)}
    assert needed == listed


def test_a_plain_install_is_refused_in_one_line(project, tmp_path):
    ended = install(project, tmp_path)
    assert ended.returncode != 0
    (line,) = [line.strip() for line in ended.stderr.splitlines() if "editable only" in line]
    assert line.startswith("error: this project's packages have general names")
    assert not list(tmp_path.iterdir())


def test_every_package_is_listed():
    assert SETTINGS["packages"] == sorted(
        path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"
    )
