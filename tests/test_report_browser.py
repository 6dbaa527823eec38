"""The report in a browser: clicked through as a person would, with a mouse, by keyboard, and on a phone."""

import json
import re

import pytest

from playground.browser import CHROMIUM
from tests.helpers.browser import pages

if CHROMIUM is None:
    pytest.skip("the report is not clicked through: there is no chromium; install it", allow_module_level=True)
pytest.importorskip(
    "playwright.sync_api", reason="the report is not clicked through: pip install -r requirements-dev.txt"
)


@pytest.fixture
def open_page(browser, reported):
    """A function: the page in a context of its own, without a network. At the end nothing may have gone wrong."""
    url, allowed = reported[1].as_uri(), ("file:", "data:", "blob:")
    with pages(browser, url, "#curve-transformer_2 .main-svg", allowed, offline=True) as open_page:
        yield open_page


def until(page, expression):
    """Wait for an expression to become true. Playwright's own way evaluates text, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never came true: {expression}")


def shown_level(page):
    return page.eval_on_selector_all(
        ".levels img", "images => images.filter(image => image.offsetWidth).map(i => i.src)"
    )


def hover(page, selector, x, y):
    """Point at a place of a plot, given as shares of its width and height; return the text that appears."""
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(f"{selector} .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + x * box["width"] - 3, box["y"] + y * box["height"])
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.wait_for_selector(f"{selector} .hoverlayer text")
    return page.text_content(f"{selector} .hoverlayer")


def first_unit(page, atlas):
    """What is to be said of the unit in the upper left corner."""
    data = json.loads(page.text_content("script#plots"))
    text = data[atlas]["data"][0]["text"][0][0]
    assert re.fullmatch(r"unit \d+<br>used [\d,]+ times, \S+ %", text)
    return text.replace("<br>", "")


def test_the_page_is_used_with_mouse_and_keyboard(open_page):
    page = open_page()
    page.keyboard.press("Tab")  # the first stop skips to the content, and is seen
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    # The slider.
    levels, texts = [*shown_level(page)], []
    page.focus("#level")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        levels += shown_level(page)
        texts.append(page.inner_text("#level-text"))
    assert len(set(levels)) == len(levels) == 4
    assert [text.split(":")[0] for text in texts] == ["Stage 0", "Stage 1", "Final image"]
    assert page.get_attribute("#level", "aria-valuetext") == "Final image"
    page.keyboard.press("Home")
    assert shown_level(page) == levels[:1]
    # Numbers of curves and units.
    assert "training" in hover(page, "#curve-autoencoder", 0.5, 0.5)
    assert hover(page, "#atlas-codebook_0", 0.02, 0.02) == first_unit(page, "atlas-codebook_0")
    page.fill("#unit-codebook_0", "3")
    until(page, "document.querySelector('#atlas-codebook_0 .hoverlayer').textContent.includes('unit 3')")
    assert page.inner_text("#unit-codebook_0 + output").startswith("used ")
    page.fill("#unit-codebook_0", "99999")
    assert page.inner_text("#unit-codebook_0 + output").startswith("0 to ")
    # Zoom.
    span = "(([low, high]) => high - low)(document.getElementById('curve-transformer_0').layout.xaxis.range)"
    whole = page.evaluate(span)
    page.locator("#curve-transformer_0").scroll_into_view_if_needed()
    box = page.locator("#curve-transformer_0 .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 22, steps=4)
    page.mouse.up()
    until(page, f"{span} < {whole} / 2")
    page.locator("#curve-transformer_0 .modebar-btn").last.focus()
    page.keyboard.press("Enter")
    until(page, f"Math.abs({span} - {whole}) < 1e-6 * {whole}")
    # Everything opens.
    closed = page.locator("details")
    for index in range(closed.count()):
        closed.nth(index).locator("summary").first.press("Enter")
    assert page.eval_on_selector_all("details", "all => all.every(details => details.open)")
    page.wait_for_selector("#curve-codebook_2 .main-svg")
    assert "python train_autoencoder.py --" in page.inner_text("#commands + p ~ details")
    page.click("#pause")
    assert page.is_visible("#still") and page.is_hidden("#moving")
    page.locator("section:has(#transformers) .enlarge").first.press("Enter")
    assert page.is_visible("#enlarged img")
    page.keyboard.press("Escape")
    assert page.is_hidden("#enlarged")
    page.click("nav a[href='#times']")
    assert page.locator("#times").bounding_box()["y"] < 400


def test_the_page_follows_what_the_system_prefers(open_page):
    page = open_page(color_scheme="dark", reduced_motion="reduce")
    assert page.is_visible("#still")
    assert page.inner_text("#pause") == "Play"
    colours = "[getComputedStyle(document.body).backgroundColor, document.querySelector('.ytick text').style.fill]"
    dark = page.evaluate(colours)
    page.click("#theme")
    until(page, f"{colours}[1] !== {dark[1]!r}")
    assert page.evaluate(colours)[0] == "rgb(255, 255, 255)" != dark[0]
    page.emulate_media(color_scheme="light")
    page.click("#theme")
    until(page, f"{colours}[1] === {dark[1]!r}")
    assert page.evaluate(colours) == dark


def test_a_phone_scrolls_one_way_only(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme="dark")
    for details in page.locator("details").all():
        details.evaluate("details => { details.open = true; }")
    page.wait_for_selector("#curve-codebook_2 .main-svg")
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    unit = page.locator("#atlas-codebook_1 .nsewdrag").first
    unit.scroll_into_view_if_needed()
    unit.tap(position={"x": 10, "y": 10})
    page.wait_for_selector("#atlas-codebook_1 .hoverlayer text")
    assert page.text_content("#atlas-codebook_1 .hoverlayer") == first_unit(page, "atlas-codebook_1")
