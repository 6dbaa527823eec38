import io

from utils.runtime import progress
from utils.runtime.progress import PlainBar


def test_a_bar_without_a_terminal_prints_a_plain_line_each_half_minute(monkeypatch):
    clock, file = [0.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with PlainBar(total=100, unit="step", desc="learning", file=file) as bar:
        bar._time = lambda: clock[0]
        for _ in range(100):
            clock[0] += 1
            bar.update()
            bar.refresh()  # as a log line would
    lines = file.getvalue().splitlines()
    assert len(lines) == 3  # after 30, 60 and 90 seconds
    assert all(line.startswith("learning:") and "step/s" in line for line in lines)
    assert "\r" not in file.getvalue()


def test_a_quick_bar_prints_nothing():
    file = io.StringIO()
    assert list(PlainBar(range(1000), file=file)) == list(range(1000))
    assert file.getvalue() == ""


def test_a_terminal_gets_a_bar_that_is_redrawn(monkeypatch):
    for is_terminal in (True, False):
        monkeypatch.setattr(progress.sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        assert isinstance(progress.progress(range(3)), PlainBar) != is_terminal
