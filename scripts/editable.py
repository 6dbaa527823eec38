"""The build backend of pyproject.toml: that of setuptools, for `pip install -e .` alone.

Installed otherwise, packages of general names (models, utils, …) would lie among those of other projects, without the
recipes of configs/.
"""

import functools
from pathlib import Path
from typing import NoReturn

import setuptools
from setuptools.build_meta import build_editable, get_requires_for_build_editable, prepare_metadata_for_build_editable

__all__ = ["build_editable", "get_requires_for_build_editable", "prepare_metadata_for_build_editable"]

NAME = "quantized-cascade"


def requirements(name: str) -> list[str]:
    """The requirements of a file, without those of the file that it includes."""
    lines = Path(f"requirements-{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if not line.startswith(("#", "-r "))]


# Not in pyproject.toml, since setuptools reads no file there that includes another one by `-r`, as pip needs it.
EXTRAS = {"extra": requirements("extra"), "dev": [f"{NAME}[extra]", *requirements("dev")]}
setuptools.setup = functools.partial(setuptools.setup, extras_require=EXTRAS)


def refuse(*_: object, **__: object) -> NoReturn:
    """End a build that is not editable, before pip installs any requirement."""
    reason = "this project's packages have general names (models, utils)"
    raise SystemExit(f"error: {reason}, so it installs as editable only: clone it, then pip install -e FOLDER")


get_requires_for_build_wheel = build_wheel = get_requires_for_build_sdist = build_sdist = refuse
