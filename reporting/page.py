"""The page: all sections rendered into one file that needs no other and is not too large."""

import base64
import hashlib
import json
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from reporting import figures, sections
from reporting.pictures import LEVELS, Level
from reporting.run import Run, read_run
from utils.files import UserError

LIMIT = 10_000_000  # bytes
TEMPLATES = Path(__file__).parent / "templates"


def make_page(folder: Path, limit: int = LIMIT) -> str:
    """The page about the run in `folder`, its pictures as good as `limit` bytes allow.

    Raises `UserError` naming what of the run cannot be read, or the limit where even the smallest pictures pass it.
    """
    run = read_run(folder)
    models = sections.load_models(run)
    for level in LEVELS:
        page = render(run, models, level)
        if len(page.encode()) < limit:
            return page
    raise UserError(
        f"{folder}: its report would have {len(page.encode()) / 1e6:.1f} MB, more than {limit / 1e6:g} MB; generate "
        "fewer images, or leave out --animate"
    )


def render(run: Run, models: sections.Models, level: Level) -> str:
    """The page with pictures of this quality."""
    plots: dict[str, dict] = {}
    context = {
        "head": sections.overview(run, models),
        "generation": sections.generation(run, models, level),
        "autoencoder": sections.autoencoder(run, level, plots),
        "feature_maps": run.stages.get("feature_maps"),
        "codebooks": sections.codebooks(run, models, level, plots),
        "transformers": sections.transformers(run, models, level, plots),
        "evaluation": sections.evaluation(run, level),
        "times": sections.times(run),
        "total": sections.total_seconds(run),
        "run": run,
        "plots": plots,
        "themes": figures.themes(),
        "lines": figures.LINES,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": sections.duration, "title_of": sections.title_of, "json_text": json_text}
    scripts = [get_plotlyjs(), (TEMPLATES / "report.js").read_text(encoding="utf-8")]
    files = {
        "style": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "scripts": scripts,
        "hashes": " ".join(f"'sha256-{digest(script)}'" for script in scripts),
    }
    return environment.get_template("report.html.j2").render(context | files)


def json_text(value: dict) -> str:
    """JSON for a person, one key a line."""
    return json.dumps(value, indent=4, ensure_ascii=False)


def digest(script: str) -> str:
    """What a browser knows a script by, so that it runs no other that a file's name might smuggle in."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
