"""Images in shards: the same pixels, split, order, feature maps and pictures as from files, and bad shards by name."""

import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

import generate_fmap_dataset
import train_autoencoder
from scripts import make_dataset
from tests.helpers.deaths import dying
from tests.helpers.runs import FRACTIONS, WEIGHTS
from tests.helpers.scripts import TINY, expect_error, expect_exit, run_main
from utils.core.files import UserError
from utils.data import records
from utils.data.dataset import FeatureMapDataset, ImageDataset
from utils.data.records import read_dataset, verify_files
from utils.data.split import Bounds

BOUNDS = Bounds(0.2, 0.4)
FLAGS = ("--image-size", 32, "--num-workers", 0, "--group-by", r"(\d)\.jpg")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 11 pictures in two sub-folders."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(11):
        path = folder / ("cats", "dogs")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path)
    return folder


def make(photos, out, *flags):
    run_main(make_dataset.main, photos, "--out-dir", out, *FLAGS, *flags)
    return out / "dataset.json"


@pytest.fixture(scope="module")
def both(photos, tmp_path_factory):
    """The data set as files, and as shards of 4 images."""
    folder = tmp_path_factory.mktemp("both")
    return make(photos, folder / "files"), make(photos, folder / "shards", "--shards", 4)


def same_images(first, second):
    keys = [[each.image_key(i) for i in range(len(each))] for each in (first, second)]
    order = [np.argsort(each) for each in keys]
    assert sorted(keys[0]) == sorted(keys[1])
    assert torch.equal(first[order[0]], second[order[1]])
    pairs = [(first.records[a], second.records[b]) for a, b in zip(*(each.tolist() for each in order), strict=True)]
    assert all(a.get(name) == b.get(name) for a, b in pairs for name in ("labels", "group"))
    positions = [each.records.table["position"][own] for each, own in zip((first, second), order, strict=True)]
    assert np.array_equal(*positions)


def checksums(dataset):
    return [record["checksum"] for record in dataset.records]


def test_shards_hold_what_files_do(both):
    files, shards = map(ImageDataset, both)
    same_images(files, shards)
    assert checksums(files) == checksums(shards)
    for side in ("training", "validation", "test"):
        assert np.array_equal(getattr(files.split(BOUNDS), side), getattr(shards.split(BOUNDS), side))
    folder = both[1].parent
    assert len(list((folder / "shards").glob("*.tar"))) == 3
    assert not list(folder.rglob("*.png"))
    verify_files(both[1])


def test_shards_are_read_with_an_index_and_without(both, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for number, shard in enumerate(sorted((both[1].parent / "shards").glob("*.tar"))):
        shutil.copy(shard, folder / f"{number:02d}.tar")
    one = ImageDataset(folder / "01.tar")
    assert len(one) == 4 and one.path(0) == folder / "01.tar" and one.image_key(0).startswith("images/")
    for path in (folder, both[1].parent, folder / "{00..02}.tar"):
        same_images(ImageDataset(both[0]), ImageDataset(path))
        assert len(ImageDataset(path)) == 11  # as it is kept


def test_the_webdataset_package_reads_our_shards_and_we_read_its(both, tmp_path):
    files = ImageDataset(both[0])
    shards = sorted(map(str, (both[1].parent / "shards").glob("*.tar")))
    result = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] + ".png" for sample in result] == [files.image_key(i) for i in range(11)]
    assert [sample["json"]["labels"] for sample in result] == [files.label(i) for i in range(11)]
    for sample, image in zip(result, files[np.arange(11)], strict=True):
        assert torch.equal(torch.from_numpy(np.array(sample["png"])).permute(2, 0, 1).float() / 127.5 - 1, image)
    with webdataset.ShardWriter(str(tmp_path / "%03d.tar"), maxcount=5, verbose=0) as writer:
        for number, sample in enumerate(result):
            writer.write({"__key__": f"a/{number:04d}", "png": sample["png"], "cls": number, "txt": "a caption"})
    theirs = ImageDataset(tmp_path / "{000..002}.tar")
    assert torch.equal(theirs[np.arange(11)], files[np.arange(11)])
    assert [theirs.label(i) for i in range(11)] == [[str(number)] for number in range(11)]


def test_feature_maps_and_a_training_are_those_of_files(both, tmp_path):
    maps = []
    for name, path in zip(("files", "shards"), both, strict=True):
        training = ("--dataset-path", path, *FRACTIONS, "--device", "cpu", "--batch-size", 3, "--max-step", 3)
        training += ("--config-path", TINY / "autoencoder.json", "--num-workers", 2 * (name == "shards"))
        run_main(train_autoencoder.main, *training, "--out-dir", tmp_path / name)
        arguments = ("--dataset-path", path, "--model-path", tmp_path / name / WEIGHTS, "--device", "cpu")
        run_main(generate_fmap_dataset.main, *arguments, "--out-dir", tmp_path / f"{name}_maps")
        maps.append(FeatureMapDataset(tmp_path / f"{name}_maps/dataset.json"))
    assert checksums(maps[0]) == checksums(maps[1])
    assert np.array_equal(maps[0].records.table["position"], maps[1].records.table["position"])
    everything = np.arange(11)
    assert np.array_equal(maps[1].with_image(everything), everything)
    assert torch.equal(maps[0].images(everything, 4), maps[1].images(everything, 4))


def tars(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.tar")}


@pytest.mark.parametrize("name", ["write_shard", "write_dataset", "remove_unnamed"])
def test_making_shards_goes_on_where_it_died_and_keeps_the_data_set_before(name, photos, both, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(make_dataset, name, dying(getattr(make_dataset, name), 1 if name == "write_shard" else 0))
        flags = (*FLAGS, "--shards", 4)
        assert expect_exit(make_dataset.main, (photos, "--out-dir", tmp_path / "out", *flags)) == 130
    make(photos, tmp_path / "out", "--shards", 4)
    whole = tars(both[1].parent)
    assert tars(tmp_path / "out") == whole
    assert read_dataset(tmp_path / "out/dataset.json", ())[0] == read_dataset(both[1], ())[0]
    before = ImageDataset(tmp_path / "out/dataset.json").fingerprint
    make(photos, tmp_path / "out", "--shards", 4)  # nothing changes, not even a time
    assert ImageDataset(tmp_path / "out/dataset.json").fingerprint == before


@pytest.fixture
def copied(both, tmp_path):
    """A copy of the shards with their index."""
    shutil.copytree(both[1].parent, tmp_path / "data")
    return tmp_path / "data/dataset.json"


def train(path, tmp_path):
    command = ("--dataset-path", path, "--config-path", TINY / "autoencoder.json", "--out-dir", tmp_path / "run")
    return (*command, "--device", "cpu", "--batch-size", 3, "--max-step", 4, *FRACTIONS)


def test_a_damaged_a_missing_and_an_unfinished_set_of_shards_is_named(copied, tmp_path, capsys):
    shard, (first, second, third) = tmp_path / "0.tar", sorted((copied.parent / "shards").glob("*.tar"))
    shard.write_bytes(first.read_bytes()[:700])
    assert str(shard) in expect_error(capsys, train_autoencoder.main, train(shard, tmp_path))
    second.unlink()
    assert str(second) in expect_error(capsys, train_autoencoder.main, train(copied, tmp_path))
    with pytest.raises(UserError, match=f"{second}/images/"):
        ImageDataset(copied)[np.array([5])]
    first.rename(first.with_name("0.tar")), third.rename(third.with_name("1.tar"))
    line = expect_error(capsys, train_autoencoder.main, train(copied.parent / "shards/{0..2}.tar", tmp_path))
    assert str(copied.parent / "shards/2.tar") in line


def write_tar(path, files, **fields):
    """A tar of these files, whose members have these fields."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("files", "fields"),
    [
        ({"a.json": b"{}"}, {}),
        ({"a.png": b"", "a.json": b"{"}, {}),
        ({"a.png": b"", "a.json": b'{"labels": 3}'}, {}),
        ({"a.png": b""}, {"type": tarfile.SYMTYPE, "linkname": "b.png"}),
        ({"a.png": b""}, {"type": tarfile.LNKTYPE, "linkname": "b.png"}),
    ],
    ids=["no image", "no JSON", "no labels", "a symbolic link", "a hard link"],
)
def test_a_sample_that_is_none_is_refused(files, fields, tmp_path):
    with pytest.raises(UserError, match=r"0\.tar"):
        ImageDataset(write_tar(tmp_path / "0.tar", files, **fields))


def test_no_cut_and_no_damaged_header_goes_unnoticed(copied, tmp_path):
    """tarfile ends without an error at a header that it cannot read."""
    shard, content = tmp_path / "0.tar", sorted((copied.parent / "shards").glob("*.tar"))[0].read_bytes()
    shard.write_bytes(content)
    number, headers = len(read_dataset(shard, ())[0]), []
    with tarfile.open(shard) as tar:
        headers = [member.offset for member in tar.getmembers()]
        end = tar.offset
    for header in headers:
        for at in (header, header + 100, header + 150, header + 257):  # name, mode, checksum, magic
            shard.write_bytes(content[:at] + bytes([content[at] ^ 0x15]) + content[at + 1 :])
            with pytest.raises(UserError, match=f"{shard}: not a whole shard"):
                read_dataset(shard, ())
    for cut in [*headers, end, *np.random.default_rng(0).integers(0, end, 100).tolist()]:
        shard.write_bytes(content[:cut])
        with pytest.raises(UserError, match=f"{shard}: "):
            read_dataset(shard, ())
    shard.write_bytes(content[:end] + bytes(512))  # a shorter end is whole
    assert len(read_dataset(shard, ())[0]) == number


def test_shards_that_change_places_are_read_again(tmp_path):
    """Of one size and with the timestamps of the others, as copies that a tool has made."""
    paths = []
    for number in (0, 1):
        picture = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(picture, "BMP")
        files = {"x.bmp": picture.getvalue(), "x.cls": f"label{number}".encode()}
        paths.append(write_tar(tmp_path / "shards" / f"{number}.tar", files, mtime=number))
        os.utime(paths[-1], ns=(10**18, 10**18))
    assert [ImageDataset(tmp_path / "shards").label(index) for index in (0, 1)] == [["label0"], ["label1"]]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
    assert [ImageDataset(tmp_path / "shards").label(index) for index in (0, 1)] == [["label1"], ["label0"]]


def test_shards_are_read_once_until_one_has_another_name(copied, monkeypatch):
    shards = copied.parent / "shards"
    assert len(ImageDataset(shards)) == 11
    sorted(shards.glob("*.tar"))[0].rename(shards / "zz.tar")
    assert ImageDataset(shards).path(10) == shards / "zz.tar"
    monkeypatch.setattr(records, "pack", None)  # it is not read again
    assert len(ImageDataset(shards)) == 11
