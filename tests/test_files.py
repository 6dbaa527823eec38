"""Files that are written completely or not at all, and in an order that a power loss does not break."""

import os
from pathlib import Path

import pytest

from tests.helpers.scripts import TINY, run_main
from train_autoencoder import main
from utils.core import files
from utils.core.files import is_temporary, replace_file
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
    then = ("measured.json", "best.pt", "manifest.json", "ground_truth_4.png", "recon_4.png", "manifest.json")
    assert ours[ours.index(saved[0]) :] == [*saved, *(("rename", name) for name in then)]
    for number, call in enumerate(calls):
        if call[0] == "rename":
            assert calls[number - 1 : number + 2 : 2] == [("flush", "temporary"), ("flush", "folder")]
