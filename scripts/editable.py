"""The build backend of pyproject.toml: that of setuptools, for `pip install -e .` alone.

Installed otherwise, packages of general names (models, utils, …) would lie among those of other projects, without the
recipes of configs/.
"""

from typing import NoReturn

from setuptools.build_meta import build_editable, get_requires_for_build_editable, prepare_metadata_for_build_editable

__all__ = ["build_editable", "get_requires_for_build_editable", "prepare_metadata_for_build_editable"]


def refuse(*_: object, **__: object) -> NoReturn:
    """End a build that is not editable, before pip installs any requirement."""
    reason = "this project's packages have general names (models, utils)"
    raise SystemExit(f"error: {reason}, so it installs as editable only: clone it, then pip install -e FOLDER")


get_requires_for_build_wheel = build_wheel = get_requires_for_build_sdist = build_sdist = refuse
