from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from utils.core.files import UserError
from utils.data.dataset import FeatureMapDataset, ImageDataset
from utils.data.dataset_json import write_dataset
from utils.data.records import read_packed
from utils.data.split import Bounds, SplitOptions, position, split_indices

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
fractions = st.floats(0, 0.9)
SIDES = ("training", "validation", "test")


def side_of(key, bounds):
    return "validation" if position(key) < bounds.validation else "test" if position(key) < bounds.test else "training"


def sides(keys, bounds):
    split = split_indices(np.array([position(key) for key in keys]), bounds)
    return {name: [keys[index] for index in getattr(split, name)] for name in SIDES}


@given(st.lists(names, min_size=2, unique=True), fractions, fractions)
def test_the_side_of_an_image_is_a_function_of_its_key_alone(keys, validation, test):
    bounds = Bounds(validation, validation + test)
    expected = {name: {key for key in keys if side_of(key, bounds) == name} for name in SIDES}
    if not expected["training"]:
        with pytest.raises(UserError, match=r"--val-fraction and --test-fraction hold out .*; lower|: lower them"):
            sides(keys, bounds)
        return
    for order in (keys, keys[::-1]):
        result = sides(order, bounds)
        assert {name: set(part) for name, part in result.items()} == expected
        assert sum(map(len, result.values())) == len(keys)


def test_the_split_does_not_change_between_versions():
    """Checkpoints of another day hold out the same images."""
    keys = [f"images/{number}.png" for number in range(200)]
    result = {name: sorted(map(keys.index, part)) for name, part in sides(keys, Bounds()).items()}
    assert result["validation"] == [29, 68, 70, 89, 95, 105, 108, 124, 155, 168, 177]
    assert result["test"] == [number for number in range(200) if 0.05 <= position(keys[number]) < 0.1]
    assert sides(["a", "b"], Bounds(0.0, 0.0)) == {"training": ["a", "b"], "validation": [], "test": []}


@settings(max_examples=25)
@given(st.text("abcdefgh/.", max_size=10), st.floats(0.02, 0.5), st.floats(0.02, 0.4))
def test_the_shares_are_near_the_fractions(prefix, validation, test):
    keys = [f"{prefix}{number}.png" for number in range(2000)]
    result = sides(keys, SplitOptions(val_fraction=validation, test_fraction=test).bounds)
    for name, fraction in (("validation", validation), ("test", test)):
        assert abs(len(result[name]) / len(keys) - fraction) < 6 * (fraction * (1 - fraction) / len(keys)) ** 0.5


@given(st.lists(st.tuples(fractions, fractions), min_size=1, max_size=4), st.lists(names, min_size=20, unique=True))
def test_what_steps_hold_out_in_common_none_has_learned_from(pairs, keys):
    each = [Bounds(validation, validation + test) for validation, test in pairs]
    common = Bounds.common(each)
    for key in keys:
        of_each, side = {side_of(key, bounds) for bounds in each}, side_of(key, common)
        assert (side == "training") == ("training" in of_each)
        assert (side == "test") == (of_each == {"test"})


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["", *"abcdefghi", "9.png"]), min_size=10, max_size=40), fractions, fractions)
def test_a_group_is_on_one_side_and_what_has_none_on_that_of_its_key(groups, validation, test):
    bounds = Bounds(validation, validation + test)
    expected = [side_of(group or f"{number}.png", bounds) for number, group in enumerate(groups)]
    assume("training" in expected)
    assert sides_of_records([{"group": group} if group else {} for group in groups], bounds) == expected


def sides_of_records(records, bounds):
    """The side of each image of a data set with these records, whose files are not read."""
    paths = [f"{number}.png" for number in range(len(records))]
    records = [{"image_fpath": path, **record} for path, record in zip(paths, records, strict=True)]
    with TemporaryDirectory() as folder:
        path = Path(folder, "dataset.json")
        write_dataset(path, records)
        split = split_indices(read_packed(path, ("image_fpath",)).table["position"], bounds)
    result = {int(index): name for name in SIDES for index in getattr(split, name)}
    return [result[index] for index in range(len(records))]


@pytest.mark.parametrize("bounds", [(0.05, 0.1), (0.3, 0.5)])
def test_images_and_feature_maps_are_split_alike_and_flips_stay(bounds, tiny_run, faces):
    images, maps = ImageDataset(faces), FeatureMapDataset(tiny_run / "feature_maps" / "dataset.json")
    assert len(maps) == 2 * len(images)
    assert maps.flipped.sum() == len(images)
    of_images, of_maps = images.split(Bounds(*bounds)), maps.split(Bounds(*bounds))
    for name in SIDES:
        for flipped in (False, True):
            result = [maps.image_key(index) for index in getattr(of_maps, name) if maps.flipped[index] == flipped]
            assert sorted(result) == sorted(images.image_key(index) for index in getattr(of_images, name))
