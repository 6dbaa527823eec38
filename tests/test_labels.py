"""How labels are asked for, and the label sets that generation draws from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.labels import LabelSets, count_sets, label_text, listed, parse_labels
from utils.core.files import UserError

NAMES = ("a", "a+b", "b", "c", "c++")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ["a"]),
        ("c+a", ["a", "c"]),
        ("a+b", ["a+b"]),  # a name as a whole
        ("b+a", ["a", "b"]),
        ("a+b+c", ["a+b", "c"]),  # the longest first
        ("c++", ["c++"]),
        ("c+++a", ["a", "c++"]),
        ("a+c++", ["a", "c++"]),
        ("c++++", None),
        ("a+a", ["a"]),
        ("", []),
    ],
)
def test_names_with_a_plus_are_asked_for_as_all_others(text, expected):
    if expected is None:
        with pytest.raises(UserError, match="does not know it"):
            parse_labels(text, NAMES)
    else:
        assert [NAMES[number] for number in parse_labels(text, NAMES)] == expected


@given(st.lists(st.text("ab", min_size=1, max_size=3), unique=True, min_size=1), st.data())
def test_the_text_of_a_label_set_asks_for_it(names, data):
    labels = tuple(sorted(data.draw(st.sets(st.integers(0, len(names) - 1)))))
    assert parse_labels(label_text(labels, names), names) == labels


def test_the_text_of_a_label_set_is_not_a_name_with_a_plus():
    assert label_text((0, 2), NAMES) == "b+a"
    assert label_text((0, 2, 3), NAMES) == "c+b+a"


def test_a_hostile_text_takes_no_time():
    with pytest.raises(UserError):
        parse_labels("a+" * 500 + "x", ("a", "a+a", "a+a+a"))


def test_label_sets_are_counted_with_their_conditions():
    given = torch.tensor([[1, 0, 2], [1, 0, 2], [0, 0, 1], [3, 2, 2]])
    table = count_sets(given, 8)
    assert table.tolist() == [[1, 0, 0, 1], [2, 1, 0, 2], [1, 3, 2, 2]]
    sets = LabelSets(torch.cat((table, torch.zeros(2, 4, dtype=torch.int64))), ("x", "y"), 4)
    assert sets.shares == {"x": 0.75, "y": 0.25}
    assert sets.usage().tolist() == [1, 2, 0, 1]
    for labels, expected in (((0,), [0, 2, 0, 0]), ((1,), [1, 0, 0, 0]), ((0, 1), [1, 0, 0, 0]), ((), [0, 0, 0, 1])):
        assert sets.usage(labels).tolist() == expected
    assert listed(["x", "y"]) == "x, y"


def test_a_sample_of_the_images_stands_for_more_label_sets_than_are_kept():
    given = torch.stack((torch.arange(600) % 2, torch.arange(600)), dim=1)
    table = count_sets(given, 100)
    assert table.shape == (100, 3)
    assert table[:, 0].sum() == 100
    assert 30 < int(table[:, 1].sum()) < 70
    assert torch.equal(table, count_sets(given, 100))
    # Few sets of many images are all counted.
    assert count_sets(given[:, :1], 100)[:, 0].tolist() == [300, 300]
