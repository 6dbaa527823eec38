"""Write a page, RUN_DIR/report.html, about a run: its pictures, curves, numbers, times and commands.

    python -m scripts.report out/photos

Reads the folder of scripts.train_cascade, as far as it has come, and RUN_DIR/evaluation if scripts.evaluate has been
run. The page is a single file smaller than 10 MB, which opens from disk without a network.
"""

import utils.runtime.threads  # noqa: F401

from dataclasses import dataclass
from pathlib import Path

from utils.core.files import write_file
from utils.core.options import option, parse_options
from utils.runs.folders import RunFolder
from utils.runtime import cli

PACKAGES = ("jinja2", "plotly")


@dataclass(frozen=True, kw_only=True)
class Options:
    run_dir: Path = option("folder that scripts.train_cascade wrote", positional=True)
    out: Path | None = option("file to write", None, unset="RUN_DIR/report.html")


def main(argv: list[str] | None = None) -> None:
    write_report(parse_options(Options, __doc__, argv))


def write_report(options: Options) -> None:
    cli.need("requirements-extra.txt", *PACKAGES)
    from reporting.page import make_page  # needs them

    folder = RunFolder.open(options.run_dir)
    out = options.out or folder.report
    write_file(out, make_page(folder))
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, open it in a browser")


if __name__ == "__main__":
    cli.run(main)
