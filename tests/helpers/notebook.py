"""Runs the commands of a notebook in its own process, since each of ten others would import PyTorch again."""

import shlex
import sys
from importlib import import_module


def run_here(shell):
    """From now on, `!python -m MODULE` in this IPython shell runs here."""

    def system(command):
        python, option, module, *words = shlex.split(shell.var_expand(command))
        assert (python, option) == (sys.executable, "-m")
        import_module(module).main(words)

    shell.system = system
