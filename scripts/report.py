"""Write one page, RUN_DIR/report.html, about a run: its pictures, curves, numbers, times and commands.

    python -m scripts.report out/photos

Reads what scripts/train_cascade.sh has left, as much of it as there is, and RUN_DIR/evaluation if scripts.evaluate has
been run. The page holds all it shows: it opens from disk, without a network, and is smaller than 10 MB.
"""

import argparse
from pathlib import Path

from utils import cli
from utils.files import UserError, replace_file


def main(argv: list[str] | None = None) -> None:
    """Parse, read, render, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="what scripts/train_cascade.sh wrote")
    parser.add_argument("--out", type=Path, help="file to write [RUN_DIR/report.html]")
    args = parser.parse_args(argv)
    try:
        from reporting.page import make_page
    except ModuleNotFoundError as error:
        package = error.name.partition(".")[0]
        if package not in ("jinja2", "plotly"):
            raise
        raise UserError(f"{package} is not installed: pip install -r requirements-eval.txt") from None
    page = make_page(args.run_dir)
    out = args.out or args.run_dir / "report.html"
    with replace_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, open it in a browser")


if __name__ == "__main__":
    cli.run(main)
