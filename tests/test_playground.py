"""The playground without a browser: its commands, what is refused, cancelling, one request at a time, and files."""

import dataclasses
import http.client
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from PIL import Image

import generate_images
from models.cascade import Cascade
from models.requests import change_sampling
from playground import worker as worker_module
from playground.jobs import PictureJob, first_map
from playground.page_request import BATCH, Model, PageRequest, label_choices, label_from
from playground.uploads import Upload, inside, read_upload
from playground.worker import Job, Session, Worker
from tests.helpers.jobs import free_port
from tests.helpers.labels import teach_labels
from tests.helpers.scripts import run_main
from utils.core.files import UserError
from utils.runs.chain import ROOT

needs_gradio = pytest.mark.skipif(
    find_spec("gradio") is None, reason="the server is not started: pip install -r requirements-extra.txt"
)


@pytest.fixture(scope="module")
def model(tiny_run):
    return Model(cascade=Cascade.load(tiny_run, device="cpu", batch_size=BATCH), path=tiny_run, device="cpu")


@pytest.fixture
def labelled(tiny_run, tmp_path):
    """A model that knows two labels, of which all of its training images had the second."""
    run = teach_labels(shutil.copytree(tiny_run, tmp_path / "labelled"), ("cat", "night"), [[1, 0, 1]])
    return Model(cascade=Cascade.load(run, device="cpu", batch_size=BATCH), path=run, device="cpu")


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path / "session")


@pytest.fixture
def worker(model, tmp_path):
    worker = Worker(model, tmp_path / "worker")
    yield worker
    worker.close()


@pytest.fixture
def upload(model, tiny_run, tmp_path):
    """A picture in the current folder, as a person's command would find it."""
    source = next((tiny_run / "generated/images").glob("image_*.png"))
    Image.open(source).resize((80, 60)).save(tmp_path / "-my cat's.png")
    return Upload("-my cat's.png", model.cascade.tokens(tmp_path / "-my cat's.png"))


def request_of(model, **more):
    """A request of three pictures, but for what is given."""
    plain = {"kind": "sample", "seed": 3, "number": 3, "sampling": change_sampling(model.cascade.configs)}
    return PageRequest(**plain | more)


def run(model, session, page_request):
    """The pictures of a request, what it shows on the way, and its job."""
    job = PictureJob(page_request, model, session)
    job.run()
    *shown, last = [job.messages.get() for _ in range(job.messages.qsize())]
    if last[0] == "failed":
        raise last[1]
    return last[1], [content for _, content in shown], job


SHARP = {"temperature": (0.5, 0.7, 0.7), "top_p": 0.9, "num_beam": 1, "keep_beam": 1, "beam_width": 1}


@pytest.mark.parametrize(
    "more",
    [
        {"number": 1},
        {"unit": 2, "sampling": SHARP},
        {"kind": "like", "number": 2},
        {"kind": "detail", "from_stage": 2},
        {"kind": "complete", "keep_rows": 1},
        {"kind": "atlas"},
        {"kind": "walk", "ends": (0, 3), "steps": 4},
    ],
    ids=lambda more: more.get("kind", "sample"),
)
def test_the_command_makes_the_same_pictures(more, model, session, upload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sampling = change_sampling(model.cascade.configs, **more.get("sampling", {}))
    pictures, shown, job = run(model, session, request_of(model, **more | {"upload": upload, "sampling": sampling}))
    assert job.done == job.total
    words = shlex.split(pictures[0].command)
    assert words[:4] == ["python", "generate_images.py", "--model", str(model.path)]
    run_main(generate_images.main, *words[2:])
    if more.get("kind") == "walk":
        assert [sheet.number for sheet in shown] == [4] * 4  # all steps, at each level
    for picture in pictures:
        with Image.open(picture.note.rpartition(" ")[2]) as expected, Image.open(picture.path) as image:
            assert getattr(expected, "text", None) == getattr(image, "text", None)
            assert getattr(expected, "n_frames", 1) == getattr(image, "n_frames", 1)
            for frame in range(getattr(image, "n_frames", 1)):
                expected.seek(frame)
                image.seek(frame)
                assert expected.convert("RGB").tobytes() == image.convert("RGB").tobytes()


def test_several_labels_are_chosen_or_drawn_and_shown(labelled, session, tmp_path):
    assert label_choices(labelled.cascade.labels) == [("without labels", ""), ("cat", "0"), ("night", "1")]
    assert [label_from(chosen, labelled.cascade.labels) for chosen in ([], [""], ["1", "0"])] == [None, "", "cat+night"]
    for label, expected in (("cat+night", "cat+night"), ("", "none"), (None, "night, drawn")):
        pictures, _, _ = run(labelled, session, request_of(labelled, label=label))
        assert {picture.settings["Labels"] for picture in pictures} == {expected}
        flag = [] if label is None else ["--label", label]
        assert shlex.split(pictures[0].command)[-len(flag) - 4 : -4] == flag
        run_main(generate_images.main, *shlex.split(pictures[0].command)[2:-1], tmp_path / f"again {label}")
        with (
            Image.open(pictures[2].path) as image,
            Image.open(tmp_path / f"again {label}/images/image_00002.png") as expected,
        ):
            assert json.loads(image.text["label"]) == ("night" if label is None else label)
            assert (image.text, image.tobytes()) == (expected.text, expected.tobytes())
    walk = request_of(labelled, kind="walk", ends=(0, 1), steps=2)
    assert run(labelled, session, walk)[0][0].settings["Labels"] == "night, drawn"


def test_pictures_appear_stage_by_stage(model, session):
    job, sheets = PictureJob(request_of(model), model, session), {}
    keep = lambda message: sheets.update({getattr(message[1], "name", "done"): session.sheet.read_bytes()})  # noqa: E731
    job.messages = SimpleNamespace(put=keep)
    job.run()
    assert list(sheets) == ["their conditions", "after stage 0", "after stage 1", "after stage 2", "done"]
    assert len(set(sheets.values())) == 4
    with Image.open(session.pictures[2].path) as last, Image.open(session.sheet) as sheet:
        assert sheet.size == (64, 64)
        assert sheet.crop((0, 32, 32, 64)).tobytes() == last.tobytes()  # the third of two columns


def pixels(path):
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_a_map_is_drawn_while_nobody_waits_and_kept_for_the_next_start(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run, tmp_path / "run")
    model = Model(cascade=Cascade.load(run_dir, device="cpu", batch_size=BATCH), path=run_dir)
    alone = run(model, Session(tmp_path / "alone"), request_of(model))[0]
    worker = Worker(model, tmp_path / "worker")
    job, session = first_map(model, worker.shared), worker.session("a")
    blurred, count, requests = pixels(worker.shared.map), job.count, []

    def held(number):  # a request comes in the middle of the last stage
        if job.done == 100:
            requests.append(worker.submit(session, PictureJob(request_of(model), model, session)))
        count(number)

    job.count = held
    worker.run_in_background(job)
    assert job.ended.wait(60)
    worker.close()
    assert requests[0].ended.is_set() and requests[0].start > job.start
    assert [pixels(picture.path) for picture in session.pictures] == [pixels(picture.path) for picture in alone]
    (kept,) = (run_dir / ".playground").iterdir()
    assert pixels(kept) == pixels(worker.shared.map) != blurred
    atlas = run(model, Session(tmp_path / "atlas"), request_of(model, kind="atlas", seed=0))[0]
    assert pixels(atlas[0].path) == pixels(kept)
    # The next start shows it at once, unless it is damaged or of other settings.
    again = Session(tmp_path / "again")
    assert first_map(model, again) is None
    assert pixels(again.map) == pixels(kept)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])
    assert first_map(model, again) is not None
    kept.write_bytes(whole)
    model.cascade.configs = [dataclasses.replace(config, temperature=0.5) for config in model.cascade.configs]
    assert first_map(model, again) is not None


# --- What is refused ---


def test_uploads_are_read_with_limits(tmp_path):
    file = tmp_path / "0123"
    Image.new("1", (8000, 5000)).save(file, "PNG")
    for content in (file.read_bytes(), b"no picture", bytes(20_000_001)):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"^cat\.png"):
            read_upload(file, "cat.png", (32, 32))


def test_only_uploaded_files_are_read(tmp_path):
    (tmp_path / "uploads").mkdir()
    (tmp_path / "secret").touch()
    (tmp_path / "uploads/link").symlink_to(tmp_path / "secret")
    (tmp_path / "uploads/a").touch()
    assert inside(str(tmp_path / "uploads/a"), tmp_path / "uploads") == tmp_path / "uploads/a"
    for path in ("/etc/passwd", "../secret", "uploads/link", "uploads/../secret", "uploads"):
        with pytest.raises(UserError, match="was not uploaded here"):
            inside(str(tmp_path / path), tmp_path / "uploads")


# --- One at a time, and cancelling ---


class Gate(Job):
    """A job that waits, token by token, until it is let go."""

    def __init__(self):
        super().__init__(Gate.wait)
        self.started, self.go = threading.Event(), threading.Event()

    def wait(self):
        self.started.set()
        while not self.go.wait(0.001):
            self.count(0)

    def end(self):
        """How the job ends, once it is let go."""
        self.go.set()
        return self.messages.get(timeout=5)[0]


@pytest.fixture
def submit(worker):
    """A function: submit a job for the session of this name; wait until it runs if it is the first."""

    def call(name):
        gate = worker.submit(worker.session(name), Gate())
        assert name != "a" or gate.started.wait(5)
        return gate

    return call


def test_one_request_runs_at_a_time_and_the_next_ones_know_their_place(worker, submit):
    first, second = submit("a"), submit("b")
    assert (worker.jobs_before(second), second.started.is_set()) == (1, False)
    assert worker.run_soon(lambda job: 7) == 7  # between two tokens of the first
    with pytest.raises(UserError, match="no"):
        worker.run_soon(refuse)
    assert [first.end(), second.end()] == ["done", "done"]


def refuse(job):
    raise UserError("no")


def test_a_page_that_goes_cancels_its_request_and_takes_its_files(worker, submit):
    first, second = submit("a"), submit("b")
    folder = worker.session("a").folder
    folder.mkdir(parents=True)
    worker.close_session("a")
    assert first.messages.get(timeout=5)[0] == "cancelled"
    assert second.started.wait(5)  # the next page has its turn
    assert not folder.exists()
    assert len(worker._sessions) == 1
    worker.close_session("b")
    assert second.messages.get(timeout=5)[0] == "cancelled"


def test_a_waiting_request_makes_room_for_a_newer_one_and_too_many_are_refused(worker, submit, monkeypatch):
    monkeypatch.setattr(worker_module, "MAX_WAITING", 1)
    first, waiting = submit("a"), submit("b")
    newer = submit("b")
    assert waiting.messages.get(timeout=5)[0] == "cancelled"
    for name in "ca":
        with pytest.raises(UserError, match="1 requests are waiting already"):
            submit(name)  # the running one of "a" goes on
    assert [first.end(), newer.end()] == ["done", "done"]


def test_generation_stops_at_the_next_token(model, session):
    job = PictureJob(request_of(model), model, session)
    job.between = lambda: job.cancelled.set() if job.done >= 15 else None  # five tokens of each of three pictures
    job.run()
    assert job.done == 15
    kinds = [job.messages.get()[0] for _ in range(job.messages.qsize())]
    assert (kinds[0], kinds[-1]) == ("shown", "cancelled")  # first the conditions


# --- The command ---


def post(port, path, body, kind):
    """Send something past the page; return the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", path, body, {"Content-Type": kind})
    return connection.getresponse().status


def post_file(port, content):
    """Upload a file, past the page; return the status."""
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return post(port, "/gradio_api/upload", head + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b")


GIVEN = {"name": "a.png", "path": "", "bytes": 10**400}


def event_of(number, values=(), details=None):
    """An event that a browser could send."""
    return {"session_hash": "a", "fn_index": number, "data": values, "event_data": details}


# Refuses what would leave this machine, and then runs the script.
LOCAL = """
import socket, sys
connect, resolve = socket.socket.connect, socket.getaddrinfo

def checked(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
        print("CONNECTS TO", address, flush=True)
        raise OSError("no network here")
    return connect(self, address)

def resolved(host, *more, **options):
    if host not in ("127.0.0.1", "localhost", None, b"127.0.0.1"):
        print("LOOKS UP", host, flush=True)
        raise OSError("no network here")
    return resolve(host, *more, **options)

socket.socket.connect, socket.getaddrinfo = checked, resolved
from scripts import playground
from utils.runtime import cli
cli.run(playground.main)
"""


@needs_gradio
def test_the_server_gives_no_file_away_and_ends_at_once(tiny_run, tmp_path, request):
    port, run_dir = free_port(), shutil.copytree(tiny_run, tmp_path / "run")
    command = [sys.executable, "-c", LOCAL, run_dir, "--port", port, "--device", "cpu"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [*map(str, command)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    request.addfinalizer(server.kill)
    assert server.stdout.readline() == f"{run_dir} is at http://127.0.0.1:{port}/; stop with Ctrl-C\n"

    def get(path, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    files = next(tmp_path.glob("playground-*"))
    status, map_png = get(f"/gradio_api/file={files}/files/map.png")
    assert (status, map_png[:4]) == (200, b"\x89PNG")
    names = ("localhost", f"127.0.0.1:{port}", "evil.example", "[", "")
    assert [get("/", Host=name)[0] for name in names] == [200, 200, 404, 404, 404]
    origins = (f"http://127.0.0.1:{port}", "http://evil.example", "null", "http://[")
    assert [get("/", Origin=origin)[0] for origin in origins] == [200, 404, 404, 404]
    config = json.loads(get("/config")[1])
    assert (config["analytics_enabled"], config["footer_links"]) == (False, [])
    secret = files / "uploads" / "of another page"
    secret.parent.mkdir(exist_ok=True)
    secret.touch()
    for path in (
        "/gradio_api/file=/etc/passwd", f"/gradio_api/file={run_dir}/generate.json", "/gradio_api/file=README.md",
        f"/gradio_api/file={files}/files/../../../etc/passwd", f"/gradio_api/file={files}/files/%2e%2e/%2e%2e/x",
        f"/gradio_api/file={secret}".replace(" ", "%20"), "/gradio_api/file=http://127.0.0.1:1/", "/file=/etc/passwd",
        f"/gradio_api/file=http://evil.example/../..{files}/files/map.png",
        f"/gradio_api/file=x/../..{files}/files/map.png", f"/gradio_api/file={files}/files/map.png%00",
        "/assets/%00", "/assets/%252e%252e/x",
        "/gradio_api/file/etc/passwd", "/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/info", "/monitoring",
        "/docs", "/openapi.json", "/gradio_api/openapi.json", "/gradio_api/runs", "/static/../../../etc/passwd",
    ):  # fmt: skip
        assert get(path)[0] == 404, path
    assert post_file(port, bytes(20_000_001)) == 413
    events = {event["targets"][0][1]: event for event in config["dependencies"]}
    event = json.dumps(event_of(events["given"]["id"], details=GIVEN))
    assert post(port, "/gradio_api/queue/join", event, "application/json") == 200
    server.send_signal(signal.SIGTERM)
    out, err = server.communicate(timeout=20)
    assert (server.returncode, out) == (143, "")
    assert "Traceback" not in err
    assert not list(tmp_path.glob("playground-*"))
