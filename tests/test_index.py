"""The index of a data set: on disk after its files, and a fingerprint that tells it from another."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from utils.core.files import UserError
from utils.core.provenance import check
from utils.data import checksums
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


def test_the_files_are_on_disk_before_the_index_and_that_before_its_name(tmp_path, monkeypatch):
    calls, path = [], tmp_path / "dataset.json"
    sync, fsync, replace = os.sync, os.fsync, Path.replace

    def where(descriptor):
        found = Path(f"/proc/self/fd/{descriptor}").readlink()
        return (
            "folder"
            if found == tmp_path
            else "temporary"
            if found.parent == tmp_path and ".tmp" in found.name
            else found
        )

    monkeypatch.setattr(os, "sync", lambda: calls.append("sync") or sync())
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(f"fsync {where(descriptor)}") or fsync(descriptor))
    monkeypatch.setattr(Path, "replace", lambda self, to: calls.append(f"rename to {to.name}") or replace(self, to))
    write_dataset(path, records_of(NAMES))
    at = calls.index("rename to dataset.json")
    assert calls[0] == "sync"
    assert calls[at - 1 : at + 2] == ["fsync temporary", "rename to dataset.json", "fsync folder"]
    assert calls.count("rename to dataset.json") == 1
    assert read_dataset(path, ("fmap_path",)) == (records_of(NAMES), {})


def test_without_a_sync_there_is_no_index(tmp_path, monkeypatch):
    def fail():
        raise OSError("disk full")

    monkeypatch.setattr(os, "sync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_dataset(tmp_path / "dataset.json", records_of(NAMES))
    assert list(tmp_path.iterdir()) == []


def rewritten(dataset):
    (dataset.parent / NAMES[1]).write_bytes(b"1/c.npx")  # of the same size, but at another time
    touched(dataset)


def longer(dataset):
    path = dataset.parent / NAMES[1]
    time = path.stat().st_mtime_ns
    path.write_bytes(b"longer than before")
    os.utime(path, ns=(time, time))


def touched(dataset):
    time = (dataset.parent / NAMES[1]).stat().st_mtime_ns + 1
    os.utime(dataset.parent / NAMES[1], ns=(time, time))


@pytest.mark.parametrize("change", [rewritten, longer, touched])
def test_the_fingerprint_changes_with_a_file(change, dataset):
    before = print_of(dataset)
    assert print_of(dataset) == before
    change(dataset)
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


def test_a_missing_file_is_named(dataset):
    (dataset.parent / NAMES[2]).unlink()
    with pytest.raises(UserError, match=r"1/c.npy: no such file; make the data set again"):
        print_of(dataset)


def test_of_many_files_the_index_alone_counts(dataset, monkeypatch):
    monkeypatch.setattr(checksums, "MOST_FILES", 3)
    assert print_of(dataset)["files"]
    monkeypatch.setattr(checksums, "MOST_FILES", 2)
    before = print_of(dataset)
    assert before["files"] == ""
    (dataset.parent / NAMES[2]).unlink()
    assert print_of(dataset) == before


def compare(dataset, before, verify=False):
    check(
        "out/maps",
        {"data": before},
        {"data": print_of(dataset)},
        verify=partial(verify_files, dataset) if verify else None,
    )


def test_the_same_data_set_passes_and_another_does_not(dataset):
    before = print_of(dataset)
    compare(dataset, before)
    dataset.write_text(dataset.read_text().replace(NAMES[0], "0/x.npy"))
    for verify in (False, True):
        with pytest.raises(UserError, match=r"^out/maps: was made with another data set \(\w+, now \w+\)"):
            compare(dataset, before, verify)


def test_a_copy_passes_once_it_is_verified(dataset):
    before = print_of(dataset)
    touched(dataset)
    with pytest.raises(
        UserError, match=r"^out/maps: the files of its data set have other times or sizes .* add --verify"
    ):
        compare(dataset, before)
    compare(dataset, before, verify=True)


@pytest.mark.parametrize("change", [rewritten, longer])
def test_verification_names_the_file_that_changed(change, dataset):
    before = print_of(dataset)
    verify_files(dataset)
    change(dataset)
    with pytest.raises(UserError, match=r"0/b.npy: is not the file that was written"):
        compare(dataset, before, verify=True)
    (dataset.parent / NAMES[1]).unlink()
    with pytest.raises(UserError, match=r"0/b.npy: is not the file that was written"):
        verify_files(dataset)


def test_a_data_set_without_checksums_cannot_be_verified(dataset):
    write_dataset(dataset, [{"fmap_path": name} for name in NAMES])
    with pytest.raises(UserError, match="holds no checksums, so --verify cannot compare"):
        verify_files(dataset)
