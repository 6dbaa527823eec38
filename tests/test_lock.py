"""One writer for each folder: the second is refused and leaves no trace, and a dead one is in nobody's way."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

import generate_fmap_dataset
import generate_images
import prune_codebook
import train_autoencoder
import train_codebook
import train_quantized_transformer
from scripts import demo_data, evaluate, make_dataset
from tests.helpers.scripts import expect_error
from utils.core.files import UserError, replace_file
from utils.core.lock import LOCK_FILE, lock
from utils.runs.chain import ROOT

FORK = multiprocessing.get_context("fork")
HOLD = "import sys; from pathlib import Path; from utils.core.lock import lock\nwith lock(Path(sys.argv[1])): {}"


@contextmanager
def holder(folder, then="print('held', flush=True); sys.stdin.read()"):
    """A process that holds the lock of a folder and does something."""
    command = [sys.executable, "-c", HOLD.format(then), folder]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def needing(*flags):
    """Flags of files that do not exist."""
    return [word for flag in flags for word in (flag, "no-such-file")]


OUT = ["--out-dir", "out"]
CODEBOOKS = ("--lr-codebook-path", "--hr-codebook-path")
WRITERS = {
    train_autoencoder: [*needing("--dataset-path", "--config-path"), *OUT],
    generate_fmap_dataset: [*needing("--dataset-path", "--model-path"), *OUT],
    train_codebook: [*needing("--dataset-path", "--decoder-path", "--config-path"), *OUT],
    prune_codebook: [*needing("--dataset-path", "--codebook-path"), "--keep", 4, *OUT],
    train_quantized_transformer: [*needing("--dataset-path", "--decoder-path", "--config-path", *CODEBOOKS), *OUT],
    generate_images: [*needing("--decoder-path", "--config-path"), *OUT],
    make_dataset: ["photos", *OUT],
    demo_data: ["avatars", *OUT],
    evaluate: ["run", *OUT],
}


@pytest.mark.parametrize("module", WRITERS, ids=lambda module: module.__name__)
def test_a_second_writer_is_refused(module, tmp_path, monkeypatch, capsys):
    """Before it reads anything: none of the files that are named here exists."""
    if module is evaluate:
        for package in evaluate.PACKAGES:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    for path in ("photos", "run"):
        (tmp_path / path).mkdir()
    (tmp_path / "photos/a.png").touch()
    with lock(tmp_path / "out"):
        before = names(tmp_path)
        line = expect_error(capsys, module.main, WRITERS[module])
        assert line == "error: out: another process is writing to it; wait until that has ended, or give another folder"
        assert names(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_a_refused_run_leaves_nothing_but_a_lock_file_where_a_folder_was(tmp_path, capsys):
    mine = {"a", "out", "out/mine"}
    for out, left in (("a/b/c", set()), ("a/b/c", mine), ("out", {*mine, f"out/{LOCK_FILE}"})):
        expect_error(capsys, train_autoencoder.main, [*WRITERS[train_autoencoder], "--out-dir", tmp_path / out])
        assert names(tmp_path) == left
        for folder in ("a", "out"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "out/mine").write_text("mine")
    assert ((tmp_path / "out/mine").read_text(), (tmp_path / "out" / LOCK_FILE).read_bytes()) == ("mine", b"")


def test_the_file_stays_and_the_lock_is_free(tmp_path):
    for _ in range(2):
        with lock(tmp_path / "out"):
            (tmp_path / "out/file").touch()
            number = (tmp_path / "out" / LOCK_FILE).stat().st_ino
            with pytest.raises(UserError, match="another process"), lock(tmp_path / "out"):
                pass
    assert (tmp_path / "out" / LOCK_FILE).stat().st_ino == number
    assert names(tmp_path / "out") == {"file", LOCK_FILE}


def test_a_child_that_outlives_its_parent_keeps_no_lock(tmp_path):
    then = """
    import os, time
    begun, begin = os.pipe()
    child = os.fork()
    if not child:
        os.write(begin, b'.')
        os.close(1)
        time.sleep(60)
    os.read(begun, 1)
    print('held', flush=True); print(child, flush=True); sys.stdin.read()"""
    with holder(tmp_path / "out", then) as process:
        child = int(process.stdout.readline())
        try:
            with pytest.raises(UserError, match="another process"), lock(tmp_path / "out"):
                pass
            process.kill()
            process.wait()
            os.kill(child, 0)  # it lives
            with lock(tmp_path / "out"):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_lock_of_a_killed_process_is_free_and_what_it_left_half_written_goes(tmp_path):
    with holder(tmp_path / "out") as process:
        process.kill()
        process.wait()
    half = [tmp_path / f"out/{name}" for name in (".a.0123456789abcdef.tmp.png", "inner/.b.0123456789abcdef.tmp")]
    others = [tmp_path / f"out/{name}" for name in ("a.png", ".b", "inner/.c.tmp", ".d.0123.tmp.png", "e.tmp.png")]
    for path in (*half, *others):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert (tmp_path / "out" / LOCK_FILE).exists()
    with lock(tmp_path / "out"):
        assert [path for path in half if path.exists()] == []
        assert [path for path in others if not path.exists()] == []


def test_what_another_writes_in_a_folder_inside_stays(tmp_path):
    with lock(tmp_path / "out/inner"), replace_file(tmp_path / "out/inner/deep/file.png") as temporary:
        temporary.touch()
        with lock(tmp_path / "out"):
            assert temporary.exists()


def test_a_process_can_wait_for_another(tmp_path):
    with holder(tmp_path / "out") as process:
        begin = time.monotonic()
        threading.Timer(0.3, process.stdin.close).start()
        with lock(tmp_path / "out", wait=True):
            assert time.monotonic() - begin > 0.2
            assert process.poll() is not None or process.wait(timeout=10) == 0
            with pytest.raises(UserError, match="another process"), lock(tmp_path / "out"):
                pass


def test_many_that_wait_write_one_after_the_other(tmp_path):
    """Each reads a number and writes the next: none would be lost only if no two are inside at once."""

    def count():
        for _ in range(20):
            with lock(tmp_path, wait=True):
                path.write_text(str(int(path.read_text()) + 1))

    path = tmp_path / "number"
    path.write_text("0")
    processes = [FORK.Process(target=count) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert path.read_text() == "60"
    assert names(tmp_path) == {"number", LOCK_FILE}
