"""Runs the commands of a notebook in its own process, since each of ten others would import PyTorch again."""

import shlex
import sys
from importlib import import_module
from pathlib import Path

from tests.helpers.scripts import run_main
from utils.runtime import child


def run_here(shell):
    """From now on, `!python -m MODULE` in this IPython shell, and the steps of a chain, run here."""

    def play(attendant, command, **_):
        run_main(import_module(Path(command[1]).stem).main, *command[2:])
        return 0

    def system(command):
        python, option, module, *words = shlex.split(shell.var_expand(command))
        assert (python, option) == (sys.executable, "-m")
        import_module(module).main(words)

    child.Attendant.run, shell.system = play, system
