"""Pages in Chromium, driven as a person would, in which nothing may go wrong."""

from contextlib import contextmanager


@contextmanager
def pages(browser, url, is_ready, allowed, **usual):
    """A function that opens a page in a context of its own and waits for the selector `is_ready`.

    Its arguments are those of a context, beside the `usual` ones. At the end no page may have asked for an address that
    does not begin with one that is `allowed`, nor have said anything but a log on its console.
    """
    contexts, problems = [], []

    def watch(request):
        if not request.url.startswith(allowed):
            problems.append(f"asked for {request.url}")

    def note(error):
        if not str(error).startswith("AbortError: BodyStreamBuffer was aborted"):  # Gradio's script closes a stream
            problems.append(str(error))

    def open_page(**options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | usual | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", watch)
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", note)
        page.goto(url)
        page.wait_for_selector(is_ready)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems, problems
