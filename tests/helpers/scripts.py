"""Ways to run a script in this process."""

from pathlib import Path

import pytest

from utils.runtime import cli

TINY = Path(__file__).parent.parent.parent / "configs" / "tiny-32"
CODEBOOKS = ("codebook_cond", "codebook_0", "codebook_1", "codebook_2")


def run_main(main, *argv):
    """Call a script's `main` with arguments of any type."""
    main([str(argument) for argument in argv])


def expect_exit(main, argv):
    """Run a script as from the command line; return the status that it exits with."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: run_main(main, *argv))
    return stopped.value.code


def expect_error(capsys, main, argv):
    """Run a script that must end with status 2 and one line on stderr; return that line."""
    capsys.readouterr()
    status = expect_exit(main, argv)
    lines = capsys.readouterr().err.splitlines()
    assert status == 2
    assert not any("Traceback" in line for line in lines)
    assert [line for line in lines if line.startswith("error:")] == lines[-1:]
    return lines[-1]
