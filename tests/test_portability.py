"""What the code does without on some systems: a whole chain runs where all of that is taken away.

Nobody has run it on Windows or macOS. This runs on Linux, in processes that begin with a module which removes what
those lack, and which are spawned.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.chain import recipe_of
from tests.helpers.runs import SMALL, recipe_json
from utils.runs.chain import ROOT, missing_in
from utils.runs.folders import RunFolder

# Python imports this before anything else, in each process that has its folder on the path.
SITE = """
import builtins, errno, io, multiprocessing, os, shutil, signal, sys

import filelock, torch  # which on Linux ask for some of it as they are imported

sys.modules["fcntl"] = sys.modules["resource"] = None
for module, names in {
    os: "fork forkpty killpg link symlink sync pread register_at_fork sched_getaffinity sysconf",
    signal: "SIGHUP SIGQUIT SIGTSTP SIGTTOU SIGCONT SIGSTOP SIGKILL",
}.items():
    for name in names.split():
        delattr(module, name)


def without(function, refuses_folders=False):
    def call(path, *arguments, **options):
        if isinstance(path, (str, os.PathLike)):
            if os.fspath(path).startswith(("/proc", "/sys")):
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            if refuses_folders and isdir(path):
                raise PermissionError(errno.EACCES, "is a folder", str(path))
        return function(path, *arguments, **options)

    return call


isdir = os.path.isdir
builtins.open = io.open = without(io.open)
os.stat, os.open = without(os.stat), without(os.open, refuses_folders=True)
shutil._use_fd_functions = False  # it has chosen already to open folders
multiprocessing.set_start_method("spawn")
"""


# Runs the chain; before that it sees that the module takes away what it says.
DRIVER = """
import os, signal
from pathlib import Path
from scripts import train_cascade
from utils.runtime import cli

assert not hasattr(os, "fork") and not hasattr(signal, "SIGHUP")
assert not Path("/proc/self/status").exists()
try:
    os.open(".", os.O_RDONLY)
except PermissionError:
    print("no folder is opened")
if __name__ == "__main__":
    cli.run(train_cascade.main)
"""


def test_a_chain_runs_where_much_is_missing_and_with_spawned_processes(faces, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(SITE)
    (tmp_path / "driver.py").write_text(DRIVER)
    recipe = recipe_of(1, tmp_path / "recipe")
    settings = {name: SMALL.settings[name] for name in ("feature_maps", "codebook", "prune", "transformer_0")}
    training = {"max_step": 2, "checkpoint_step": 1, "keep_checkpoint": 1, "warmup_step": 1, "num_workers": 1}
    settings |= {"autoencoder": SMALL.settings["autoencoder"] | training}
    settings |= {"generate": {"num_images": 2, "animate": "webp"}}
    (recipe / "recipe.json").write_text(recipe_json(settings, image_size=32))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "driver.py", recipe, faces, tmp_path / "run", "--device", "cpu"]
    for expected in ("== generate, step 8 of 8", "== generate: done"):
        ended = subprocess.run([*map(str, command)], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert ended.stderr == ""
        assert {expected, "no folder is opened"} <= set(ended.stdout.splitlines())
    run = RunFolder(Path(tmp_path / "run"))
    assert missing_in(run) == {}
