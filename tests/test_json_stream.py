"""A JSON file that is read piece by piece gives what `json` gives, whatever the size of the pieces."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils import json_stream
from utils.json_stream import JsonStream

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
TABLES = st.dictionaries(st.text(), st.dictionaries(st.text(), VALUES, max_size=4), max_size=3)


class Pieces(io.StringIO):
    """Gives so many characters at once, whatever is asked."""

    def __init__(self, text, size):
        super().__init__(text)
        self.size = size

    def read(self, _):
        return super().read(self.size)


def read(file):
    stream = JsonStream(file)
    found = {table: {key: stream.value() for key in stream.members()} for table in stream.members()}
    stream.end()
    return found


@given(TABLES, st.integers(1, 30), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_pieces_of_any_size_give_the_same(tables, size, indent, is_ascii):
    text = json.dumps(tables, indent=indent, ensure_ascii=is_ascii)
    assert read(Pieces(text, size)) == tables


@given(TABLES, st.integers(1, 30), st.data())
def test_what_is_cut_short_is_refused(tables, size, data):
    text = json.dumps(tables)
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(ValueError, match=r"[a-z]"):
        read(Pieces(text[:cut], size))


@pytest.mark.parametrize(
    "text", ["", "[]", "{]", '{"a"}', '{"a": {1: 2}}', '{"a": {}} x', '{"a": {},}', '{"a" {}}', "{,}"]
)
def test_what_is_no_object_of_objects_is_refused(text):
    with pytest.raises(ValueError, match=r"[a-z]"):
        read(io.StringIO(text))


def test_only_a_piece_is_in_memory(monkeypatch):
    monkeypatch.setattr(json_stream, "PIECE", 1000)
    tables = {"a": {str(number): {"name": "x" * 50} for number in range(1000)}}
    stream = JsonStream(io.StringIO(json.dumps(tables)))
    for _ in stream.members():
        for _ in stream.members():
            stream.value()
            assert len(stream.text) < 3000
