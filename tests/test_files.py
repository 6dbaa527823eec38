"""Files that are written completely or not at all, and in an order that a power loss does not break."""

import errno
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.helpers.scripts import TINY, run_main
from train_autoencoder import main
from utils.core import files
from utils.core.files import flush_all, is_temporary, remove_unnamed, replace_file
from utils.training import metrics


@pytest.fixture
def calls(monkeypatch):
    """What is flushed and what is renamed, in order: `temporary`, `folder`, or the name of a file."""
    seen = []

    def flush(path):
        seen.append(("flush", "folder" if path.is_dir() else "temporary" if is_temporary(path.name) else path.name))
        with monkeypatch.context() as patched:
            synced = []
            patched.setattr(os, "fsync", synced.append)
            flush.original(path)
            assert len(synced) == 1

    flush.original = files.flush
    original = Path.replace
    for module in (files, metrics):
        monkeypatch.setattr(module, "flush", flush)
    monkeypatch.setattr(Path, "replace", lambda path, to: seen.append(("rename", to.name)) or original(path, to))
    return seen


def test_a_file_is_on_disk_before_its_name_and_the_name_before_all_else(calls, tmp_path):
    with replace_file(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("a")
    built = [("flush", "folder")]  # the new folder, in the one above
    assert calls == [*built, ("flush", "temporary"), ("rename", "a.txt"), ("flush", "folder")]
    calls.clear()
    with replace_file(tmp_path / "b.txt", durable=False) as temporary:
        temporary.write_text("b")
    assert calls == [("rename", "b.txt")]


def test_a_checkpoint_is_on_disk_after_the_rows_before_it_and_before_what_names_it(calls, faces, tmp_path):
    plan = ("--device", "cpu", "--max-step", 4, "--checkpoint-step", 4, "--log-step", 3, "--batch-size", 4)
    run_main(
        main, "--dataset-path", faces, "--config-path", TINY / "autoencoder.json", "--out-dir", tmp_path / "run", *plan
    )
    ours = [(call, name) for call, name in calls if name in ("metrics.jsonl", "best.pt") or call == "rename"]
    saved = [("flush", "metrics.jsonl"), ("rename", "model_4.pt"), ("rename", "latest.pt")]
    then = ("measured.json", "best.pt", "run.json", "ground_truth_4.png", "recon_4.png", "run.json")
    assert ours[ours.index(saved[0]) :] == [*saved, *(("rename", name) for name in then)]
    for number, call in enumerate(calls):
        if call[0] == "rename":
            assert calls[number - 1 : number + 2 : 2] == [("flush", "temporary"), ("flush", "folder")]


def test_temporary_names_are_random_hidden_and_known_again(tmp_path):
    with replace_file(tmp_path / "a.tar.gz") as first, replace_file(tmp_path / "a.tar.gz") as second:
        assert first.name != second.name
        for path in (first, second):
            assert path.name.startswith(".") and path.suffix == ".gz" and is_temporary(path.name)
            path.touch()
    for name in ("a.tar.gz", ".a.tmp", ".a.0123456789abcde.tmp.gz", ".a.0123456789abcdeg.tmp.gz", "a.tmp.gz", ".lock"):
        assert not is_temporary(name)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_flush_is_used_and_a_broken_disk_is_an_error(number, tmp_path, monkeypatch):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with (
        pytest.raises(OSError) if number == errno.EIO else nullcontext(),
        replace_file(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_text("a")
    assert (tmp_path / "a.txt").exists() == (number != errno.EIO)
    assert len(list(tmp_path.iterdir())) == (number != errno.EIO)


def test_windows_flushes_what_can_be_written_no_folders_and_all_files_one_by_one(tmp_path, monkeypatch):
    def open_as_windows(path, flags, *rest):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        opened.append((Path(path).suffix, flags & os.O_ACCMODE == os.O_RDWR))
        return original(path, flags, *rest)

    (tmp_path / "b.png").touch()
    opened, original = [], os.open
    monkeypatch.setattr(os, "open", open_as_windows)
    monkeypatch.delattr(os, "sync")
    with replace_file(tmp_path / "new/a.txt") as temporary:
        temporary.write_text("a")
    assert opened == [(".txt", True)]
    flush_all(tmp_path)
    assert sorted(opened[1:]) == [(".png", True), (".txt", True)]


@pytest.mark.parametrize("is_windows", [True, False])
def test_a_file_of_before_that_is_in_use_stays_on_windows(is_windows, tmp_path, monkeypatch):
    def refuse(path):
        if path.name == "a.npy":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        original(path)

    original = Path.unlink
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.npy").touch()
    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(files, "IN_USE", (PermissionError,) if is_windows else ())
    with nullcontext() if is_windows else pytest.raises(PermissionError):
        remove_unnamed(tmp_path, "*.npy", {"c.npy"})
    if is_windows:
        assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "c.npy"}
