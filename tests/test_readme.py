"""The commands of the README and of the pages under docs/ run, at tiny settings, and what the pages name exists."""

import importlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from models.requests import load_generation_config
from scripts.environment import FILES, TESTED
from tests.helpers.runs import FRACTIONS
from utils.core.options import make_parser
from utils.runs.chain import ROOT

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
STEPS = sorted(path.stem for path in ROOT.glob("*.py"))
SPLIT = list(map(str, FRACTIONS))
TINY = {
    "train_autoencoder": [*SPLIT, "--max-step", "2"],
    "train_codebook": [*SPLIT, "--max-step", "5"],
    "prune_codebook": [*SPLIT, "--prune-threshold", "1"],
    "train_quantized_transformer": [*SPLIT, "--max-step", "2", "--test-num-sample", "2"],
    "generate_images": ["--batch-size", "2", "--num-images", "3"],
}
RECORDED = ("python", "python3", "torchrun", "pip", "bash", "cp", "mkdir", "source")
UNIT, RECORD = "\x1f", "\x1e"


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page, language):
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.S)


def commands_of(page):
    return commands_in(blocks_of(page, "bash"))


def commands_in(blocks):
    """The commands of ```bash blocks, each as words. Bash reads the blocks, but runs none of the commands."""
    functions = "\n".join(f'{name}() {{ record {name} "$@"; }}' for name in RECORDED)
    record = f"record() {{ printf '%s{UNIT}' \"$@\"; printf '{RECORD}'; }}\nPATH=\n"
    script = "\n".join((record, functions, *blocks))
    result = subprocess.run(["bash", "-euc", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [line.removesuffix(UNIT).split(UNIT) for line in result.stdout.split(RECORD)[:-1]]


def modules_of(commands):
    """(module, arguments) of the commands that start Python on the project's code."""
    result = []
    for words in commands:
        if words[:2] == ["torchrun", "--nproc-per-node"]:
            words = ["python", *words[3:]]
        if words[:2] == ["python", "-m"]:
            result.append((words[2], words[3:]))
        elif words[0] == "python":
            result.append((words[1].removesuffix(".py"), words[2:]))
    return result


def test_commands_run_in_order(faces, tmp_path, monkeypatch):
    shutil.copytree(faces.parent, tmp_path / "photos", ignore=shutil.ignore_patterns("*.json"))
    for name, source in zip(("one.jpg", "two.jpg"), sorted((tmp_path / "photos").rglob("*.png")), strict=False):
        Image.open(source).save(tmp_path / "photos" / name)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    readme, steps = commands_of("README.md"), commands_in(blocks_of("docs/steps.md", "bash")[:1])
    use = next(number for number, words in enumerate(readme) if words[1:2] == ["generate_images.py"])
    assert sorted({name for name, _ in modules_of(steps)}) == STEPS
    # The README uses the model that the six steps make, and so does the page about using one.
    for words in (*readme[:use], *steps, *readme[use:], *commands_of("docs/using.md")):
        words = [word.replace("laptop-128", "tiny-32").replace("128", "32") for word in words]
        for name, arguments in modules_of([words]):
            # The playground serves until it is stopped; tests/test_demo.py runs a chain.
            others = ("scripts.playground", "scripts.train_cascade")
            if not name.startswith("benchmarks.") and name not in others:
                importlib.import_module(name).main(arguments + TINY.get(name, []))
        if words[0] == "cp":
            shutil.copy(*words[1:])
    pictures = {path.name for path in Path("out/photos/generated/images").iterdir()}
    finals = {f"image_{index:05d}.png" for index in range(3)}
    grids = {f"recon_model_{name}.png" for name in ("Cond", "0", "1", "2")}
    assert pictures == finals | grids | {"filling_in.webp"}
    assert Path("out/photos/like/images/filling_in.webp").is_file()
    assert {path.name for path in Path("out/photos").iterdir()} >= {"completed", "detail"}
    assert json.loads(Path("out/photos/evaluation/evaluation.json").read_text())["missing"] == []
    assert Path("out/photos/report.html").stat().st_size < 10_000_000


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_exist(page):
    commands, copied = commands_of(page), {path.name for path in (ROOT / "configs").iterdir()} | {"auto"}
    for words in commands:
        files = [word for word in words if word.startswith("requirements")]
        files += words[1:2] if words[0] == "bash" else []
        assert [name for name in files if not (ROOT / name).is_file()] == []
        if words[0] == "cp":
            assert words[-2].startswith("out/") or (ROOT / words[-2]).exists()
            copied.add(Path(words[-1]).name)
        elif words[:3] == ["python", "-m", "scripts.train_cascade"]:
            assert next(word for word in words[3:] if word != "--dry-run") in copied
    for name, arguments in modules_of(commands):
        module = importlib.import_module(name)
        if hasattr(module, "Options"):
            make_parser(module.Options, "").parse_args(arguments)
        else:
            assert arguments == []


def test_this_environment_is_one_set_within_ranges_that_have_a_reason():
    for name in FILES:
        lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith(("#", "-r "))]
        assert all(re.fullmatch(r"[\w-]+>=[\d.]+(,<[\d.]+)?\s+# .+", line) for line in lines), name
    tested = [line for line in (ROOT / TESTED).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in tested)  # versions without a build tag
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "-r", str(ROOT / FILES[-1])]
    for command in (pip, [*pip[:3], "check"]):
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "Would install" not in ended.stdout


@pytest.mark.parametrize("step", STEPS)
def test_docstring_command_is_one_of_the_steps(step):
    doc = importlib.import_module(step).__doc__
    example = next(block for block in doc.split("\n\n") if block.startswith("    python "))
    assert all(len(line) <= 120 for line in example.splitlines())  # so --help shows it as it is written
    words = shlex.split(example.replace("\\\n", " "))
    flags = {word for word in words if word.startswith("-")}
    candidates = [arguments for name, arguments in modules_of(commands_of("docs/steps.md")) if name == step]
    assert any(flags <= set(arguments) for arguments in candidates)


def anchors_of(page):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text_of(page), flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "docs/first_steps.ipynb"])
def test_links_of_a_page_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(page))
    for name, _, anchor in (link.partition("#") for link in links):
        target = (ROOT / page).parent.joinpath(name).resolve() if name else ROOT / page
        assert target.exists(), name
        assert not anchor or anchor in anchors_of(target.relative_to(ROOT)), f"{name}#{anchor}"


def test_json_of_the_page_about_using_a_model_is_one(tmp_path):
    (block,) = blocks_of("docs/using.md", "json")
    (tmp_path / "generate.json").write_text(block)
    assert len(load_generation_config(tmp_path / "generate.json")) == 2
