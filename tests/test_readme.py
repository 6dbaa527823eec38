"""The README's commands run as they stand, at tiny settings, and its tables name every flag and key there is."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from models.autoencoder import AutoencoderConfig
from models.codebook import CodebookConfig
from models.generation import GenerationConfig
from models.transformer import TransformerConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
TINY = {
    "train_autoencoder": ["--max-step", "2"],
    "train_codebook": ["--max-step", "5"],
    "train_quantized_transformer": ["--max-step", "2", "--test-num-sample", "2"],
    "generate_images": ["--batch-size", "2", "--num-images", "3"],
}


def bash_commands(text):
    """The commands of all ```bash blocks, each as words; comments and continued lines are understood."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def python_commands(text):
    """(module, arguments) of the commands that start Python on the project's code."""
    found = []
    for words in bash_commands(text):
        if words[:2] == ["python", "-m"]:
            found.append((words[2], words[3:]))
        elif words[0] == "python":
            found.append((words[1].removesuffix(".py"), words[2:]))
    return found


def test_commands_run_in_order(faces, tmp_path, monkeypatch):
    shutil.copytree(faces.parent, tmp_path / "photos", ignore=shutil.ignore_patterns("*.json"))
    for name, source in zip(("one.jpg", "two.jpg"), sorted((tmp_path / "photos").rglob("*.png")), strict=False):
        Image.open(source).save(tmp_path / "photos" / name)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    config = re.search(r"```json\n(.*?)```", README, flags=re.S).group(1)
    commands = python_commands(README)
    names = ("codebook", "codebook_limits", "transformer", "ablation", "generation", "sampling")
    benchmarks = {f"benchmarks.{name}" for name in names}
    others = {"scripts.evaluate", "scripts.make_dataset", "scripts.report"}
    assert {name for name, _ in commands} == {*SCRIPTS, *benchmarks, *others}
    for name, arguments in commands:
        if name in benchmarks:
            continue  # test_benchmarks.py runs them, smaller
        tiny = [word.replace("full-128", "tiny-32").replace("128", "32") for word in arguments]
        if name == "generate_images":
            Path("out/photos/two_stages.json").write_text(config)
        importlib.import_module(name).main(tiny + TINY.get(name, []))
    pictures = {path.name for path in Path("out/photos/generated/images").iterdir()}
    finals = {f"image_{index:05d}.png" for index in range(3)}
    assert pictures == finals | {f"recon_model_{name}.png" for name in ("Cond", "0", "1")}
    assert Path("out/photos/like/images/filling_in.webp").is_file()
    assert {path.name for path in Path("out/photos").iterdir()} >= {"completed", "detail"}
    assert Path("out/photos/report.html").stat().st_size < 10_000_000


def test_bash_commands_are_those_that_other_tests_run():
    scripts = {words[1] for words in bash_commands(README) if words[0] == "bash"}
    assert scripts == {"scripts/demo.sh", "scripts/test.sh", "scripts/train_cascade.sh"}


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("requirements*.txt")))
def test_requirements_are_ranges_that_this_environment_meets(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+(,<[\d.]+)?\s+# .+", line) for line in lines)
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "-r", str(ROOT / name)]
    report = subprocess.run(pip, capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    assert "Would install" not in report.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_docstring_command_is_in_the_readme(script):
    doc = importlib.import_module(script).__doc__
    example = next(block for block in doc.split("\n\n") if block.startswith("    python "))
    words = shlex.split(example.replace("\\\n", " ").replace("faces", "photos"))
    flags = {word for word in words if word.startswith("-")}
    candidates = [arguments for name, arguments in python_commands(README) if name == script]
    assert any(flags <= set(arguments) for arguments in candidates)


@pytest.mark.parametrize(
    "script", [*SCRIPTS, *(f"scripts.{name}" for name in ("demo_data", "evaluate", "make_dataset", "report"))]
)
def test_flags_are_in_the_readme(script, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(script).main(["--help"])
    flags = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert flags
    assert {flag for flag in flags if f"`{flag}`" not in README} == set()


@pytest.mark.parametrize("config", [AutoencoderConfig, CodebookConfig, TransformerConfig, GenerationConfig])
def test_keys_are_in_the_readme(config):
    assert {field.name for field in fields(config) if f"`{field.name}`" not in README} == set()


@pytest.mark.parametrize("page", ["README.md", "docs/idea.md"])
def test_pictures_and_files_that_a_page_names_exist(page):
    names = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert any(name.endswith(".png") for name in names)
    assert [name for name in names if not (ROOT / page).parent.joinpath(name).exists()] == []


def test_json_of_the_readme_loads():
    assert set(json.loads(re.search(r"```json\n(.*?)```", README, flags=re.S).group(1))) == {"0", "1"}
