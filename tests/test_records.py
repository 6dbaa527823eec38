"""Records of a data set: what a `dataset.json` says, from the file or from memory."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinydb import TinyDB

from utils.core.files import UserError
from utils.data import records
from utils.data.dataset_json import write_dataset
from utils.data.records import image_key, read_dataset, read_packed
from utils.data.split import position

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
OPTIONAL = {"image_key": TEXT, "group": NAME, "labels": st.lists(TEXT, max_size=3), "checksum": TEXT}
OPTIONAL |= {"flipped": st.booleans(), "moved": st.integers(0, 9)}
OPTIONAL |= {"row": st.integers(0, 2**40), "another": st.integers()}
RECORD = st.fixed_dictionaries({"fmap_path": TEXT, "image_path": TEXT}, optional=OPTIONAL)
REQUIRED = ("fmap_path", "image_path")


@pytest.fixture
def keep_all(monkeypatch):
    monkeypatch.setattr(records, "LARGE", 1)


def names(path):
    return [record["image_fpath"] for record in read_packed(path, ("image_fpath",))]


def check(result, expected, info):
    """That records hold what these say."""
    assert [*result] == expected
    assert result[np.int64(len(expected) - 1)] == expected[-1]
    keys = [record.get("image_key", record["image_path"]) for record in expected]
    assert [image_key(record) for record in result] == keys
    for name in ("flipped", "moved"):
        assert result.table[name].tolist() == [bool(record.get(name)) for record in expected]
    assert result.table["row"].tolist() == [record.get("row", -1) for record in expected]
    groups = [record.get("group", key) for record, key in zip(expected, keys, strict=True)]
    assert result.table["position"].tolist() == [position(group) for group in groups]
    files = [record["fmap_path"] for record in expected]
    assert [files[first] for first in result.table["first"]] == files
    number, names = result.files
    names = [*names]
    assert number == len(names)
    assert names == [name for number, name in enumerate(files) if not number or files[number - 1] != name]
    assert result.info == info


@settings(max_examples=40)
@given(expected=st.lists(RECORD, min_size=1, max_size=5), info=st.dictionaries(TEXT, TEXT, min_size=1, max_size=2))
def test_records_are_those_of_the_file_and_stay_so(expected, info, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "dataset.json"
    write_dataset(path, expected, info)
    check(read_packed(path, REQUIRED), expected, info)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "LARGE", 1)
        first = read_packed(path, REQUIRED)
        check(first, expected, info)
        patch.setattr(records, "pack", None)  # from here on they come from memory
        again = read_packed(path, REQUIRED)
        check(again, expected, info)
        assert again.digest == first.digest


@settings(max_examples=40)
@given(
    expected=st.lists(st.dictionaries(TEXT, TEXT | st.integers(), max_size=3), min_size=1, max_size=4),
    has_info=st.booleans(),
    indent=st.sampled_from([None, 0, 1]),
)
def test_tinydb_reads_our_file_and_we_read_its(expected, has_info, indent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    info = {"made": "by hand"} if has_info else None
    write_dataset(folder / "ours.json", expected, info)
    with TinyDB(folder / "ours.json", access_mode="r") as database:
        assert [dict(record) for record in database.all()] == expected
        assert [dict(record) for record in database.table("info").all()] == [info] * has_info
    with TinyDB(folder / "theirs.json", indent=indent) as database:
        database.insert_multiple(expected)
        if info:
            database.table("info").insert(info)
    assert read_dataset(folder / "theirs.json", ()) == read_dataset(folder / "ours.json", ()) == (expected, info or {})


def test_a_file_of_ours_that_is_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "dataset.json"
    for info in (None, {"a": 1}):
        write_dataset(path, [{"image_fpath": "a"}, {"image_fpath": "ü}}"}], info)
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(UserError, match=r"dataset\.json: not a dataset\.json"):
                read_dataset(path, ())


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "data/dataset.json"
    write_dataset(path, [{"image_fpath": f"{number}.png"} for number in range(3)])
    return path


def test_a_file_that_changes_is_read_again(dataset, keep_all):
    assert names(dataset) == ["0.png", "1.png", "2.png"]
    before = dataset.stat()
    dataset.write_text(dataset.read_text().replace("1.png", "7.png"))  # as long as before
    os.utime(dataset, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert names(dataset) == ["0.png", "7.png", "2.png"]
    assert names(dataset) == ["0.png", "7.png", "2.png"]
    write_dataset(dataset, [{"image_fpath": "a.png"}])
    os.utime(dataset, ns=(before.st_atime_ns, before.st_mtime_ns))  # another size
    assert names(dataset) == ["a.png"]


def test_what_is_missing_is_named_although_records_are_in_memory(dataset, keep_all):
    read_packed(dataset, ("image_fpath",))
    with pytest.raises(UserError, match=r"dataset\.json: record 1 .*'fmap_path'"):
        read_packed(dataset, ("fmap_path",))
    dataset.unlink()
    with pytest.raises(UserError, match=r"dataset\.json"):
        read_packed(dataset, ("image_fpath",))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("labels", ["cat", [1], None, {"a": 1}]),
        ("group", ["", 1, None, "\0", "\ud800"]),
        ("image_key", [1, None, "\0", "\ud800"]),
        ("image_fpath", ["\0", "a\ud800"]),
        *((key, [-1, "1", 1.5, None, 2**63]) for key in ("row", "offset", "size")),
    ],
)
def test_a_value_of_another_kind_is_named(key, values, dataset):
    for value in values:
        write_dataset(dataset, [{"image_fpath": "0.png"}, {"image_fpath": "1.png", key: value}])
        with pytest.raises(UserError, match=rf"dataset\.json: '{key}' of record 2"):
            read_packed(dataset, ("image_fpath",))


@pytest.mark.parametrize("lacking", ["image_key", "size"])
def test_a_place_in_a_shard_needs_all_of_its_keys(lacking, dataset):
    place = {"image_key": "1.png", "offset": 512, "size": 9}
    write_dataset(dataset, [{"image_fpath": "0.tar"} | {key: place[key] for key in place if key != lacking}])
    with pytest.raises(UserError, match=f"record 1 .*'{lacking}'"):
        read_packed(dataset, ("image_fpath",))


def test_the_digest_changes_with_each_record_but_not_with_where_images_lie(dataset):
    def digest():
        return read_packed(dataset, ("image_fpath",)).digest

    before, text = digest(), dataset.read_text()
    assert digest() == before
    for old, new in (("0.png", "x.png"), ("2.png", "x.png"), ('"}', '", "row": 1}')):
        dataset.write_text(text.replace(old, new))
        assert digest() != before
    moved = json.loads(text)
    for record in moved["_default"].values():
        record["image_path"] = "elsewhere.png"
    dataset.write_text(json.dumps(moved, indent=2))
    assert digest() == before
    write_dataset(dataset, read_dataset(dataset, ())[0], {"encoder": "another"})
    assert digest() != before
