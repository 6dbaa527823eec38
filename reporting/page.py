"""The page: all sections rendered into a single file of limited size."""

import base64
import hashlib
import json
from functools import partial
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from evaluation.results import SAMPLES, TRAINING
from reporting import sections
from reporting.pictures import QUALITIES, Quality
from reporting.run import Run, read_run
from utils.core.files import UserError
from utils.runs.folders import RunFolder
from utils.runtime.progress import duration

LIMIT = 10_000_000  # bytes
TEMPLATES = Path(__file__).parent / "templates"


def make_page(folder: RunFolder, limit: int = LIMIT) -> str:
    """The page about the run in `folder`, its pictures as good as `limit` bytes allow.

    Raises `UserError` naming the file that cannot be read, or the limit if even the smallest pictures exceed it.
    """
    run = read_run(folder)
    models = sections.load_models(run)
    for quality in QUALITIES:
        page = render(run, models, quality)
        if len(page.encode()) < limit:
            return page
    raise UserError(
        f"{folder.path}: its report would have {len(page.encode()) / 1e6:.1f} MB, more than {limit / 1e6:g} MB; "
        "generate fewer images, or leave out --animate"
    )


def render(run: Run, models: sections.Models, quality: Quality) -> str:
    plots: dict[str, dict] = {}
    scripts = [get_plotlyjs(), (TEMPLATES / "report.js").read_text(encoding="utf-8")]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    json_text = partial(json.dumps, indent=4, ensure_ascii=False)  # for people to read
    environment.filters |= {"duration": duration, "json_text": json_text}
    # A browser runs these scripts alone, and none that a file name might smuggle in.
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return environment.get_template("report.html.j2").render(
        head=sections.overview(run, models),
        generation=sections.generation(run, models, quality),
        autoencoder=sections.reconstructions(run, "autoencoder", models, quality, plots),
        decoder=sections.reconstructions(run, "decoder", models, quality, plots),
        codebooks=sections.codebooks(run, models, quality, plots),
        transformers=sections.transformers(run, models, quality, plots),
        pairs=sections.pairs(run, quality),
        samples=SAMPLES,
        floor=TRAINING,
        jobs=sections.jobs(run),
        usage=sections.usage(run),
        run=run,
        plots=plots,
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        scripts=scripts,
        hashes=" ".join(f"'sha256-{hash_}'" for hash_ in hashes),
    )
