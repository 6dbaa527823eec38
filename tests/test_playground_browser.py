"""The playground in a browser: used as a person would, with a mouse, by keyboard, and on a phone."""

import io
import shutil
import zipfile
from collections import Counter

import pytest
from PIL import Image

from models.cascade import Cascade
from playground.page_request import BATCH, Model
from playground.server import serve
from tests.helpers.browser import CHROMIUM, pages
from tests.helpers.jobs import free_port

SAMPLES, WALK = (f"#click input[value={value}]" for value in ("sample", "walk"))  # what a click on the map does
if CHROMIUM is None:
    pytest.skip("the playground is not used: there is no chromium; install it", allow_module_level=True)
pytest.importorskip("playwright.sync_api", reason="the playground is not used: pip install -r requirements-dev.txt")
pytest.importorskip("gradio", reason="the playground is not used: pip install -r requirements-extra.txt")


@pytest.fixture(scope="module")
def address(tiny_run, tmp_path_factory):
    """The address of a running server, which has drawn the map."""
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("page") / "run")
    cascade = Cascade.load(run, device="cpu", batch_size=BATCH)
    with serve(Model(cascade=cascade, path=run), "127.0.0.1", free_port()) as (address, public, worker):
        assert public is None
        assert worker.background.ended.wait(60)
        yield address


@pytest.fixture
def open_page(browser, address):
    """A function: the page in a context of its own. At the end nothing may have gone wrong, or elsewhere."""
    with pages(browser, address, "#map .tile", (address, "data:", "blob:")) as open_page:
        yield open_page


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


SHEET = "document.querySelector('#map .map').style.getPropertyValue('--sheet')"


def kept(page):
    return page.eval_on_selector_all("#gallery img", "images => images.map(image => image.getAttribute('src'))")


def test_units_are_chosen_by_mouse_and_by_keyboard(open_page):
    page = open_page()
    first_map = page.evaluate(SHEET)
    page.click("#map .tile >> nth=2")
    wait_for_pictures(page, 9, "tile 2")
    page.fill("#number input[type=number]", "1")
    page.focus("#map .tile[tabindex='0']")  # one stop for the whole map, and arrows in it
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    tile = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Enter")
    wait_for_pictures(page, 1, tile)
    assert "--num-images 1 --batch-size 2 --condition-index " in page.input_value("#command textarea")
    page.click("#gallery .kept >> nth=9")
    says(page, "#details", "number 8, of 0 to 8")
    page.click("#atlas")
    page.wait_for_function(f"{SHEET} !== {first_map!r}")


def test_a_picture_is_completed_and_all_is_saved(open_page, tmp_path):
    page = open_page()
    page.fill("#number input[type=number]", "2")
    for name in ("sampling", "expert", "picture"):
        page.click(f"#{name} .label-wrap >> nth=0")
    (tmp_path / "<b>no.png").write_bytes(b"no picture")
    page.set_input_files("#drop input", tmp_path / "<b>no.png")
    says(page, "#drop", "<b>no.png")
    Image.new("RGB", (64, 48), (200, 30, 60)).save(tmp_path / "blue.png")
    page.set_input_files("#drop input", tmp_path / "blue.png")
    says(page, "#drop", "blue.png is 64×48")
    page.click("#complete")
    wait_for_pictures(page, 2, "blue.png, completed below row")
    assert "--init-image blue.png --keep-rows 1" in page.input_value("#command textarea")
    page.click("#detail")
    wait_for_pictures(page, 2, "blue.png, new detail from stage 1")
    with page.expect_download() as saved:
        page.click("#save-picture")
    seed = page.input_value("#seed input")
    with Image.open(saved.value.path()) as image:
        assert (image.size, image.text["from_stage"], image.text["seed"]) == ((32, 32), "1", seed)
    # A walk leads between two tiles that are clicked.
    page.click(WALK)
    page.fill("#steps input[type=number]", "4")
    page.click("#map .tile >> nth=3")
    says(page, "#way", "From tile 3")
    page.click("#map .tile >> nth=0")
    wait_for_pictures(page, 4, "a walk from tile 3 to 0 in 4 steps")
    assert "--condition-walk 3 0 --steps 4 --animate" in page.input_value("#command textarea")
    page.click(SAMPLES)
    with page.expect_download() as saved:
        page.click("#zip")
    with zipfile.ZipFile(saved.value.path()) as archive:
        assert Counter(name.rpartition(".")[2] for name in archive.namelist()) == {
            "webp": 1, "png": 4, "txt": 1, "json": 1,
        }  # fmt: skip
        assert Image.open(io.BytesIO(archive.read(archive.namelist()[0]))).format == "WEBP"


def test_a_seed_is_new_unless_it_is_kept(open_page):
    page, seeds = open_page(), []
    page.fill("#number input[type=number]", "2")
    for _ in range(2):
        page.click("#go")
        page.wait_for_function(
            "before => document.querySelector('#seed input').value !== before", arg=(seeds or ["0"])[-1]
        )
        seeds.append(page.input_value("#seed input"))
        wait_for_pictures(page, 2, f"Seed\n{seeds[-1]}")
    page.check("#keep-seed input")
    page.click("#go")
    page.wait_for_function("document.querySelectorAll('#gallery img').length === 6")
    assert page.input_value("#seed input") == seeds[-1]
    shown = [page.request.get(page.url + source).body() for source in kept(page)]
    assert shown[:2] == shown[2:4] != shown[4:6]


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
