"""Pages in Chromium, driven as a person would, in which nothing may go wrong."""

import shutil
from contextlib import contextmanager

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# What Gradio's script says of a stream that is open while its page is loaded again or closed, one after the other.
ABORTED, ERRORED = "AbortError: BodyStreamBuffer was aborted", "Unexpected error Connection errored out."


@contextmanager
def pages(browser, url, is_ready, allowed, **usual):
    """A function that opens a page in a context of its own and waits for the selector `is_ready`.

    Its arguments are those of a context, beside the `usual` ones. At the end no page may have asked for an address that
    does not begin with one that is `allowed`, nor have said anything but a log on its console.
    """
    contexts, problems, aborted = [], [], []

    def watch(request):
        if not request.url.startswith(allowed):
            problems.append(f"asked for {request.url}")

    def note(problem):
        if problem.startswith(ABORTED):
            aborted.append(problem)
        elif aborted and problem.startswith(ERRORED):
            aborted.pop()
        else:
            problems.append(problem)

    def open_page(**options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | usual | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", watch)
        page.on("console", lambda message: note(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: note(str(error)))
        page.goto(url)
        page.wait_for_selector(is_ready)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems, problems


@contextmanager
def chromium():
    from playwright.sync_api import sync_playwright  # not everybody has it

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()
