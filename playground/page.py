"""The events of the page: what happens when something on it is used."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from queue import Empty

import gradio as gr

from playground.jobs import Sheet, decode_units, job_of, save_units
from playground.layout import DROP_HINT, STEPS, Layout, details_text, drop_value, source, status_text, url
from playground.page_request import PageRequest, recipe_values, sampling_from
from playground.uploads import MOST_BYTES, Upload, check_size, inside, read_upload
from playground.worker import REPORT_SECONDS, Job, Message, Picture, Session, Worker, write_zip
from utils.files import UserError
from utils.images import to_tensor, write_png

log = logging.getLogger(__name__)

SEEDS = 2**32
QUEUE = 64  # events of all pages that may wait; the worker has a limit of its own
UPLOADS_KEPT = (600, 3600)  # seconds between two looks at files that were given and never used, and how old they get
Updates = dict[gr.blocks.Block, object]


class PlaygroundPage(Layout):
    """The page and its events. One object serves all open pages; what is theirs is in the sessions of the worker."""

    def __init__(self, worker: Worker, uploads: Path) -> None:
        self.worker, self.uploads = worker, uploads
        first_map, cascade = worker.folder / "map.png", worker.model.cascade
        save_units(decode_units(cascade), cascade.codebooks[0], first_map)
        with gr.Blocks(
            title=f"Playground: {worker.model.name}",
            analytics_enabled=False,
            fill_width=True,
            delete_cache=UPLOADS_KEPT,
        ) as self.blocks:
            super().__init__(worker.model, first_map)
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
        on(self.go.click, self.generator("sample"), settings, shown)
        on(self.atlas.click, self.generator("atlas"), settings, shown)
        on(self.stop.click, self.cancel, None, [])
        on(self.dice.click, lambda: random.randrange(SEEDS), None, [self.seed])
        recipe = [value for config in self.cascade.configs for value in recipe_values(config)]
        on(self.recipe.click, lambda: recipe, None, self.sampling)
        on(self.drop.given, self.take_picture, None, [self.drop])
        on(self.like.click, self.generator("like"), settings, shown)
        on(self.detail.click, self.generator("detail", "from_stage"), [self.from_stage, *settings], shown)
        on(self.complete.click, self.generator("complete", "keep_rows"), [self.keep_rows, *settings], shown)
        on(self.take_start.click, self.chosen_unit, [self.start], [self.start])
        on(self.take_end.click, self.chosen_unit, [self.end], [self.end])
        walk = self.start, self.end, self.steps
        on(self.walk.click, self.generator("walk", "start", "end", "steps"), [*walk, *settings], shown)
        for shelf in (self.live, self.gallery):
            on(shelf.choose, self.choose_picture, None, [self.gallery, self.details, self.command])
        on(self.zip.click, self.save_all, None, [self.save])
        self.blocks.unload(self.close_session)

    # --- Sessions ---

    def session_of(self, request: gr.Request) -> Session:
        """The session of the page that an event is from.

        Gradio copies components at each update, and keeps the copies for a session where they are HTML: drop those.
        """
        name, known = request.session_hash, self.blocks.default_config.blocks.keys()
        state = self.blocks.app.state_holder.session_data.get(name)
        for kept in (state.blocks_config.blocks, state.config_values) if state else ():
            for copy in kept.keys() - known:
                kept.pop(copy, None)
        return self.worker.session(name)

    def close_session(self, request: gr.Request) -> None:
        """A page was closed or loaded again."""
        self.worker.close_session(request.session_hash)

    def cancel(self, request: gr.Request) -> None:
        """Cancel what the page has asked for."""
        self.worker.cancel(self.session_of(request))

    # --- Requests ---

    def choose_unit(self, request: gr.Request, event: gr.EventData, *settings: object) -> Iterator[Updates]:
        """A unit of the map was clicked: generate with it."""
        session, unit = self.session_of(request), event.unit
        if isinstance(unit, int) and 0 <= unit < len(self.cascade.codebooks[0]):
            session.unit = unit
        # A walk begins at the chosen unit, unless its field is changed after that.
        chosen = {self.chosen: self.chosen_text(session.unit), self.start: session.unit}
        yield {self.map: self.map_value(session), **chosen}
        yield from self.generate(session, "sample", settings)

    def choose_any(self, request: gr.Request) -> Updates:
        """Back to conditions drawn by their use."""
        session = self.session_of(request)
        session.unit = None
        return {self.map: self.map_value(session), self.chosen: self.chosen_text(None)}

    def generator(self, kind: str, *names: str) -> Callable:
        """A handler that generates pictures; the fields of these names come before the settings."""

        def handler(request: gr.Request, *values: object) -> Iterator[Updates]:
            own = {name: value if value is None else int(value) for name, value in zip(names, values, strict=False)}
            yield from self.generate(self.session_of(request), kind, values[len(names) :], **own)

        return handler

    def generate(self, session: Session, kind: str, settings: tuple, **own: object) -> Iterator[Updates]:
        """Queue a request of a page and yield what changes, until it ends; cancel it if the page goes before that."""
        try:
            asked = self.page_request(session, kind, settings, **own)
            job = self.worker.submit(session, job_of(asked, self.model, session))
        except UserError as error:
            yield self.refusal(error)
            return
        sheet = None
        try:
            while True:
                try:
                    message = job.messages.get(timeout=REPORT_SECONDS)
                except Empty:
                    yield {self.status: self.progress(job)}
                    continue
                if message.kind != "shown":
                    yield self.ending(session, job, sheet, message)
                    return
                if isinstance(message.content, Sheet):
                    sheet = message.content
                    yield {self.live: self.live_value(sheet), self.status: self.progress(job)}
                else:
                    yield {self.map: self.map_value(session), self.status: self.progress(job)}
        finally:
            job.cancelled.set()

    def page_request(self, session: Session, kind: str, settings: tuple, **own: object) -> PageRequest:
        """The request of a page; raises `UserError` if its fields do not go together."""
        number, seed, label, *sampling = settings
        if seed is None or not 0 <= seed < SEEDS:
            raise UserError(f"the seed is {seed}, expected a whole number from 0 to {SEEDS - 1}")
        if kind == "walk":
            if None in (ends := (own.pop("start"), own.pop("end"))):
                raise UserError("a walk leads from a unit to a unit: give both")
            own = {"ends": ends, "steps": min(max(own["steps"], STEPS[0]), STEPS[1])}
        return PageRequest(
            kind=kind, seed=int(seed), number=int(number), label=label or None, unit=session.unit,
            upload=session.upload, sampling=sampling_from(sampling, self.cascade.configs), **own,
        )  # fmt: skip

    def progress(self, job: Job) -> str:
        """How far a job is."""
        if job.start is None:
            before = self.worker.jobs_before(job)
            return status_text(f"Waiting: {before} {'request' if before == 1 else 'requests'} before this one.")
        rate = job.done / max(time.monotonic() - job.start, 1e-3)
        numbers = f"{job.done:,} of {job.total:,} tokens, {rate:,.0f} a second"
        if job.done:
            numbers += f", {(job.total - job.done) / rate:.0f} s left"
        return status_text(f"{job.activity[:1].upper()}{job.activity[1:]}.", numbers, job.done / job.total)

    def ending(self, session: Session, job: Job, sheet: Sheet | None, message: Message) -> Updates:
        """What changes when a job has ended."""
        if message.kind == "failed":
            return self.refusal(message.content)
        if message.kind == "cancelled":
            return {self.status: status_text("Stopped.")} if session.job is job else gr.skip()
        pictures = message.content
        words = f"Done: {pictures[0].title if len(pictures) == 1 else f'{len(pictures)} pictures'}."
        updates = {self.status: status_text(words)} | self.choice(session, pictures[0])
        if sheet is not None:
            keys = [picture.key for picture in pictures]
            updates[self.live] = self.live_value(sheet, keys if len(keys) == sheet.number else keys[:1] * sheet.number)
        return updates

    def refusal(self, error: BaseException) -> Updates:
        """Say on the page why something is not done."""
        if not isinstance(error, UserError):
            log.error("a request failed", exc_info=error)
        gr.Warning(escape(str(error)))
        return {self.status: status_text(str(error), is_error=True)}

    # --- Pictures ---

    def chosen_unit(self, request: gr.Request, before: int) -> int:
        """The unit that is chosen, or what was there."""
        unit = self.session_of(request).unit
        return before if unit is None else unit

    def choose_picture(self, request: gr.Request, event: gr.EventData) -> Updates:
        """A picture was chosen."""
        session = self.session_of(request)
        for picture in session.pictures:
            if picture.key == event.key:
                return self.choice(session, picture)
        gr.Warning("this picture is not kept any more")
        return gr.skip()

    def choice(self, session: Session, picture: Picture) -> Updates:
        """What changes when a picture is chosen."""
        return {
            self.gallery: self.gallery_value(session, picture),
            self.details: details_text(picture),
            self.command: gr.Textbox(value=picture.command, visible=True),
        }

    def take_picture(self, request: gr.Request, event: gr.EventData) -> Updates:
        """A picture was given: read it, compute its tokens, and show it as the model gets it."""
        session, name = self.session_of(request), Path(str(event.name)).name
        session.upload = None
        try:
            if not event.path:
                check_size(name, int(event.bytes))
            file = inside(str(event.path), self.uploads)
            try:
                image, note = read_upload(file, name, self.cascade.image_size)
            finally:
                file.unlink(missing_ok=True)
        except UserError as error:
            gr.Warning(escape(str(error)))
            return {self.drop: drop_value(say=f"{error} – {DROP_HINT}")}
        tensor = to_tensor(image, self.cascade.image_size)
        session.upload = Upload(name, self.worker.run_soon(lambda job: self.cascade.tokens(tensor)))
        shown = session.new_path("given.png")
        write_png(image, shown, durable=False)
        session.keep_latest("upload", shown)
        return {self.drop: drop_value(url(shown), name, note or name)}

    def save_all(self, request: gr.Request) -> Updates:
        """All pictures of a page in one file."""
        session = self.session_of(request)
        if not session.pictures:
            gr.Warning("there are no pictures yet")
            return gr.skip()
        path = session.new_path("pictures.zip")
        self.worker.run_soon(lambda job: write_zip(session.pictures, path))  # by the thread that also drops pictures
        session.keep_latest("archive", path)
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
        allowed_paths=[str(page.worker.folder)],
        max_file_size=MOST_BYTES,
        theme=gr.themes.Base(primary_hue="teal", neutral_hue="stone", **fonts),
        head=f"<style>{source('page.css')}</style>",  # Gradio rewrites what it is given as `css`
        app_kwargs={"middleware": middleware, "openapi_url": None},
        **unneeded,
    )
    return address, public
