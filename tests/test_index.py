"""The index of a data set: on disk after its files, and a fingerprint that tells it from another."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.helpers.files import contents
from utils.core.files import UserError
from utils.data.checksums import checksum, fingerprint
from utils.data.dataset_json import write_dataset
from utils.data.records import pack, read_dataset, verify_files

NAMES = ["0/a.npy", "0/b.npy", "1/c.npy"]


@pytest.fixture
def dataset(tmp_path):
    """A data set of three files with checksums."""
    for name in NAMES:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    write_dataset(tmp_path / "data/dataset.json", records_of(NAMES))
    return tmp_path / "data/dataset.json"


def records_of(names):
    return [{"fmap_path": name, "checksum": checksum(name.encode())} for name in names]


def print_of(dataset, names=NAMES):
    """The fingerprint of a data set whose files have these names."""
    return fingerprint(dataset, len(names), names, pack(dataset, ("fmap_path",)).digest)


def test_the_files_are_on_disk_before_the_index_has_its_name(tmp_path, monkeypatch):
    calls, sync, replace = [], os.sync, Path.replace
    monkeypatch.setattr(os, "sync", lambda: calls.append("sync") or sync())
    monkeypatch.setattr(Path, "replace", lambda self, to: calls.append(f"rename to {to.name}") or replace(self, to))
    write_dataset(tmp_path / "dataset.json", records_of(NAMES))
    assert calls == ["sync", "rename to dataset.json"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary(dataset, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    before = contents(dataset.parent)
    for records, error in (([{"fmap_path": object()}], TypeError), (map(fail, NAMES), OSError)):
        with pytest.raises(error):
            write_dataset(dataset, records)
    monkeypatch.setattr(os, "sync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_dataset(dataset, records_of(NAMES))
    assert contents(dataset.parent) == before


def change_file(dataset, content=None, later=1):
    """Give the second file another content, or another time, or both."""
    path = dataset.parent / NAMES[1]
    time = path.stat().st_mtime_ns + later
    path.write_bytes(path.read_bytes() if content is None else content)
    os.utime(path, ns=(time, time))


REWRITTEN, LONGER, TOUCHED = (b"1/c.npx",), (b"longer than before", 0), ()


@pytest.mark.parametrize("change", [REWRITTEN, LONGER, TOUCHED])
def test_the_fingerprint_changes_with_a_file(change, dataset):
    before = print_of(dataset)
    assert print_of(dataset) == before
    change_file(dataset, *change)
    after = print_of(dataset)
    assert (after["index"], after["files"] != before["files"]) == (before["index"], True)


def test_the_fingerprint_changes_with_names_and_content_of_the_index(dataset):
    before = print_of(dataset)
    other = dataset.parent / "0/d.npy"
    shutil.copy2(dataset.parent / NAMES[1], other)  # the same size and time
    assert print_of(dataset, [NAMES[0], "0/d.npy", NAMES[2]])["files"] != before["files"]
    assert print_of(dataset, NAMES[::-1])["files"] != before["files"]
    assert print_of(dataset, NAMES[:2])["files"] != before["files"]
    text = dataset.read_text()
    moved = [{**record, "image_path": "where/the/image/lies.png"} for record in read_dataset(dataset, ())[0]]
    dataset.write_text(json.dumps({"_default": dict(enumerate(moved, 1))}, indent=1))
    assert print_of(dataset) == before
    dataset.write_text(text.replace(NAMES[0], "0/x.npy"))
    assert print_of(dataset)["index"] != before["index"]


@pytest.mark.parametrize("change", [REWRITTEN, LONGER])
def test_verification_names_the_file_that_changed(change, dataset):
    verify_files(dataset)
    change_file(dataset, *change)
    with pytest.raises(UserError, match=r"0/b.npy: is not the file that was written"):
        verify_files(dataset)
    (dataset.parent / NAMES[1]).unlink()
    with pytest.raises(UserError, match=r"0/b.npy: is not the file that was written"):
        verify_files(dataset)
