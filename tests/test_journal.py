"""What a journal believes after a death: whole lines of the same key, whose files are as they were written."""

import json

import pytest

from utils.data.checksums import checksum
from utils.data.journal import Journal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "unfinished.jsonl"


def entry(path, name, content=b"content"):
    """An entry of a part with one file, which is written."""
    (path.parent / name).write_bytes(content)
    return {"places": [[name, None, checksum(content)]]}


def test_entries_are_found_again_under_the_same_key(path):
    journal = Journal(path, {"seed": 1})
    journal.add({"0": entry(path, "b"), "1": entry(path, "b") | {"more": [1.5]}})
    journal.add({"2": {"places": []}})
    journal.add({"0": entry(path, "a")})  # which is the one that counts
    for result in (journal, Journal(path, {"seed": 1}), Journal(path, {"seed": 1})):
        assert result.find("0") == {"places": [["a", None, checksum(b"content")]]}
        assert result.find("1")["more"] == [1.5]
        assert result.find("2") == {"places": []}
        assert result.find("3") is None
    assert Journal(path, {"seed": 2}).entries == {}  # another key forgets all
    assert Journal(path, {"seed": 1}).entries == {}


@pytest.mark.parametrize("content", [None, b"conten", b"c0ntent"])
def test_a_file_that_is_not_as_it_was_is_not_believed(content, path):
    Journal(path, 0).add({"0": {"places": entry(path, "a")["places"] + entry(path, "b")["places"]}})
    file = path.parent / "b"
    file.unlink() if content is None else file.write_bytes(content)
    assert Journal(path, 0).find("0") is None
    file.write_bytes(b"content")
    assert Journal(path, 0).find("0") is not None


def test_every_cut_of_the_file_leaves_whole_entries_only(path):
    journal = Journal(path, {"key": "ä"})
    for number in range(3):
        journal.add({str(number): entry(path, str(number))})
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        result = Journal(path, {"key": "ä"})
        assert result.entries == {str(n): journal.entries[str(n)] for n in range(content[:length].count(b"\n") - 1)}
        result.add({"after": {"places": []}})  # on a line of its own
        assert Journal(path, {"key": "ä"}).entries == result.entries
    path.write_bytes(content + b"\0\0\0\n" + json.dumps({"3": entry(path, "a")}).encode() + b"\n")
    assert set(Journal(path, {"key": "ä"}).entries) == {"0", "1", "2", "3"}  # a damaged line is passed over
