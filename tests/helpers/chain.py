"""A recipe of so many stages, and its chain of steps with a stub in place of their Python."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.requests import config_of, load_generation_config
from scripts import train_cascade
from scripts.recipe import load_configs, options_of
from tests.helpers import stub
from tests.helpers.files import edited
from tests.helpers.jobs import until
from tests.helpers.scripts import TINY
from utils.core.options import words_of
from utils.data.dataset import FeatureMapDataset, ImageDataset
from utils.runs.chain import ROOT, Recipe, steps_of
from utils.runs.folders import RunFolder
from utils.runs.manifest import attempt
from utils.runtime import child

STUB = f"#!{sys.executable} -ISs\n{Path(stub.__file__).read_text()}"

# Starts the chain as `python -m scripts.train_cascade` does, with the stub as the Python of its steps.
DRIVER = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from scripts import train_cascade
from utils.runtime import child
sys.executable = os.environ["STUB"]
child.main(train_cascade.main)
"""


class Chain:
    """A recipe with so many stages, a data set, a folder to write to, and the stub."""

    def __init__(self, folder, faces=None, maps=None, number=1):
        self.folder, self.out, self.calls = folder, folder / "out", folder / "calls"
        self.started, self.dataset = folder / "started", folder / "data/dataset.json"
        self.stub = folder / "python"
        self.stub.write_text(STUB)
        self.stub.chmod(0o755)
        paths = {"STUB": self.stub, "CALLS": self.calls, "STARTED": self.started, "MAPS": maps}
        self.environment = os.environ | {key: str(path) for key, path in paths.items()}
        self.environment.pop("OMP_NUM_THREADS", None)  # which the chain chooses
        if faces is not None:
            shutil.copytree(faces.parent, self.dataset.parent)
            self.recipe = recipe_of(number, folder / "mine")
            self.arguments = [f"{self.recipe}/", str(self.dataset), str(self.out)]
            self.command = [sys.executable, "-c", DRIVER, *self.arguments]

    def run(self, *arguments, **environment):
        """Run the chain and the stub in this process; return status, output, errors and the commands of the stub."""

        @contextlib.contextmanager
        def attempted(recipe, step, **common):
            """What the script of a step notes of it."""
            options = dataclasses.replace(options_of(recipe, step), **common)
            config = load_configs(recipe, steps_of(RunFolder(self.out), recipe, self.dataset)).get(step.name)
            if step.script == "generate_images":
                config = config_of(load_generation_config(options.config_path))
            data = step.inputs.get("dataset_path")
            kind = ImageDataset if data == self.dataset else FeatureMapDataset
            with attempt(f"{step.script}.py", options) as attempted:
                attempted.begin(torch.device("cpu"), config, {"data": kind(data).fingerprint} if data else {})
                yield

        def play_step(recipe, step, **common):
            with attempted(recipe, step, **common):
                if status := stub.main([str(word) for word in (*step.command, *words_of(common))], os.environ):
                    sys.exit(status)

        def play(attendant, command, env, **_):
            words, recipe = [str(word) for word in command[1:]], Recipe.find(self.recipe)
            for step in steps_of(RunFolder(self.out, len(recipe.stages)), recipe, self.dataset):
                if {str(step.folder.path), str(ROOT / f"{step.script}.py")} <= {*words}:
                    with attempted(recipe, step):
                        return stub.main(words, env)

        self.calls.unlink(missing_ok=True)
        output, errors = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(child.Attendant, "run", play)
            patch.setattr(train_cascade, "run_step", play_step)
            patch.delenv("OMP_NUM_THREADS", raising=False)
            for key, value in (self.environment | environment).items():
                patch.setenv(key, value)
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                status = status_of(lambda: train_cascade.main([*self.arguments, *arguments]))
        return status, output.getvalue(), errors.getvalue(), self.commands

    @property
    def commands(self):
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def ended(self, *arguments):
        """Run the chain, which must succeed; return its output and the scripts that it ran."""
        status, output, errors, commands = self.run(*arguments)
        assert status == 0, errors
        return output, [command.split()[0] for command in commands]

    def refused(self, *arguments):
        """Run the chain, which must be refused in one line before any step; return that line."""
        status, _, errors, commands = self.run(*arguments)
        assert (status, commands) == (2, [])
        (line,) = errors.splitlines()
        assert line.startswith("error: ")
        return line

    def edit(self, name, **values):
        """Change values of a JSON file of the recipe; those of an object within it by its key and theirs, `a__b`."""
        with edited(self.recipe / f"{name}.json") as content:
            for key, value in values.items():
                *above, key = key.split("__")
                place = content[above[0]] if above else content
                place.update({key: value}) if value is not None else place.pop(key)

    def start(self, slow, *more, before=(), **options):
        """Start the chain, as the leader of a session, and wait for its step `slow`, which lasts until a signal."""

        def preexec():
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # in the background some are ignored
                signal.signal(number, signal.SIG_DFL)

        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        command, environment = [*before, *self.command, *more], self.environment | {"SLOW": slow}
        process = subprocess.Popen(command, env=environment, preexec_fn=preexec, **pipes | options)
        until(lambda: process.poll() is not None or self.child)
        return process

    @property
    def child(self):
        """The number of the process of the slow step."""
        text = self.started.read_text() if self.started.exists() else ""
        return int(text) if text.endswith("\n") else None

    @property
    def signals(self):
        """How many signals the slow step has received so far."""
        path = Path(f"{self.started}.signals")
        return path.stat().st_size if path.exists() else 0

    @property
    def received(self):
        """The signals that the slow step was sent; it must have ended."""
        text = self.started.read_text()
        assert not text.endswith("\n")
        return [int(word) for word in text.split()]


def recipe_of(number, folder):
    """The tiny recipe with so many stages; those beyond the third are like it."""
    shutil.copytree(TINY, folder)
    content, stages = (json.loads((folder / f"{name}.json").read_text()) for name in ("recipe", "generate"))
    for path in folder.glob("*_[0-9].json"):
        path.unlink()
        content.pop(path.stem, None)
    for level in range(number):
        for kind in ("codebook", "transformer"):
            shutil.copy(TINY / f"{kind}_{min(level, 2)}.json", folder / f"{kind}_{level}.json")
        content[f"transformer_{level}"] = {"max_step": 7 + level}
    books = [f"codebook_{level}/models_checkpoint/pruned_codebook.pt" for level in ("cond", *range(number))]
    stages = {str(level): dict(stages[str(min(level, 2))]) for level in range(number)}
    for level in range(number):
        names = {"lr_codebook_path": books[level], "hr_codebook_path": books[level + 1]}
        stages[str(level)] |= names | {"model_path": f"transformer_{level}/models_checkpoint/best.pt"}
    (folder / "recipe.json").write_text(json.dumps(content))
    (folder / "generate.json").write_text(json.dumps(stages))
    return folder


def status_of(function):
    """The exit status with which a script ends."""
    try:
        child.main(function)
    except SystemExit as stopped:
        return stopped.code
    return 0
