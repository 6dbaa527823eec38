"""Runs that die on the way, and what they leave."""

from tests.helpers.files import contents


def dying(original, at):
    """`original`, which fails as by Ctrl-C at its call number `at`, from 0."""
    calls = iter(range(at + 1))

    def call(*args, **kwargs):
        if next(calls) == at:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    return call


def results(folder):
    """The content of every file of a step by its name, but of locks and of those that tell of the attempts."""
    files = {path.relative_to(folder).as_posix(): content for path, content in contents(folder).items()}
    return {
        name: content for name, content in files.items() if name != "run.json" and not name.endswith((".log", ".lock"))
    }
