"""The demo as a person runs it: interrupted, run again to its end; and with a stub what it runs, and not again."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from PIL import Image

from scripts.environment import FILES, INSTALLED, PYTHON, TESTED, mark_of
from tests.helpers.chain import Chain, recipe_of
from tests.helpers.jobs import until
from utils.core.files import write_file
from utils.runs.chain import ROOT

NAMES = [f"scripts.{name}" for name in ("demo_data", "train_cascade", "evaluate", "report")]
STEPS = ["autoencoder", "feature_maps"]
STEPS += [f"{kind}codebook_{name}" for name in ("cond", "0") for kind in ("", "prune_")]
STEPS += ["decoder", "transformer_0", "generate"]


def start(*arguments, root):
    command = [sys.executable, str(root / "scripts/demo.py"), *map(str, arguments)]
    # A session of its own, so that a signal reaches a group of processes, as Ctrl-C in a terminal does.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    # Where tests run in the background, Ctrl-C is ignored.
    return subprocess.Popen(command, cwd="/", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes)


def headings(output):
    """The names of the steps that were run, or that were done."""
    lines = [line.removeprefix("== ") for line in output.splitlines() if line.startswith("== ")]
    return [line.partition(", step ")[0] for line in lines]


def environment_in(folder):
    """The Python of an environment that is complete, but for this file."""
    (folder / PYTHON).parent.mkdir(parents=True)
    for name in (TESTED, *FILES):
        shutil.copy(ROOT / name, folder)
    write_file(folder / INSTALLED, mark_of("requirements-extra.txt", latest=False))
    return folder / PYTHON


@pytest.fixture
def shorter(tmp_path):
    """The project with a recipe of one stage, a tenth of the images and few steps."""
    root = tmp_path / "project"
    root.mkdir()
    for path in ROOT.iterdir():  # copies, since a script looks for the project around its own file
        if path.suffix == ".py":
            shutil.copy(path, root)
        elif path.name in ("evaluation", "models", "reporting", "scripts", "utils"):
            shutil.copytree(path, root / path.name)
    python = environment_in(root)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    path = recipe_of(1, root / "configs/tiny-32") / "recipe.json"
    recipe = json.loads(path.read_text()) | {"num_images": 100}
    for name, number in {"autoencoder": 150, "decoder": 20, "transformer_0": 20}.items():
        recipe[name] |= {"max_step": number, "checkpoint_step": 50}
    path.write_text(json.dumps(recipe))
    return root


def test_quick_demo_is_interrupted_then_ends(shorter, tmp_path):
    out = tmp_path / "run"
    process = start("--quick", "--out-dir", out, "--device", "cpu", root=shorter)
    metrics = out / "autoencoder" / "metrics.jsonl"
    until(lambda: process.poll() is not None or (metrics.exists() and metrics.stat().st_size), pause=0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert (out / "autoencoder/models_checkpoint/latest.pt").exists()
    kept = metrics.read_text()

    process = start("--quick", "--out-dir", out, "--device", "cpu", root=shorter)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert headings(output) == [*STEPS, "evaluation"]
    assert metrics.read_text().startswith(kept)
    assert f"pictures: {out}/generated/images" in output
    assert output.splitlines()[-1] == f"report: {out}/report.html"
    assert (out / "report.html").stat().st_size < 10e6
    evaluation = json.loads((out / "evaluation/evaluation.json").read_text())
    assert [row["name"] for row in evaluation["distances"]][-1] == "samples"
    assert evaluation["missing"] == []
    images = sorted((out / "generated/images").glob("image_*.png"))
    assert len(images) == 25
    assert {Image.open(path).size for path in images} == {(32, 32)}
    assert len({Image.open(path).tobytes() for path in images}) > 20
    rows = [json.loads(line) for line in (out / "transformer_0/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["image_bits"] > rows[-1]["stage_bits"]  # with those of the condition


class Demo(Chain):
    """The demo in a copy of the project, with the stub in place of the Python of its environment."""

    def __init__(self, folder):
        super().__init__(folder)
        for name in ("scripts", "utils", "configs"):
            shutil.copytree(ROOT / name, folder / name)
        self.stub.rename(environment_in(folder))
        self.command = [sys.executable, str(folder / "scripts/demo.py")]

    def run(self, *arguments):
        """Run the demo to its end; return status, output, errors and the commands of the stub."""
        self.calls.unlink(missing_ok=True)
        words = [*self.command, *map(str, arguments)]
        result = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        return result.returncode, result.stdout, result.stderr, self.commands


@pytest.fixture
def demo(tmp_path):
    return Demo(tmp_path)


def test_flags_reach_every_command_that_has_them(demo):
    status, _, errors, commands = demo.run("--overwrite", "--device", "cpu", "--verify", "--out-dir", demo.out)
    assert status == 0, errors
    assert commands == [
        f"scripts.demo_data avatars --out-dir {demo.out}/data --image-size 64 --num-images 9000 --overwrite",
        f"scripts.train_cascade demo-64 {demo.out}/data/dataset.json {demo.out} --device cpu --overwrite --verify",
        f"scripts.evaluate {demo.out} --device cpu",
        f"scripts.report {demo.out}",
    ]


def test_what_is_newer_than_all_steps_is_not_made_again(demo):
    assert demo.run("--out-dir", demo.out)[0] == 0
    for name in ("evaluation/evaluation.json", "report.html"):
        os.utime(demo.out / name, (2**31, 2**31))
    _, output, _, commands = demo.run("--out-dir", demo.out)
    assert [command.split()[0] for command in commands] == NAMES[:2]
    assert output.splitlines()[-1] == f"report: {demo.out}/report.html"
    os.utime(demo.out / "report.html", (1, 1))
    assert [command.split()[0] for command in demo.run("--out-dir", demo.out)[3]] == [*NAMES[:2], NAMES[3]]


@pytest.mark.parametrize(
    ("words", "recipe", "folder"),
    [
        ([], "demo-64", "demo-avatars"),
        (["--size", "64", "--source", "openmoji"], "demo-64", "demo-openmoji"),
        (["--size", "128"], "laptop-128", "demo-128-avatars"),
    ],
)
def test_a_size_has_its_recipe_and_its_folder(words, recipe, folder, demo):
    status, _, errors, commands = demo.run(*words)
    assert status == 0, errors
    out, source = f"out/{folder}", folder.rpartition("-")[2]
    assert commands[0].startswith(
        f"scripts.demo_data {source} --out-dir {out}/data --image-size {recipe.rpartition('-')[2]} "
    )
    assert commands[1].startswith(f"scripts.train_cascade {recipe} {out}/data/dataset.json {out} ")
    assert (demo.folder / out / "report.html").is_file()
