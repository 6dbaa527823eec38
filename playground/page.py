"""The events of the page: what happens when something on it is used."""

import logging
import random
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from queue import Empty

import gradio as gr

from playground.asks import Ask, recipe_values, sampling_from
from playground.layout import DROP_HINT, STEPS, Layout, details_text, drop_value, source, status_text, url
from playground.studio import TELL, Job, Page, Picture, Studio, write_zip
from playground.uploads import MOST_BYTES, Upload, inside, read_upload
from playground.work import Sheet, at_once, decode_units, save_units, total, work_for
from utils.core.files import UserError
from utils.data.images import to_tensor, write_png

log = logging.getLogger(__name__)

SEEDS = 2**32
QUEUE = 64  # events of all pages that may wait; the studio has a limit of its own
UPLOADS_KEPT = (600, 3600)  # seconds between two looks at files that were given and never used, and how old they get
Updates = dict[gr.blocks.Block, object]


class PlaygroundPage(Layout):
    """The page and its events. One object serves all pages; what is theirs the studio keeps."""

    def __init__(self, studio: Studio, uploads: Path) -> None:
        self.studio, self.uploads = studio, uploads
        first_map, cascade = studio.folder / "map.png", studio.model.cascade
        save_units(decode_units(cascade), cascade.codebooks[0], first_map)
        with gr.Blocks(
            title=f"Playground: {studio.model.name}",
            analytics_enabled=False,
            fill_width=True,
            delete_cache=UPLOADS_KEPT,
        ) as self.blocks:
            super().__init__(studio.model, first_map)
            self.connect()

    def connect(self) -> None:
        """Say what happens when something is used."""
        settings = [self.number, self.seed, self.label, *self.sampling]
        shown = [self.status, self.live, self.map, self.chosen, self.details, self.command, self.gallery]
        quiet = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}

        def on(event: Callable, handler: Callable, inputs: list | None = None, outputs: list | None = None) -> None:
            event(handler, inputs, outputs, trigger_mode="multiple", **quiet)

        on(self.map.choose, self.choose_unit, settings, [*shown, self.start])
        on(self.any_unit.click, self.choose_any, None, [self.map, self.chosen])
        on(self.go.click, self.maker("sample"), settings, shown)
        on(self.atlas.click, self.maker("atlas"), settings, shown)
        on(self.stop.click, self.stop_page, None, [])
        on(self.dice.click, lambda: random.randrange(SEEDS), None, [self.seed])
        on(self.recipe.click, self.reset_sampling, None, self.sampling)
        on(self.drop.given, self.take_picture, None, [self.drop])
        on(self.like.click, self.maker("like"), settings, shown)
        on(self.detail.click, self.maker("detail", "from_stage"), [self.from_stage, *settings], shown)
        on(self.complete.click, self.maker("complete", "keep_rows"), [self.keep_rows, *settings], shown)
        on(self.take_start.click, self.chosen_unit, [self.start], [self.start])
        on(self.take_end.click, self.chosen_unit, [self.end], [self.end])
        walk = self.start, self.end, self.steps
        on(self.walk.click, self.maker("walk", "start", "end", "steps"), [*walk, *settings], shown)
        for shelf in (self.live, self.gallery):
            on(shelf.choose, self.choose_picture, None, [self.gallery, self.details, self.command])
        on(self.zip.click, self.save_all, None, [self.save])
        self.blocks.unload(self.leave)

    def page_of(self, request: gr.Request) -> Page:
        """The page that asks."""
        self.forget_copies(request.session_hash)
        return self.studio.page(request.session_hash)

    def leave(self, request: gr.Request) -> None:
        """A page was closed or loaded again."""
        self.studio.leave(request.session_hash)

    def stop_page(self, request: gr.Request) -> None:
        """Stop what the page has asked for."""
        self.studio.stop(self.page_of(request))

    def choose_unit(self, request: gr.Request, event: gr.EventData, *settings: object) -> Iterator[Updates]:
        """A unit of the map was clicked: generate with it."""
        page, unit = self.page_of(request), event.unit
        if isinstance(unit, int) and 0 <= unit < len(self.cascade.codebooks[0]):
            page.unit = unit
        # A walk begins at the chosen unit, unless its field is changed after that.
        yield {self.map: self.map_value(page), self.chosen: self.chosen_text(page.unit), self.start: page.unit}
        yield from self.make(page, "sample", settings)

    def choose_any(self, request: gr.Request) -> Updates:
        """Back to conditions drawn by their use."""
        page = self.page_of(request)
        page.unit = None
        return {self.map: self.map_value(page), self.chosen: self.chosen_text(None)}

    def maker(self, kind: str, *names: str) -> Callable:
        """A handler that makes what is asked for; the fields of these names come before the settings."""

        def handler(request: gr.Request, *values: object) -> Iterator[Updates]:
            own = {name: value if value is None else int(value) for name, value in zip(names, values, strict=False)}
            yield from self.make(self.page_of(request), kind, values[len(names) :], **own)

        return handler

    def choice(self, page: Page, picture: Picture) -> Updates:
        """What changes when a picture is chosen."""
        return {
            self.gallery: self.gallery_value(page, picture),
            self.details: details_text(picture),
            self.command: gr.Textbox(value=picture.command, visible=True),
        }

    def make(self, page: Page, kind: str, settings: tuple, **own: object) -> Iterator[Updates]:
        """Queue a request of a page, and pass on what comes of it."""
        try:
            ask = self.ask(page, kind, settings, **own)
            work, tokens = work_for(ask, self.model, page), total(ask, self.cascade)
            job = self.studio.ask(page, work, tokens, at_once(ask, self.cascade))
        except UserError as error:
            yield self.refusal(error)
            return
        yield from self.follow(page, job)

    def forget_copies(self, name: str) -> None:
        """Drop the copies of components that Gradio makes at each update, and keeps for a page where they are HTML."""
        session, known = self.blocks.app.state_holder.session_data.get(name), self.blocks.default_config.blocks.keys()
        for kept in (session.blocks_config.blocks, session.config_values) if session else ():
            for copy in kept.keys() - known:
                kept.pop(copy, None)

    def ask(self, page: Page, kind: str, settings: tuple, **own: object) -> Ask:
        """What a page asks for; raises `UserError` if its fields do not go together."""
        number, seed, label, *sampling = settings
        if seed is None or not 0 <= seed < SEEDS:
            raise UserError(f"the seed is {seed}, expected a whole number from 0 to {SEEDS - 1}")
        if kind == "walk":
            if None in (ends := (own.pop("start"), own.pop("end"))):
                raise UserError("a walk leads from a unit to a unit: give both")
            own = {"ends": ends, "steps": min(max(own["steps"], STEPS[0]), STEPS[1])}
        return Ask(
            kind=kind, seed=int(seed), number=int(number), label=label or None, unit=page.unit, upload=page.upload,
            sampling=sampling_from(sampling, self.cascade.configs), **own,
        )  # fmt: skip

    def follow(self, page: Page, job: Job) -> Iterator[Updates]:
        """Pass on what a job has to say, until it ends. It is stopped where nobody listens any more."""
        sheet = None
        try:
            while True:
                try:
                    news = job.news.get(timeout=TELL)
                except Empty:
                    yield {self.status: self.progress(job)}
                    continue
                if news.kind == "shown" and isinstance(news.content, Sheet):
                    sheet = news.content
                    yield {self.live: self.live_value(sheet), self.status: self.progress(job)}
                elif news.kind == "shown":
                    yield {self.map: self.map_value(page), self.status: self.progress(job)}
                else:
                    yield self.ending(page, job, sheet, news.kind, news.content)
                    return
        finally:
            job.stop()

    def ending(self, page: Page, job: Job, sheet: Sheet | None, kind: str, content: object) -> Updates:
        """What changes when a job has ended."""
        if kind == "failed":
            return self.refusal(content)
        if kind == "stopped":
            return {self.status: status_text("Stopped.")} if page.job is job else gr.skip()
        words = f"Done: {content[0].title if len(content) == 1 else f'{len(content)} pictures'}."
        updates = {self.status: status_text(words)} | self.choice(page, content[0])
        if sheet is not None:
            keys = tuple(picture.key for picture in content)
            updates[self.live] = self.live_value(sheet, keys if len(keys) == sheet.number else keys[:1] * sheet.number)
        return updates

    def progress(self, job: Job) -> str:
        """How far a job is."""
        if job.begun is None:
            before = self.studio.before(job)
            return status_text(f"Waiting: {before} {'request' if before == 1 else 'requests'} before this one.")
        share = job.done / job.total
        left = (job.total - job.done) / job.rate if job.done else None
        words = f"{job.activity[:1].upper()}{job.activity[1:]}."
        done, all_, rate = (round(number * job.at_once) for number in (job.done, job.total, job.rate))
        numbers = f"{done:,} of {all_:,} tokens, {rate:,} a second"
        return status_text(words, numbers + ("" if left is None else f", {left:.0f} s left"), share)

    def refusal(self, error: BaseException) -> Updates:
        """Say on the page why something is not done."""
        if not isinstance(error, UserError):
            log.error("a request failed", exc_info=error)
        gr.Warning(escape(str(error)))
        return {self.status: status_text(str(error), is_error=True)}

    def chosen_unit(self, request: gr.Request, before: int) -> int:
        """The unit that is chosen, or what was there."""
        unit = self.page_of(request).unit
        return before if unit is None else unit

    def reset_sampling(self) -> list[float]:
        """The recipe's settings of all stages."""
        return [value for config in self.cascade.configs for value in recipe_values(config)]

    def choose_picture(self, request: gr.Request, event: gr.EventData) -> Updates:
        """A picture was chosen."""
        page = self.page_of(request)
        try:
            return self.choice(page, page.find(event.key))
        except UserError as error:
            gr.Warning(str(error))
            return gr.skip()

    def take_picture(self, request: gr.Request, event: gr.EventData) -> Updates:
        """A picture was given: read it, and show it as the model gets it."""
        page, name = self.page_of(request), Path(str(event.name)).name
        try:
            return {self.drop: self.read_picture(page, name, str(event.path), int(event.bytes))}
        except UserError as error:
            gr.Warning(escape(str(error)))
            return {self.drop: drop_value(say=f"{error} – {DROP_HINT}")}

    def read_picture(self, page: Page, name: str, path: str, size: int) -> dict:
        """Read a given picture, and find its tokens."""
        page.upload = None
        if not path:
            limit = MOST_BYTES // 10**6
            raise UserError(f"{name}: {size / 1e6:.1f} MB, at most {limit}: scale it down")
        file = inside(path, self.uploads)
        try:
            image, note = read_upload(file, name, self.cascade.image_size)
        finally:
            file.unlink(missing_ok=True)
        tokens = self.studio.do(lambda job: self.cascade.tokens(to_tensor(image, self.cascade.image_size)))
        page.upload = Upload(name, tokens)
        shown = page.new_path("given.png")
        write_png(image, shown, durable=False)
        page.keep_one("upload", shown)
        return drop_value(url(shown), name, note or name)

    def save_all(self, request: gr.Request) -> Updates:
        """All pictures of a page in one file."""
        page = self.page_of(request)
        if not page.pictures:
            gr.Warning("there are no pictures yet")
            return gr.skip()
        path = page.new_path("pictures.zip")
        self.studio.do(lambda job: write_zip(page.pictures, path))  # by the thread that also drops pictures
        page.keep_one("archive", path)
        return {self.save: {"src": url(path), "name": path.name}}


def launch(page: PlaygroundPage, host: str, port: int, share: bool, middleware: list) -> tuple[str, str | None]:
    """Have Gradio serve the page and its files; returns its address, and the public one if it is shared."""
    page.blocks.queue(max_size=QUEUE)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # nothing is fetched
    unneeded = dict.fromkeys(("run_history", "enable_monitoring", "ssr_mode", "pwa", "mcp_server", "show_error"), False)
    _, address, public = page.blocks.launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        allowed_paths=[str(page.studio.folder)],
        max_file_size=MOST_BYTES,
        theme=gr.themes.Base(primary_hue="teal", neutral_hue="stone", **fonts),
        head=f"<style>{source('page.css')}</style>",  # Gradio rewrites what it is given as `css`
        app_kwargs={"middleware": middleware, "openapi_url": None},
        **unneeded,
    )
    return address, public
