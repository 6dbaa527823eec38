import io
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.files import Touch, edited, map_folder
from utils.core.files import UserError
from utils.data.batches import BatchLoader, EpochSampler, chunks, steps_per_epoch
from utils.data.checksums import checksum
from utils.data.dataset import FeatureMapDataset, ImageDataset
from utils.data.dataset_json import write_dataset
from utils.data.images import read_image, save_image
from utils.data.records import read_dataset


def image_folder(folder, count=3):
    """A data set of images of one grey each, the first two by relative and the others by absolute paths."""
    paths = []
    for number in range(count):
        save_image(torch.full((3, 4, 6), number / count), folder / "images" / f"{number}.png")
        paths.append(f"images/{number}.png" if number < 2 else str((folder / "images" / f"{number}.png").resolve()))
    write_dataset(folder / "dataset.json", [{"image_fpath": path, "labels": [Path(path).stem]} for path in paths])
    return folder / "dataset.json"


def test_images_come_as_batches_by_relative_and_absolute_paths(tmp_path, monkeypatch):
    path = image_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for way in (path, Path("data/dataset.json"), "data/dataset.json"):
        dataset = ImageDataset(way)
        batch = dataset[np.array([2, 0])]
        assert (len(dataset), dataset.shape, batch.shape, batch.dtype) == (3, (3, 4, 6), (2, 3, 4, 6), torch.float32)
        assert torch.equal(batch[0], read_image(tmp_path / "data/images/2.png"))
        assert torch.equal(batch[1], read_image(tmp_path / "data/images/0.png"))
        assert [dataset.label(index) for index in range(3)] == [["0"], ["1"], ["2"]]
    batches = [np.array([2, 1]), np.array([0])]
    for workers in (0, 1):
        for batch, expected in zip(BatchLoader(dataset, batches, workers), batches, strict=True):
            assert torch.equal(batch, dataset[expected])


def test_a_data_set_can_be_moved(tmp_path):
    (tmp_path / "maps").mkdir()
    images = ImageDataset, image_folder(tmp_path / "images", count=2)
    for kind, path in (images, (FeatureMapDataset, map_folder(tmp_path / "maps", np.ones((2, 2, 2, 2))))):
        before, there = kind(path)[np.arange(2)], tmp_path / "there" / path.parent.name
        there.parent.mkdir(exist_ok=True)
        shutil.move(path.parent, there)
        moved = kind(there / "dataset.json")
        assert torch.equal(moved[np.arange(2)], before)
        assert moved.path(0).is_relative_to(there)


@pytest.mark.parametrize("damage", ["missing", "garbage", "another size"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_bad_image_is_named(number, damage, tmp_path):
    path = image_folder(tmp_path, count=2)
    bad = tmp_path / "images" / f"{number}.png"
    if damage == "missing":
        bad.unlink()
    elif damage == "garbage":
        bad.write_bytes(b"garbage")
    else:
        save_image(torch.zeros(3, 8, 8), bad)
    with pytest.raises(UserError) as refused:
        ImageDataset(path)[np.arange(2)]
    # Which of two sizes is wrong is not for us to say: the first image decides.
    named = tmp_path / "images" / "1.png" if damage == "another size" else bad
    assert str(refused.value).startswith(f"{named}: ")
    if damage == "another size":
        sizes = ("8×8", "6×4") if number else ("6×4", "8×8")
        advice = f"make all one size with scripts.make_dataset --image-size {'6x4' if number else '8'}"
        assert str(refused.value).endswith(": is {}, the first image is {}; {}".format(*sizes, advice))


def test_images_of_feature_maps_are_theirs_and_mirrored_with_them(tiny_run, faces):
    images, maps = ImageDataset(faces), FeatureMapDataset(tiny_run / "feature_maps" / "dataset.json")
    where = {images.image_key(index): index for index in range(len(images))}
    result = maps.images(np.arange(len(maps)), 4)
    assert maps.flipped.any() and not maps.flipped.all()
    for index in range(len(maps)):
        image = images[[where[maps.image_key(index)]]][0]
        assert torch.equal(result[index], image.flip(2) if maps.flipped[index] else image)
    with pytest.raises(UserError, match=r"\.png: is 32×32, its feature map was made from 64×64; make the maps again"):
        maps.images(np.arange(2), 8)
    assert maps.with_image(np.array([5, 2, 9])).tolist() == [5, 2, 9]
    maps.records = [*maps.records]
    maps.records[2]["image_path"] = "gone.png"
    assert maps.with_image(np.array([5, 2, 9])).tolist() == [5, 9]
    assert len(maps.with_image(np.array([2]))) == 0


def test_records_of_feature_maps_have_the_public_keys_and_relative_paths(tiny_run, faces):
    folder = tiny_run / "feature_maps"
    records, info = read_dataset(folder / "dataset.json", ("fmap_path", "image_path"))
    assert set(info) == {"encoder", "images"}
    for number, record in enumerate(records):
        assert {"fmap_path", "image_path", "labels", "flipped"} <= set(record)
        assert re.fullmatch(rf"{number // 30:04d}/[0-9a-f]{{24}}\.npy", record["fmap_path"])
        assert np.load(folder / record["fmap_path"]).shape == (4, 8, 8)
        assert not Path(record["image_path"]).is_absolute()
    originals = {(folder / record["image_path"]).resolve() for record in records}
    assert originals == {path.resolve() for path in faces.parent.rglob("*.png")}


indices = st.integers(1, 40).map(lambda count: np.arange(count) * 3 + 5)


@given(indices, st.integers(1, 12), st.integers(-(2**40), 2**40), st.integers(1, 4))
def test_each_epoch_is_a_new_permutation_and_its_last_batch_the_rest(indices, batch_size, seed, epochs):
    per_epoch = steps_per_epoch(len(indices), batch_size)
    batches = list(EpochSampler(indices, batch_size, seed, 0, epochs * per_epoch))
    assert len(batches) == epochs * per_epoch
    for epoch in range(epochs):
        parts = batches[epoch * per_epoch :][:per_epoch]
        assert sorted(np.concatenate(parts)) == list(indices)
        assert [len(part) for part in parts[:-1]] == [batch_size] * (per_epoch - 1)
        assert len(parts[-1]) == (len(indices) - 1) % batch_size + 1
    in_order = chunks(indices, batch_size)
    assert list(map(len, in_order)) == list(map(len, batches[:per_epoch]))
    assert list(np.concatenate(in_order)) == list(indices)


@given(indices, st.integers(1, 12), st.integers(0, 2**40), st.integers(1, 30), st.data())
def test_going_on_from_any_step_yields_the_same_batches(indices, batch_size, seed, stop, data):
    start = data.draw(st.integers(0, stop))
    whole = list(EpochSampler(indices, batch_size, seed, 0, stop))
    rest = EpochSampler(indices, batch_size, seed, start, stop)
    assert len(rest) == stop - start
    assert [list(batch) for batch in rest] == [list(batch) for batch in whole[start:]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_feature_maps_come_as_float32(dtype, tmp_path):
    maps = np.arange(2 * 3 * 4 * 5, dtype=dtype).reshape(2, 3, 4, 5)
    dataset = FeatureMapDataset(map_folder(tmp_path, maps))
    assert dataset.shape == (3, 4, 5)
    assert dataset.origin == {}
    batch = dataset[np.array([1, 0])]
    assert batch.dtype == torch.float32
    assert torch.equal(batch, torch.from_numpy(maps[[1, 0]].astype(np.float32)))


def test_the_labels_of_records_become_sets(tmp_path):
    path = map_folder(tmp_path, np.zeros((4, 1, 2, 2), np.float32))
    labels = [["night", "cat"], ["c+", "night", "c+"], [], ["other", "cat", "night"]]
    with edited(path) as content:
        for record, own in zip(content["_default"].values(), labels, strict=True):
            record["labels"] = own
    maps = FeatureMapDataset(path)
    assert [maps.label(index) for index in range(4)] == labels
    names = maps.label_names(np.arange(3))
    assert names == ("c+", "cat", "night")
    assert maps.label_sets(names).tolist() == [[1, 2], [0, 2], [3, 3], [1, 2]]


def saved(array, save=np.save, **options):
    buffer = io.BytesIO()
    save(buffer, array, **options)
    return buffer.getvalue()


ZEROS = np.zeros((2, 2, 2), np.float32)
GOOD_MAP, ZIP = saved(ZEROS), saved(ZEROS, np.savez)
BAD_MAPS = {
    "missing": None, "empty": b"", "garbage": b"garbage, and more of it", "an image": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "cut short": GOOD_MAP[:-3], "cut in the header": GOOD_MAP[:40], "a zip of arrays": ZIP, "a zip cut short": ZIP[:60],
    "another shape": saved(np.zeros((2, 2, 3), np.float32)), "two axes": saved(ZEROS[0]),
    "whole numbers": saved(ZEROS.astype(np.int64)), "complex numbers": saved(ZEROS.astype(np.complex64)),
    "strings": saved(np.full((2, 2, 2), "a")), "not a number": saved(ZEROS + np.nan),
    "infinity": saved(np.array([[[0, 0], [0, 0]], [[0, -np.inf], [0, 0]]], np.float16)),
}  # fmt: skip


@pytest.mark.parametrize("damage", BAD_MAPS)
def test_a_bad_feature_map_is_named(damage, tmp_path):
    for number in range(2):
        path = map_folder(tmp_path, np.zeros((2, 2, 2, 2), np.float32))
        bad = tmp_path / f"{number}.npy"
        bad.unlink() if BAD_MAPS[damage] is None else bad.write_bytes(BAD_MAPS[damage])
        with pytest.raises(UserError) as refused:
            FeatureMapDataset(path)[np.arange(2)]
        named = tmp_path / "1.npy" if damage == "another shape" else bad
        assert str(refused.value).startswith(f"{named}: ")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_map_that_has_changed_since_it_was_written_is_named(workers, tmp_path):
    path = map_folder(tmp_path, np.arange(16, dtype=np.float32).reshape(2, 2, 2, 2))
    records, _ = read_dataset(path, ())
    for number, record in enumerate(records):
        record["checksum"] = checksum((tmp_path / f"{number}.npy").read_bytes())
    write_dataset(path, records)
    dataset = FeatureMapDataset(path)
    whole = next(iter(BatchLoader(dataset, [np.arange(2)], workers)))
    assert torch.equal(whole, torch.arange(16.0).view(2, 2, 2, 2))
    content = bytearray((tmp_path / "1.npy").read_bytes())
    content[-3] ^= 1  # another number, and a good one
    (tmp_path / "1.npy").write_bytes(content)
    assert torch.equal(dataset[np.array([0])], whole[:1])
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / '1.npy'}: has changed since it was written")):
        list(BatchLoader(dataset, [np.arange(2)], workers))
    write_dataset(path, [{key: value for key, value in record.items() if key != "checksum"} for record in records])
    assert torch.isfinite(FeatureMapDataset(path)[np.arange(2)]).all()  # of an older data set nobody can tell


def test_an_autoencoder_that_made_the_maps_is_known_from_then_on(tmp_path):
    path = map_folder(tmp_path, np.zeros((1, 2, 2, 2), np.float32))
    for known in ({"encoder": "e"}, {}):
        write_dataset(path, read_dataset(path, ())[0], known)
        dataset = FeatureMapDataset(path)
        for what in known:
            with pytest.raises(UserError, match=re.escape(f"{path}: was made with another {what} (e, now other)")):
                dataset.check_origin({"encoder": "other"})
            assert dataset.origin == known
        dataset.check_origin({"encoder": "e"})
        assert dataset.origin == {"encoder": "e"}


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    path = map_folder(tmp_path, np.zeros((1, 2, 2, 2), np.float32))
    touch = Touch(tmp_path / "touched")
    for content in (saved(np.full((1, 1, 1), touch), allow_pickle=True), pickle.dumps(touch)):
        (tmp_path / "0.npy").write_bytes(content)
        with pytest.raises(UserError, match=re.escape(f"{tmp_path / '0.npy'}: ")):
            FeatureMapDataset(path)
    assert not (tmp_path / "touched").exists()
    pickle.loads(content)
    assert (tmp_path / "touched").exists()  # so the file would have done it
