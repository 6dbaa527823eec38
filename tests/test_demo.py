"""The demo as a person runs it: interrupted, run again to its end, and run once more."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.test_train_cascade import Chain

ROOT = Path(__file__).parent.parent
STAGES = ["autoencoder", "feature_maps"]
STAGES += [f"{kind}codebook_{name}" for name in ("cond", "0", "1", "2") for kind in ("", "prune_")]
STAGES += ["decoder", "transformer_0", "transformer_1", "transformer_2", "generate"]


def start(*arguments, root=ROOT):
    command = ["bash", str(root / "scripts/demo.sh"), *map(str, arguments)]
    # A session of its own, so that a signal reaches a group of processes, as Ctrl-C in a terminal does.
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd="/",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where tests run in the background it is not
    )


def headings(output):
    return [line.removeprefix("== ") for line in output.splitlines() if line.startswith("== ")]


@pytest.fixture
def shorter(tmp_path):
    """The project with a recipe of a tenth of the steps and a third of the images."""
    root = tmp_path / "project"
    root.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("configs", "out"):
            (root / path.name).symlink_to(path)
    recipe = shutil.copytree(ROOT / "configs", root / "configs") / "tiny-32/recipe.sh"
    fewer = {"1500": "150", "1000": "350", "500": "50", "300": "30"}
    recipe.write_text(
        re.sub(r"(?<=-step |MAGES=)(\d+)\b", lambda found: fewer.get(found[1], found[1]), recipe.read_text())
    )
    return root


def test_quick_demo_is_interrupted_then_ends_then_has_nothing_to_do(shorter, tmp_path):
    out = tmp_path / "run"
    process = start("--quick", "--out-dir", out, "--device", "cpu", root=shorter)
    metrics = out / "autoencoder" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert (out / "autoencoder/models_checkpoint/latest.pt").exists()
    kept = metrics.read_text()

    process = start("--quick", "--out-dir", out, "--device", "cpu", root=shorter)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert headings(output) == [*STAGES, "evaluation"]
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
    assert len({path.read_bytes() for path in images}) > 20
    rows = [json.loads(line) for line in (out / "transformer_2/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["image_bits"] > rows[-1]["stage_bits"]  # those of all stages

    process = start("--quick", "--out-dir", out, "--device", "cpu", root=shorter)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert headings(output) == [f"{stage}: done" for stage in STAGES]
    assert output.splitlines()[-1] == f"report: {out}/report.html"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--fast"], "--fast"),
        (["--source", "cats"], "cats"),
        (["--device"], "--device"),
        (["--size", "100"], "--size 100: the demo has recipes for 64 and 128 pixels"),
        (["--quick", "--size", "64"], "--size 64: --quick is for 32 pixels"),
    ],
)
def test_wrong_arguments_get_a_line_and_status_2(arguments, named):
    process = start(*arguments)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("error: ")
    assert named in errors.splitlines()[-1]


@pytest.mark.parametrize(("arguments", "named"), [(["no-such", "d.json", "out"], "no-such"), ([], "usage")])
def test_wrong_recipe_gets_a_line_and_status_2(arguments, named):
    command = ["bash", str(ROOT / "scripts/train_cascade.sh"), *arguments]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 2
    assert named in process.stderr


class Demo(Chain):
    """The demo with the stub in place of the Python of its environment."""

    def __init__(self, folder):
        super().__init__(folder)
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / "python").rename(folder / ".venv/bin/python")
        for path in ROOT.glob("requirements*.txt"):
            shutil.copy(path, folder)
            shutil.copy(path, folder / f".venv/installed-{path.name}")
        self.command = ["bash", str(folder / "scripts/demo.sh"), "--quick", "--out-dir", str(self.out)]


@pytest.fixture
def demo(tmp_path):
    return Demo(tmp_path)


def test_flags_reach_every_step(demo):
    status, _, errors, commands = demo.run("--overwrite", "--device", "cpu", "--verify")
    assert status == 0, errors
    steps = [command for command in commands if not command.startswith("scripts.")]
    assert len(steps) == len(STAGES)
    assert all(command.endswith(" --device cpu --overwrite --verify") for command in steps)
    assert [command.split()[0] for command in commands if command not in steps] == [
        "scripts.demo_data",
        "scripts.evaluate",
        "scripts.report",
    ]


@pytest.mark.parametrize(
    ("size", "recipe"), [((), "demo-64"), (("--size", "64"), "demo-64"), (("--size", "128"), "laptop-128")]
)
def test_a_size_has_its_recipe_and_its_folder(size, recipe, demo):
    demo.command = demo.command[:2]
    status, _, errors, commands = demo.run(*size)
    assert status == 0, errors
    out = demo.folder / ("out/demo-128-avatars" if "128" in size else "out/demo-avatars")
    assert commands[0].startswith(f"scripts.demo_data avatars --out-dir {out.relative_to(demo.folder)}/data")
    assert f"--image-size {recipe[-3:].strip('-')} " in commands[0]
    assert f"--config-path {demo.folder}/configs/{recipe}/autoencoder.json" in commands[1]


def test_help_tells_of_them(demo):
    found = subprocess.run([*demo.command, "--help"], capture_output=True, text=True)
    assert found.returncode == 0
    assert {"--overwrite", "--verify"} <= set(found.stdout.split())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("command", ["scripts.demo_data", "codebook_cond", "scripts.evaluate", "scripts.report"])
def test_a_signal_reaches_the_command_once_and_the_demo_ends_with_it(command, number, demo):
    process = demo.start(command)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, demo.received) == (7, [number])
    assert errors.splitlines() == ["terminal: False"]
