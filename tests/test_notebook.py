"""docs/first_steps.ipynb runs from its first cell to its last, with one stage and few training steps."""

import json
import re
import shutil

import nbformat
from nbclient import NotebookClient

from tests.helpers.chain import recipe_of
from tests.helpers.runs import SMALL, recipe_json
from utils.runs.chain import ROOT

PAGE = ROOT / "docs" / "first_steps.ipynb"


def pictures_of(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", ()))


def test_the_notebook_runs_where_it_lies(faces, tmp_path, monkeypatch):
    recipe, out = recipe_of(1, tmp_path / "recipe"), tmp_path / "run"
    content = json.loads((recipe / "recipe.json").read_text()).keys() - {"decoder", "description", "num_images"}
    settings = {name: own for name, own in SMALL.settings.items() if name in content}
    (recipe / "recipe.json").write_text(recipe_json(settings, image_size=SMALL.image_size.plain))
    shutil.copytree(faces.parent, out / "data")  # which the command that draws faces then leaves as they are
    settings = {"RECIPE": f"{recipe}/", "DATA": None, "NUM_IMAGES": 40, "OUT": str(out), "DEVICE": "cpu"}

    book = nbformat.read(PAGE, as_version=4)
    (place,) = [number for number, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ())]
    assert re.findall(r"^(\w+) = ", book.cells[place].source, re.MULTILINE) == list(settings)
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    lines += ["from tests.helpers.notebook import run_here", "run_here(get_ipython())"]
    book.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    for name, value in {"PYTHONPATH": ROOT, "IPYTHONDIR": tmp_path, "JUPYTER_DATA_DIR": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": PAGE.parent}}).execute()
    shown = {cell.id: number for cell in book.cells if (number := pictures_of(cell))}
    assert shown == {"data": 1, "autoencoder": 2, "codebook": 2, "loss": 1, "generated": 2, "sample": 1, "walk": 1}


def test_the_file_holds_no_outputs():
    book = nbformat.read(PAGE, as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all((cell.outputs, cell.execution_count) == ([], None) for cell in cells)
    assert PAGE.stat().st_size < 20_000
