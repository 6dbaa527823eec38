"""The playground in a browser: used as a person would, with a mouse, by keyboard, and on a phone."""

import base64
import io
import re
import shutil
import threading
import zipfile
from collections import Counter

import pytest
from PIL import Image

from models.cascade import Cascade
from playground.browser import CHROMIUM, SAMPLES, WALK
from playground.jobs import MapJob
from playground.page_request import BATCH, Model
from playground.server import serve
from playground.worker import Cancelled, Job
from tests.helpers.browser import pages
from tests.helpers.jobs import free_port

if CHROMIUM is None:
    pytest.skip("the playground is not used: there is no chromium; install it", allow_module_level=True)
pytest.importorskip("playwright.sync_api", reason="the playground is not used: pip install -r requirements-dev.txt")
pytest.importorskip("gradio", reason="the playground is not used: pip install -r requirements-extra.txt")

COUNT = Job.count
WINDOW = {"width": 1366, "height": 768}  # of a small laptop
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


class Brake:
    """Holds the request that runs once it has written so many tokens."""

    def __init__(self):
        self.at, self.changed = float("inf"), threading.Condition()

    def move(self, at):
        with self.changed:
            self.at = at
            self.changed.notify_all()

    def count(self, job, number):
        COUNT(job, number)
        with self.changed:
            while job.total > 1 and job.done >= self.at:
                if job.cancelled.is_set():
                    raise Cancelled
                self.changed.wait(0.01)


@pytest.fixture(scope="module")
def brake():
    brake = Brake()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "count", lambda job, number: brake.count(job, number))
        yield brake


@pytest.fixture(scope="module")
def server(tiny_run, brake, tmp_path_factory):
    """The address of a running server, and its worker, which has drawn the map."""
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("page") / "run")
    cascade = Cascade.load(run, device="cpu", batch_size=BATCH)
    with serve(Model(cascade=cascade, path=run), "127.0.0.1", free_port()) as (address, public, worker):
        assert public is None
        assert worker.background.ended.wait(60)
        yield address, worker


@pytest.fixture
def open_page(browser, server, brake):
    """A function: the page in a context of its own. At the end nothing may have gone wrong, or elsewhere."""
    brake.move(float("inf"))
    with pages(browser, server[0], "#map .tile", (server[0], "data:", "blob:")) as open_page:
        yield open_page
        brake.move(float("inf"))


def wait_for_pictures(page, number, chosen):
    """Wait until a request is done, and its pictures can be chosen."""
    page.wait_for_function(
        "([number, chosen]) => document.querySelectorAll('#live .tile:enabled').length === number"
        " && document.querySelector('#details').innerText.includes(chosen)",
        arg=[number, chosen],
    )


def says(page, selector, text):
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector).innerText.includes(text)", arg=[selector, text]
    )


def background(page, selector="#live .tile", name="backgroundImage"):
    return page.eval_on_selector(selector, f"element => getComputedStyle(element).{name}")


SHEET = "document.querySelector('#map .map').style.getPropertyValue('--sheet')"


def kept(page):
    return page.eval_on_selector_all("#gallery img", "images => images.map(image => image.getAttribute('src'))")


def all_in_view(page, *selectors):
    """Whether all of these lie in the window as it is scrolled."""
    boxes = [page.locator(selector).bounding_box() for selector in selectors]
    height = page.viewport_size["height"]
    return all(box["y"] >= 0 and box["y"] + box["height"] <= height for box in boxes)


def test_a_click_on_a_unit_makes_pictures_stage_by_stage(open_page, server, brake):
    page, cascade = open_page(), server[1].model.cascade
    first_map = page.evaluate(SHEET)
    first, second, _ = (9 * stage.config.fine.length for stage in cascade.stages)
    seen = []
    brake.move(1)
    page.click("#map .tile >> nth=2")
    for name, after in (
        ("their conditions", first + 9),
        ("after stage 0", first + second + 9),
        ("after stage 1", float("inf")),
    ):
        page.wait_for_selector(f"#live [aria-label='Pictures, {name}']")
        seen.append(background(page))
        if name == "after stage 0":
            page.wait_for_function("document.querySelector('#status progress')?.value > 0")
            assert "Writing stage 1: " in page.inner_text("#status")
        assert page.locator("#live .tile:disabled").count() == 9
        brake.move(after)
    wait_for_pictures(page, 9, "tile 2")
    assert len({*seen, background(page)}) == 4
    assert page.get_attribute("#map .tile >> nth=2", "aria-pressed") == "true"
    assert page.input_value("#command textarea").startswith("python generate_images.py --model ")
    # By keyboard: one stop for the whole map, and arrows in it.
    page.fill("#number input[type=number]", "1")
    page.focus("#map .tile[tabindex='0']")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    tile = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert tile.startswith("tile ")
    page.keyboard.press("Enter")
    wait_for_pictures(page, 1, tile)
    assert "--num-images 1 --batch-size 2 --condition-index " in page.input_value("#command textarea")
    assert page.inner_text("#chosen") == f"Chosen: {tile}."
    page.click("#any-unit")
    page.wait_for_selector("#map:not(:has([aria-pressed='true']))")
    page.click("#gallery .kept >> nth=9")
    says(page, "#details", "number 8, of 0 to 8")
    assert page.get_attribute("#gallery .kept >> nth=9", "aria-pressed") == "true"
    brake.move(1)
    page.click("#atlas")
    page.wait_for_selector("#status progress")
    page.click("#stop")
    says(page, "#status", "Stopped.")
    brake.move(float("inf"))
    page.click("#atlas")
    says(page, "#details", "Asked for\na sample of each tile")
    page.wait_for_function(f"{SHEET} !== {first_map!r}")


def test_the_map_can_be_clicked_once_the_page_was_opened(open_page, monkeypatch):
    """A click before that answer has come would be undone by it."""
    from playground.layout import Layout  # imports Gradio

    gallery, may_answer = Layout.gallery_value, threading.Event()
    monkeypatch.setattr(Layout, "gallery_value", lambda *args: may_answer.wait(20) and gallery(*args))
    page = open_page()
    assert page.locator("#map .map[inert]").count() == 1
    may_answer.set()
    page.wait_for_selector("#map .map:not([inert])")


def drop(page, name, content):
    """Drop a file on its place, as a browser says it."""
    page.evaluate(
        """([name, content]) => {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name));
            for (const type of ['dragenter', 'dragover', 'drop'])
                document.querySelector('.drop').dispatchEvent(
                    new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        [name, base64.b64encode(content).decode()],
    )


def test_a_picture_is_completed_and_all_is_saved(open_page, tmp_path):
    page = open_page()
    page.fill("#number input[type=number]", "2")
    for name in ("sampling", "expert", "picture"):
        page.click(f"#{name} .label-wrap >> nth=0")
    page.click("#like")
    says(page, "#status", "there is no picture yet: drop one in first")
    Image.new("RGB", (64, 48), (200, 30, 60)).save(tmp_path / "red.png")
    page.set_input_files("#drop input", tmp_path / "red.png")
    says(page, "#drop", "red.png is 64×48; its central square was scaled to 32×32")
    drop(page, "<b>no.png", b"no picture")
    says(page, "#drop", "<b>no.png: not an image in a known format")
    drop(page, "blue.png", (tmp_path / "red.png").read_bytes())
    says(page, "#drop", "blue.png is 64×48")
    assert page.get_attribute("#drop img", "alt") == "blue.png, as the model gets it"
    page.click("#complete")
    wait_for_pictures(page, 2, "blue.png, completed below row")
    assert "--init-image blue.png --keep-rows 1" in page.input_value("#command textarea")
    page.click("#detail")
    wait_for_pictures(page, 2, "blue.png, new detail from stage 1")
    with page.expect_download() as saved:
        page.click("#save-picture")
    seed = page.input_value("#seed input")
    assert saved.value.suggested_filename.endswith(f"_seed{seed}_image_00000.png")
    with Image.open(saved.value.path()) as image:
        assert (image.size, image.text["from_stage"], image.text["seed"]) == ((32, 32), "1", seed)
    # Settings that do not go together are said; the recipe's come back.
    page.fill("#keep_beam-0 input", "9")
    page.click("#go")
    says(page, "#status", "stage 0: Beams kept is 9, expected at most Beams")
    page.click("#recipe")
    page.wait_for_function("document.querySelector('#keep_beam-0 input').value !== '9'")
    # A walk leads to a neighbour, or between two tiles that are clicked.
    page.click(WALK)
    page.fill("#steps input[type=number]", "4")
    ends = page.eval_on_selector_all(
        "#map [data-name]:not([data-name=''])", "tiles => tiles.map(tile => tile.ariaLabel)"
    )
    assert sorted(end.split(", ")[1] for end in ends) == ["end of the walk", "start of the walk"]
    page.click("#map .tile >> nth=3")
    says(page, "#way", "From tile 3. Now click the tile where the walk ends.")
    page.click("#walk-go")
    says(page, "#status", "click the two tiles of the map between which the walk leads")
    page.click("#map .tile >> nth=0")
    wait_for_pictures(page, 4, "a walk from tile 3 to 0 in 4 steps")
    assert "--condition-walk 3 0 --steps 4 --animate" in page.input_value("#command textarea")
    assert page.get_attribute("#map .tile >> nth=0", "data-name") == "end"
    page.click(SAMPLES)
    page.wait_for_selector("#walk-go", state="hidden")
    assert page.locator("#map [data-name]:not([data-name=''])").count() == 0
    with page.expect_download() as saved:
        page.click("#zip")
    with zipfile.ZipFile(saved.value.path()) as archive:
        assert Counter(name.rpartition(".")[2] for name in archive.namelist()) == {
            "webp": 1, "png": 4, "txt": 1, "json": 1,
        }  # fmt: skip
        assert archive.read("commands.txt").decode().count("python generate_images.py") == 5
        assert Image.open(io.BytesIO(archive.read(archive.namelist()[0]))).format == "WEBP"


def test_two_pages_have_their_own_pictures_and_one_that_goes_makes_way(open_page, server, brake):
    one, two = open_page(), open_page()
    for page, seed in ((one, "1"), (two, "2")):
        page.fill("#number input[type=number]", "2")
        page.fill("#seed input", seed)
        page.wait_for_selector("#keep-seed input:checked")  # a seed that is given is kept
        page.click("#go")
    for page, seed in ((one, "1"), (two, "2")):
        wait_for_pictures(page, 2, f"Seed\n{seed}")
        assert len(kept(page)) == 2
    assert not set(kept(one)) & set(kept(two))
    folders = {source.rsplit("/", 1)[0] for page in (one, two) for source in kept(page)}
    assert len(folders) == 2
    # The first one is held in the middle; the second one waits until the first one is closed.
    worker = server[1]
    brake.move(6)
    one.click("#go")
    one.wait_for_selector("#status progress")
    held = worker._running
    two.click("#go")
    says(two, "#status", "Waiting: 1 request before this one.")
    one.context.close()
    two.wait_for_selector("#status progress")
    assert (held.cancelled.is_set(), held.done) == (True, 6)
    assert worker._running is not held
    brake.move(float("inf"))
    two.wait_for_function("document.querySelectorAll('#gallery img').length === 4")
    worker.session(next(reversed(worker._sessions))).pictures = ()
    two.click("#gallery .kept >> nth=0")
    says(two, "body", "this picture is no longer kept")


def test_a_phone_scrolls_one_way_only(open_page):
    """Also in the dark."""
    light = background(open_page(), "body", "backgroundColor")
    page = open_page(**PHONE, color_scheme="dark")
    dark = background(page, "body", "backgroundColor")
    assert sum(map(int, re.findall(r"\d+", dark))) < 200 < sum(map(int, re.findall(r"\d+", light)))
    assert all_in_view(page, "#number", "#seed", "#keep-seed", "#go", "#map")
    for name in ("sampling", "expert", "picture"):
        page.tap(f"#{name} .label-wrap >> nth=0")
    page.fill("#number input[type=number]", "6")
    page.tap("#map .tile >> nth=1")
    wait_for_pictures(page, 6, "tile 1")
    assert all_in_view(page, "#pictures")
    page.tap(WALK)
    page.fill("#steps input[type=number]", "2")
    page.tap("#walk-go")
    wait_for_pictures(page, 2, "in 2 steps")
    assert all_in_view(page, "#pictures")
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]


def test_controls_and_results_are_in_view_and_a_seed_is_new_unless_it_is_kept(open_page, tmp_path):
    page = open_page(viewport=WINDOW)
    assert all_in_view(page, "#number", "#seed", "#keep-seed", "#go", "#map", "#live")
    page.fill("#number input[type=number]", "2")
    seeds = []
    for _ in range(3):
        page.click("#go")
        page.wait_for_function(
            "before => document.querySelector('#seed input').value !== before", arg=(seeds or ["0"])[-1]
        )
        seeds.append(page.input_value("#seed input"))
        wait_for_pictures(page, 2, f"Seed\n{seeds[-1]}")
    assert len(set(seeds)) == 3
    chosen = background(page, SAMPLES, "backgroundColor")
    page.hover(SAMPLES)  # also where the page has scrolled it under a finger
    assert background(page, SAMPLES, "backgroundColor") == chosen != background(page, WALK, "backgroundColor")
    page.check("#keep-seed input")
    page.click("#go")
    page.wait_for_function("document.querySelectorAll('#gallery img').length === 8")
    assert page.input_value("#seed input") == seeds[-1]
    shown = [page.request.get(page.url + source).body() for source in kept(page)]
    assert shown[:2] == shown[2:4] != shown[4:6]
    # What is done further down shows beside it.
    for name in ("sampling", "picture"):
        page.click(f"#{name} .label-wrap >> nth=0")
    Image.new("RGB", (32, 32), (200, 30, 60)).save(tmp_path / "red.png")
    page.set_input_files("#drop input", tmp_path / "red.png")
    says(page, "#drop", "red.png")
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.click("#complete")
    wait_for_pictures(page, 2, "red.png, completed below row")
    assert page.evaluate("scrollY") > 100
    assert all_in_view(page, "#go", "#pictures")


def test_a_page_that_is_loaded_again_keeps_its_pictures(open_page):
    page = open_page()
    page.fill("#number input[type=number]", "2")
    page.click("#map .tile >> nth=1")
    wait_for_pictures(page, 2, "tile 1")
    before = kept(page)
    page.reload()
    page.wait_for_function("document.querySelectorAll('#gallery img').length === 2")
    assert kept(page) == before
    page.wait_for_function("[...document.querySelectorAll('#gallery img')].every(image => image.naturalWidth)")
    says(page, "#details", "Asked for\ntile 1")
    page.click("#go")
    wait_for_pictures(page, 9, "tile 1")  # which is still chosen
    assert kept(page)[9:] == before


def test_a_page_shows_the_map_while_its_samples_are_drawn(open_page, server, brake, tmp_path):
    worker = server[1]
    job = MapJob(worker.model, worker.shared, tmp_path / "kept.png")
    brake.move(100)
    worker.run_in_background(job)
    page = open_page()
    says(page, "#chosen", "Sharper samples are being drawn: ")
    first_map = page.evaluate(SHEET)
    brake.move(float("inf"))
    page.wait_for_function("!document.querySelector('#chosen').innerText.includes('Sharper')")
    page.wait_for_function(f"{SHEET} !== {first_map!r}")
    assert job.kept.read_bytes() == worker.shared.map.read_bytes()
