"""The report in a browser: clicked through as a person would, with a mouse, by keyboard, and on a phone."""

import json
import re

import pytest

from tests.helpers.browser import CHROMIUM, pages

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
    # The slider.
    levels, texts = [*shown_level(page)], []
    page.focus("#level")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        levels += shown_level(page)
        texts.append(page.inner_text("#level-text"))
    assert len(set(levels)) == len(levels) == 4
    assert [text.split(":")[0] for text in texts] == ["Stage 0", "Stage 1", "Final image"]
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
    # Everything opens.
    closed = page.locator("details")
    for index in range(closed.count()):
        closed.nth(index).locator("summary").first.press("Enter")
    assert page.eval_on_selector_all("details", "all => all.every(details => details.open)")
    page.wait_for_selector("#curve-codebook_2 .main-svg")
    page.click("#pause")
    assert page.is_visible("#still") and page.is_hidden("#moving")
    page.locator("section:has(#transformers) .enlarge").first.press("Enter")
    assert page.is_visible("#enlarged img")
    page.keyboard.press("Escape")
    assert page.is_hidden("#enlarged")
