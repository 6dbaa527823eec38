"""Step 2: a run that died goes on, a finished one is only verified, and another is refused; equal bytes in the end."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import generate_fmap_dataset
from models.autoencoder import KIND, Autoencoder, AutoencoderConfig
from tests.helpers.deaths import dying, results
from tests.helpers.files import contents
from tests.helpers.scripts import TINY, expect_error, expect_exit, run_main
from utils.core.config import load_config
from utils.core.files import UserError
from utils.data.dataset import FeatureMapDataset, ImageDataset
from utils.data.dataset_json import write_dataset
from utils.data.feature_maps import MapFiles, PackedMaps
from utils.data.records import verify_files
from utils.data.split import Bounds
from utils.runs.checkpoint import save_checkpoint
from utils.runs.folders import OutputFolder
from utils.runs.manifest import read_attempts

NUM, SIZE = 7, 3  # images, and in a batch


def save_model(path, seed, **more):
    torch.manual_seed(seed)
    config = load_config(TINY / "autoencoder.json", AutoencoderConfig)
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(path, KIND, config, Autoencoder(config).state_dict(), {}, **{"flip": True} | more)
    return path


def draw(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def dying_at(batch, patch):
    """Let a process die before it writes a batch, in both layouts."""
    for layout in (MapFiles, PackedMaps):
        patch.setattr(layout, "write", dying(layout.write, batch))


@pytest.fixture
def source(tmp_path):
    """A folder with images, their dataset.json and two autoencoders."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(NUM):
        draw(folder / f"{number}.png", number)
    write_dataset(folder / "dataset.json", [{"image_fpath": f"{number}.png", "labels": []} for number in range(NUM)])
    for seed in (0, 1):
        save_model(folder / f"{seed}.pt", seed)
    return folder


def slide(side, by):
    """Where the rows or columns of a moved image come from; the edge is repeated."""
    return (torch.arange(side) + by).clamp(0, side - 1)


both = pytest.mark.parametrize("layout", [(), ("--packed",)], ids=["a file a map", "packed"], indirect=True)


@pytest.fixture
def layout(request):
    return getattr(request, "param", ())


@pytest.fixture
def arguments(source, tmp_path, layout):
    """A function: the arguments with changes, `out` beside `source` so that relative paths are equal."""

    def make(*flags, out="out", model=0):
        common = ("--dataset-path", source / "dataset.json", "--model-path", source / f"{model}.pt")
        sizes = ("--batch-size", SIZE, "--num-files-folder", 4, "--flip", "--device", "cpu")
        return *common, *sizes, "--out-dir", tmp_path / out, *layout, *flags

    return make


@pytest.fixture
def make(arguments, tmp_path):
    """A function: run with these changes; returns the folder."""

    def call(*flags, out="out", **changes):
        run_main(generate_fmap_dataset.main, *arguments(*flags, out=out, **changes))
        return tmp_path / out

    return call


def test_rows_of_arrays_hold_the_maps_of_the_files(make):
    files, rows = (FeatureMapDataset(make(*flags, out=out) / "dataset.json") for flags, out in (
        ((), "files"), (("--packed",), "rows")))  # fmt: skip
    everything = np.arange(2 * NUM)
    assert torch.equal(rows[everything], files[everything])
    assert rows.flipped.tolist() == files.flipped.tolist()
    assert [rows.label(index) for index in everything] == [files.label(index) for index in everything]
    assert rows.rows.tolist() == [0, 1, 2, 3] * 3 + [0, 1]


def test_a_row_that_has_changed_is_named(make):
    dataset = make("--packed") / "dataset.json"
    path = FeatureMapDataset(dataset).path(5)
    array = np.load(path, mmap_mode="r+")
    array[1, 0, 0, 0] += 1
    array.flush()
    changed = FeatureMapDataset(dataset)
    assert changed[np.array([4])].shape == (1, *array.shape[1:])
    with pytest.raises(UserError, match=f"{path.name}: has changed since it was written"):
        changed[np.array([5])]
    with pytest.raises(UserError, match=f"{path.name}: is not the file that was written"):
        verify_files(dataset)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name}: is not the file that was written"):
        verify_files(dataset)


@both
def test_half_precision_rounds_the_maps_and_needs_half_the_disk(make, arguments, capsys):
    single, half = (FeatureMapDataset(make(*flags, out=out) / "dataset.json") for flags, out in (
        ((), "single"), (("--dtype", "float16"), "half")))  # fmt: skip
    everything = np.arange(len(single))
    assert torch.equal(half[everything], single[everything].half().float())
    assert not torch.equal(half[everything], single[everything])
    sizes = [sum(path.stat().st_size for path in set(map(data.path, everything))) for data in (single, half)]
    assert sizes[0] - sizes[1] == 2 * single[everything].numel()
    error = expect_error(capsys, generate_fmap_dataset.main, arguments(out="half"))
    assert "was made with another --dtype (float16, now float32)" in error


@both
def test_a_data_set_holds_checksums_and_both_sides(make, layout):
    folder = make()
    verify_files(folder / "dataset.json")
    dataset = FeatureMapDataset(folder / "dataset.json")
    assert len(dataset) == 2 * NUM
    assert dataset.flipped.tolist()[: 2 * SIZE] == [False] * SIZE + [True] * SIZE
    number = 4 if layout else 2 * NUM  # 14 maps in folders of 4
    assert len({path for path in results(folder) if path.endswith(".npy")}) == number
    assert set(results(folder)) == {"dataset.json", *dataset.records.files[1]}


@both
def test_moved_maps_are_of_moved_images_and_training_maps_alone_where_asked_for(make, source):
    dataset = FeatureMapDataset(make("--num-moved", 2, out="moved") / "dataset.json")
    model, images = Autoencoder.load(source / "0.pt").eval(), ImageDataset(source / "dataset.json")
    moved, keys = dataset.records.table["moved"], [dataset.image_key(index) for index in range(len(dataset))]
    assert len(dataset) == 4 * NUM and moved.sum() == 2 * NUM
    places = {images.image_key(index): index for index in range(NUM)}
    shifts = set()
    for index in np.flatnonzero(moved):
        image = images[[places[keys[index]]]][0]
        image = image.flip(-1) if dataset.flipped[index] else image
        rows, columns = ([slide(side, by) for by in range(-3, 4)] for side in image.shape[1:])
        every = torch.stack([image[:, row][:, :, column] for row in rows for column in columns])
        errors = (model.encode(every) - dataset[[index]]).abs().amax((1, 2, 3))
        assert errors.min() < 1e-5
        shifts.add(int(errors.argmin()))
    assert len(shifts) > NUM and dataset.flipped[moved].sum() == NUM
    bounds = Bounds(0.3, 0.5)
    plain, every = dataset.split(bounds), dataset.split(bounds, with_moved=True)
    assert not moved[np.concatenate([plain.training, every.validation, every.test])].any()
    assert len(every.training) == 2 * len(plain.training) > 0 and set(plain.training) < set(every.training)
    assert {keys[index] for index in every.training} == {keys[index] for index in plain.training}


@both
@pytest.mark.parametrize("at", range(5))
def test_a_run_that_dies_at_any_batch_goes_on_to_the_same_bytes(at, make, arguments, read, monkeypatch, tmp_path):
    """The last two deaths are after all maps, before and after the index."""
    whole = results(make(out="whole"))
    name = {3: "write_dataset", 4: "remove_unnamed"}.get(at)
    with monkeypatch.context() as patch:
        if name is None:
            dying_at(at, patch)
        else:
            patch.setattr(generate_fmap_dataset, name, dying(getattr(generate_fmap_dataset, name), 0))
        assert expect_exit(generate_fmap_dataset.main, arguments()) == 130
    read.clear()
    assert results(make()) == whole
    assert read == list(range(NUM))[at * SIZE :]
    assert [attempt.goes_on for attempt in read_attempts(OutputFolder(tmp_path / "out"))] == [False, at > 0]


@both
def test_a_batch_with_a_map_that_is_damaged_is_made_again(make, arguments, read, monkeypatch, tmp_path):
    whole = results(make(out="whole"))
    with monkeypatch.context() as patch:
        dying_at(2, patch)
        expect_exit(generate_fmap_dataset.main, arguments())
    first = sorted((tmp_path / "out").rglob("*.npy"))[0]
    first.write_bytes(first.read_bytes()[:-1])
    journal = tmp_path / "out/unfinished.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"6": {"fi')  # a line cut short
    read.clear()
    assert results(make()) == whole
    assert len(read) == SIZE + NUM % SIZE
    assert read[-1] == NUM - 1


@both
def test_a_repeat_only_verifies_and_mends_and_loses_nothing_if_it_dies(make, arguments, read, monkeypatch):
    folder = make()
    before, times = results(folder), {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}
    read.clear()
    with monkeypatch.context() as patch:
        patch.setattr(generate_fmap_dataset, "write_dataset", dying(None, 0))
        expect_exit(generate_fmap_dataset.main, arguments())
    make()
    assert read == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")} == times
    last = FeatureMapDataset(folder / "dataset.json").path(2 * NUM - 1)
    last.unlink()
    make()
    assert read == [NUM - 1]
    assert results(folder) == before


def test_mirror_images_are_refused_for_an_autoencoder_that_has_not_learned_from_them(arguments, source, capsys):
    save_model(source / "0.pt", 0, flip=False)
    argv = arguments()
    line = expect_error(capsys, generate_fmap_dataset.main, argv)
    assert line == (
        f"error: --flip: {source / '0.pt'} has not learned from mirror images; train it with --flip, or leave --flip "
        "out here"
    )
    run_main(generate_fmap_dataset.main, *(word for word in argv if word != "--flip"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": 1}, "encoder"),
        ({"flags": ["--num-files-folder", 5]}, "--num-files-folder (4, now 5)"),
        ({"flags": ["--batch-size", 2]}, "--batch-size"),
    ],
)
def test_other_inputs_or_arguments_are_refused(changes, named, make, arguments, capsys):
    folder, flags = make(), changes.get("flags", [])
    before = contents(folder)
    line = expect_error(capsys, generate_fmap_dataset.main, arguments(*flags, model=changes.get("model", 0)))
    assert named in line
    assert "--overwrite" in line
    assert contents(folder) == before


def test_other_images_are_refused_and_copies_of_the_same_verified(make, arguments, source, capsys):
    folder = make()
    before = results(folder)
    for path in source.glob("*.png"):
        shutil.copyfile(path, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    assert "--verify" in expect_error(capsys, generate_fmap_dataset.main, arguments())
    assert "holds no checksums" in expect_error(capsys, generate_fmap_dataset.main, arguments("--verify"))
    index = source / "dataset.json"
    index.write_text(index.read_text().replace('"labels": [', '"labels": ["new", ', 1).replace(", ]", "]"))
    assert "another data set" in expect_error(capsys, generate_fmap_dataset.main, arguments("--verify"))
    assert results(folder) == before


def test_an_old_set_stays_whole_until_the_new_one_replaces_it(make, arguments, source, read, monkeypatch):
    """Of one image other pixels, under the same name."""
    folder = make()
    old = FeatureMapDataset(folder / "dataset.json")
    before = old[np.arange(len(old))]
    draw(source / "0.png", 100)
    whole = results(make(out="whole"))
    with monkeypatch.context() as patch:
        patch.setattr(generate_fmap_dataset, "write_dataset", dying(None, 0))
        expect_exit(generate_fmap_dataset.main, arguments("--overwrite"))
    verify_files(folder / "dataset.json")
    assert torch.equal(FeatureMapDataset(folder / "dataset.json")[np.arange(2 * NUM)], before)
    read.clear()
    make("--overwrite")  # the set that is there is of the old images, and the journal of the new ones
    assert read == []
    assert results(folder) == whole
    make("--overwrite", model=1)
    assert read == list(range(NUM))
    assert not set(results(folder)) & set(whole) - {"dataset.json"}


def test_packed_maps_in_many_folders_keep_few_files_open(tmp_path):
    """Each array that is mapped keeps one; a million maps in folders of 1,000 would have a thousand."""
    folder = tmp_path / "maps"
    maps = PackedMaps(folder, 1, 300, (1, 2, 2), "float32", "key")
    maps.make()
    values = np.arange(1200, dtype=np.float32).reshape(300, 1, 2, 2)
    records = [
        {"fmap_path": name, "row": row, "checksum": checksum, "image_path": f"{number}.png"}
        for number, (name, row, checksum) in enumerate(maps.write(values, 0)["places"])
    ]
    write_dataset(folder / "dataset.json", records)
    dataset, descriptors = FeatureMapDataset(folder / "dataset.json"), Path("/proc/self/fd")
    for _ in range(2):  # the second time nothing is compared any more
        assert torch.equal(dataset[np.arange(300)], torch.from_numpy(values))
        links = [path for path in descriptors.iterdir() if path.is_symlink()] if descriptors.exists() else []
        assert sum(path.readlink().is_relative_to(folder) for path in links) <= 256
