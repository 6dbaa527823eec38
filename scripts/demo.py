"""From nothing to pictures: make the environment, draw a data set, train every model, generate, evaluate, report.

A second start resumes where the first one stopped, or ends at once. Until the environment is there, this needs Python's
standard library alone.

    python scripts/demo.py
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036
    print("error: this needs Python 3.11 or newer; start it with one", file=sys.stderr)
    sys.exit(2)
if not __package__:  # started by its path, from anywhere
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scripts.environment import PYTHON, ROOT, ensure_environment
from utils.core.files import UserError, is_older
from utils.core.options import option, parse_options, words_of
from utils.runs.chain import Recipe, manifests_in
from utils.runs.folders import RunFolder
from utils.runtime import child

RECIPES = {32: ("tiny-32", "quick"), 64: ("demo-64", "demo"), 128: ("laptop-128", "demo-128")}  # and folders of out/


@dataclass(frozen=True, kw_only=True)
class Options:
    quick: bool = option("a complete pass in under 3 minutes, at 32×32 pixels: to see that everything works", False)
    size: int | None = option("pixels a side: 64, or 128, which takes about an hour on two CPU cores", None, unset="64")
    hours: float | None = option("plan a recipe for so many hours, in the place of the demo's own", None, above=0)
    source: str = option("cartoon faces, or emoji", "avatars", choices=("avatars", "openmoji"))
    device: str = option("auto (cuda, mps or cpu), or a torch device", "auto")
    out_dir: Path | None = option(
        "where the data and all that is learned go",
        None,
        unset="out/demo-SOURCE; other names with --quick, --size 128 or --hours",
    )
    overwrite: bool = option("replace results made from different inputs or options", False)
    verify: bool = option("if only timestamps changed (e.g. after copying), compare checksums once", False)

    def __post_init__(self) -> None:
        if self.quick and self.size is not None:
            raise UserError(f"--size {self.size}: --quick is for 32 pixels; leave one of them out")
        if self.quick and self.hours is not None:
            raise UserError(f"--hours {self.hours:g}: --quick has a recipe of its own; leave one of them out")
        if self.size not in (None, 64, 128):
            raise UserError(f"--size {self.size}: the demo has recipes for 64 and 128 pixels")


def main() -> None:
    options = parse_options(Options, __doc__, None)
    name, folder = RECIPES[32 if options.quick else options.size or 64]
    folder += "-auto" if options.hours else ""
    out = Path("out", f"{folder}-{options.source}") if options.out_dir is None else options.out_dir.absolute()
    recipe, data = Recipe.find(name), out / "data"
    with child.attending() as attendant:
        python = ensure_environment(attendant, "requirements-extra.txt")

        def run(script: str, *words: object, **flags: object) -> None:
            attendant.check([python, "-m", f"scripts.{script}", *words, *words_of(flags)], cwd=ROOT)

        size = {"image_size": recipe.image_size, "num_images": recipe.num_images, "overwrite": options.overwrite}
        run("demo_data", options.source, out_dir=data, **size)
        flags = {"device": options.device, "overwrite": options.overwrite, "verify": options.verify}
        if options.hours:
            flags["hours"] = options.hours
        run("train_cascade", "auto" if options.hours else name, data / "dataset.json", out, **flags)
        folder = RunFolder(out)
        results, report, made = folder.evaluation.results, folder.report, manifests_in(folder)
        if is_older(results, *made):
            print("== evaluation")
            run("evaluate", out, device=options.device)
        if is_older(report, results, *made):
            run("report", out)
    print("play with it:", shlex.join(map(str, [PYTHON, "-m", "scripts.playground", out])))
    print(f"report: {report}")


if __name__ == "__main__":
    child.main(main)
