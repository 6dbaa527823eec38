"""Imports point one way, as docs/design.md says."""

import ast

from utils.runs.chain import ROOT

LEVELS = (  # each imports only from its own and from those before it
    ("utils.core",),
    ("utils.runtime",),
    ("utils.data", "utils.runs"),
    ("utils",),
    ("models",),
    ("evaluation",),
    ("reporting", "playground", "scripts"),
    ("benchmarks", "docs"),
)


def level_of(module):
    """The level of a module, or None of one that is not in a package of the project."""
    return next(
        (n for n, names in enumerate(LEVELS) if any(f"{module}.".startswith(f"{name}.") for name in names)), None
    )


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_one_way():
    steps, checked = {path.stem for path in ROOT.glob("*.py")}, 0
    for path in (path for names in LEVELS for name in names for path in (ROOT / name.replace(".", "/")).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name in imports_of(path):
            level = level_of(name)
            assert level is None or level <= level_of(module), f"{module} imports {name}"
            assert level_of(module) >= level_of("scripts") or name.partition(".")[0] not in steps, f"{module}: {name}"
            checked += level is not None
    assert checked > 500
