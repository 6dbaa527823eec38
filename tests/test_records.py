"""Packed records: what a `dataset.json` says, from the file or from what is kept of it."""

import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinydb import TinyDB

from utils import index, records
from utils.checkpoint import load_checkpoint
from utils.files import UserError
from utils.index import IndexDigest, checksum, read_records, write_dataset
from utils.records import Packer, kept_path, read_packed
from utils.split import position

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
RECORD = st.fixed_dictionaries(
    {"fmap_path": TEXT, "image_path": TEXT},
    optional={
        "image_key": TEXT,
        "group": NAME,
        "labels": st.lists(TEXT, max_size=3),
        "checksum": TEXT,
        "flipped": st.booleans(),
        "row": st.integers(0, 2**40),
        "another": st.integers(),
    },
)
REQUIRED = ("fmap_path", "image_path")


@pytest.fixture
def keep_all(monkeypatch):
    monkeypatch.setattr(records, "KEPT_FROM", 1)


def check(found, expected, info):
    """That packed records hold what these say."""
    keys = [record.get("image_key", record["image_path"]) for record in expected]
    assert [*found.names] == [record["fmap_path"] for record in expected]
    assert [*found.image_paths] == [record["image_path"] for record in expected]
    assert [*found.image_keys] == keys
    assert [*found.groups] == [record.get("group", "") for record in expected]
    assert [*found.checksums] == [record.get("checksum", "") for record in expected]
    assert [json.loads(labels) for labels in found.labels] == [record.get("labels", []) for record in expected]
    assert found.flipped.tolist() == [record.get("flipped", False) for record in expected]
    assert found.rows.tolist() == [record.get("row", -1) for record in expected]
    groups = [record.get("group", key) for record, key in zip(expected, keys, strict=True)]
    assert found.positions.tolist() == [position(group) for group in groups]
    assert found.info == info


@settings(max_examples=40)
@given(expected=st.lists(RECORD, min_size=1, max_size=5), info=st.dictionaries(TEXT, TEXT, min_size=1, max_size=2))
def test_packed_records_are_those_of_the_file_and_stay_so(expected, info, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "dataset.json"
    write_dataset(path, expected, info)
    check(read_packed(path, REQUIRED), expected, info)
    assert not kept_path(path).exists()  # there are few
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "KEPT_FROM", 1)
        first = read_packed(path, REQUIRED)
        check(first, expected, info)
        patch.setattr(records, "pack", None)  # from here on they come from what is kept
        again = read_packed(path, REQUIRED)
        check(again, expected, info)
        assert again.digest == first.digest


@settings(max_examples=40)
@given(expected=st.lists(st.dictionaries(TEXT, TEXT | st.integers(), max_size=3), max_size=4), has_info=st.booleans())
def test_the_file_is_what_tinydb_writes(expected, has_info, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    info = {"made": "by hand"} if has_info else None
    write_dataset(folder / "ours.json", expected, info)
    with TinyDB(folder / "theirs.json") as database:
        database.insert_multiple(expected)
        if info:
            database.table("info").insert(info)
    assert (folder / "ours.json").read_bytes() == (folder / "theirs.json").read_bytes()


@given(st.lists(NAME, max_size=30), st.data())
def test_packed_strings_are_those_that_were_added(strings, data):
    packer = Packer()
    for string in strings:
        packer.add(string)
    packed = packer.pack()
    assert ([*packed], len(packed)) == (strings, len(strings))
    if strings:
        index = data.draw(st.integers(0, len(strings) - 1))
        assert packed[np.int64(index)] == strings[index]


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "data/dataset.json"
    write_dataset(path, [{"image_fpath": f"{number}.png"} for number in range(3)])
    return path


def test_a_file_that_changes_is_read_again(dataset, keep_all):
    assert [*read_packed(dataset, ("image_fpath",)).names] == ["0.png", "1.png", "2.png"]
    before = dataset.stat()
    dataset.write_text(dataset.read_text().replace("1.png", "7.png"))  # as long as before
    os.utime(dataset, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert [*read_packed(dataset, ("image_fpath",)).names] == ["0.png", "7.png", "2.png"]
    assert [*read_packed(dataset, ("image_fpath",)).names] == ["0.png", "7.png", "2.png"]
    write_dataset(dataset, [{"image_fpath": "a.png"}])
    os.utime(dataset, ns=(before.st_atime_ns, before.st_mtime_ns))  # another size
    assert [*read_packed(dataset, ("image_fpath",)).names] == ["a.png"]


def test_what_is_kept_and_damaged_is_made_again(dataset, keep_all, caplog):
    read_packed(dataset, ("image_fpath",))
    content = kept_path(dataset).read_bytes()
    kept_path(dataset).write_bytes(content[: len(content) // 2])
    assert [*read_packed(dataset, ("image_fpath",)).names] == ["0.png", "1.png", "2.png"]
    assert "reading the data set again" in caplog.text
    caplog.clear()
    assert [*read_packed(dataset, ("image_fpath",)).names] == ["0.png", "1.png", "2.png"]
    assert caplog.text == ""


def test_what_another_version_has_kept_is_made_again(dataset, keep_all, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(records, "LAYOUT", 0)
        read_packed(dataset, ("image_fpath",))
    before = load_checkpoint(kept_path(dataset), records.KIND)["config"]
    assert [*read_packed(dataset, ("image_fpath",)).names] == ["0.png", "1.png", "2.png"]
    after = load_checkpoint(kept_path(dataset), records.KIND)["config"]
    assert (before["layout"], after["layout"]) == (0, records.LAYOUT)


def test_nothing_is_kept_where_nothing_can_be_written(dataset, keep_all):
    kept_path(dataset).parent.write_bytes(b"no folder")
    assert [*read_packed(dataset, ("image_fpath",)).names] == ["0.png", "1.png", "2.png"]
    assert kept_path(dataset).parent.read_bytes() == b"no folder"


def test_a_key_that_is_missing_is_named_by_what_is_kept_too(dataset, keep_all):
    read_packed(dataset, ("image_fpath",))
    for _ in range(2):
        with pytest.raises(UserError, match=r"dataset\.json: record 1 has no string 'fmap_path'"):
            read_packed(dataset, ("fmap_path",))
    shutil.rmtree(kept_path(dataset).parent)
    with pytest.raises(UserError, match=r"dataset\.json: record 1 has no string 'fmap_path'"):
        read_packed(dataset, ("fmap_path",))


def test_a_data_set_that_is_gone_is_named_although_its_records_are_kept(dataset, keep_all):
    read_packed(dataset, ("image_fpath",))
    dataset.unlink()
    with pytest.raises(UserError, match="no such data set"):
        read_packed(dataset, ("image_fpath",))


@pytest.mark.parametrize("labels", ["cat", [1], None, {"a": 1}])
def test_labels_that_are_no_strings_are_named(labels, dataset):
    write_dataset(dataset, [{"image_fpath": "0.png"}, {"image_fpath": "1.png", "labels": labels}])
    with pytest.raises(UserError, match=r"dataset\.json: 'labels' of record 2 is no list of strings"):
        read_packed(dataset, ("image_fpath",))


@pytest.mark.parametrize("row", [-1, "1", 1.5, None, 2**63])
def test_a_row_that_is_none_is_named(row, dataset):
    write_dataset(dataset, [{"image_fpath": "0.png", "row": row}])
    with pytest.raises(UserError, match=r"dataset\.json: 'row' of record 1 is no number from 0 on"):
        read_packed(dataset, ("image_fpath",))


def digest_of(path):
    digest = IndexDigest()
    for record in read_records(path, ()):
        digest.add(*record)
    return digest.hexdigest()


def test_the_digest_of_few_records_is_that_of_earlier_versions(dataset):
    tables = {"_default": {str(number): {"fmap_path": f"{number}"} for number in range(1, 12)}, "info": {"1": {"a": 2}}}
    dataset.write_text(json.dumps(tables))
    assert digest_of(dataset) == checksum(json.dumps(tables, sort_keys=True).encode())


def test_the_digest_of_many_records_changes_with_each(dataset, monkeypatch):
    monkeypatch.setattr(index, "MOST_FILES", 2)
    before, text = digest_of(dataset), dataset.read_text()
    assert digest_of(dataset) == before
    for old, new in (("0.png", "x.png"), ("2.png", "x.png"), ("image_fpath", "fmap_path")):
        dataset.write_text(text.replace(old, new))
        assert digest_of(dataset) != before
    moved = json.loads(text)
    for record in moved["_default"].values():
        record["image_path"] = "elsewhere.png"
    dataset.write_text(json.dumps(moved, indent=2))
    assert digest_of(dataset) == before


def test_a_record_needs_few_bytes_while_it_is_read_and_afterwards(dataset, monkeypatch):
    monkeypatch.setattr(index, "MOST_FILES", 100)
    number = 20_000
    write_dataset(dataset, ({"image_fpath": f"images/{i:06d}.png", "labels": []} for i in range(number)))
    tracemalloc.start()
    found = read_packed(dataset, ("image_fpath",))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 150 * len(found)
    assert peak < 150 * number + 12 * 2**20  # what is packed, and a few pieces of the file


def test_an_error_while_a_large_data_set_is_read_is_not_swallowed(dataset, monkeypatch):
    def fail(path, required):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(records, "LARGE", 0)
    monkeypatch.setattr(records, "pack", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read_packed(dataset, ("image_fpath",))
