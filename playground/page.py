"""The events of the page: what happens when something on it is used."""

import random
import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from queue import Empty

import gradio as gr

from playground.jobs import PictureJob, Sheet, first_map
from playground.layout import DROP_HINT, STEPS, Layout, details_text, drop_value, source, status_text, url
from playground.page_request import PageRequest, label_from, neighbour, recipe_values, sampling_from
from playground.uploads import MOST_BYTES, Upload, check_size, inside, read_upload
from playground.worker import REPORT_SECONDS, Job, Picture, Session, Worker, write_zip
from utils.core.files import UserError
from utils.data.images import to_tensor, write_png

SEEDS, NEW_SEEDS = 2**32, 10**6  # that can be given, and that are drawn: short ones
QUEUE = 64  # events of all pages that may wait; the worker has a limit of its own
UPLOADS_KEPT = (600, 3600)  # seconds between clean-ups, and the age at which unused uploads are removed
Updates = dict[gr.blocks.Block, object]


class PlaygroundPage(Layout):
    """The page and its events. One object serves all open pages; what is theirs is in the sessions of the worker."""

    def __init__(self, worker: Worker, uploads: Path) -> None:
        self.worker, self.uploads = worker, uploads
        if (job := first_map(worker.model, worker.shared)) is not None:
            worker.run_in_background(job)
        with gr.Blocks(
            title=f"Playground: {worker.model.path.resolve().name}",
            analytics_enabled=False,
            fill_width=True,
            delete_cache=UPLOADS_KEPT,
        ) as self.blocks:
            super().__init__(worker.model, worker.shared)
            self._connect()

    def _connect(self) -> None:
        settings = [self.number, self.seed, self.keep_seed, self.label, *self.sampling]
        chosen = [self.details, self.command, self.gallery]
        shown = [self.status, self.live, self.seed, self.map, *chosen]
        ends = [self.map, self.chosen, self.way]
        quiet = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}

        def on(
            event: Callable,
            handler: Callable | None,
            inputs: list | None = None,
            outputs: list | None = None,
            js: str | None = None,
        ) -> None:
            event(handler, inputs, outputs, trigger_mode="multiple", js=js, **quiet)

        restored = [self.map, self.chosen, self.drop, self.clock, *chosen]
        on(self.blocks.load, self.open_page, [self.before], restored, js="() => sessionStorage.getItem('page') ?? ''")
        on(self.clock.tick, self._look, None, [self.map, self.chosen, self.clock])
        on(self.map.choose, self.choose_unit, [self.steps, *settings], [*shown, *ends])
        on(self.any_unit.click, self._choose_any, None, [self.map, self.chosen])
        on(self.go.click, self.generator("sample"), settings, shown)
        on(self.atlas.click, self.generator("atlas"), settings, shown)
        on(self.stop.click, self._cancel, None, [])
        on(self.seed.input, None, None, [self.keep_seed], js="() => true")
        recipe = recipe_values(self.cascade.configs)
        on(self.recipe.click, lambda: recipe, None, self.sampling)
        on(self.drop.given, self.take_picture, None, [self.drop])
        on(self.like.click, self.generator("like"), settings, shown)
        on(self.detail.click, self.generator("detail", "from_stage"), [self.from_stage, *settings], shown)
        on(self.complete.click, self.generator("complete", "keep_rows"), [self.keep_rows, *settings], shown)
        on(self.click.change, self._choose_ends, [self.click], [*ends, self.walk_group])
        on(self.walk.click, self.generator("walk", "steps"), [self.steps, *settings], shown)
        for shelf in (self.live, self.gallery):
            on(shelf.choose, self._choose_picture, None, chosen)
        on(self.zip.click, self._save_all, None, [self.save])
        self.blocks.unload(self._close_session)

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

    def _close_session(self, request: gr.Request) -> None:
        self.worker.leave_session(request.session_hash)

    def open_page(self, request: gr.Request, before: str) -> Updates:
        """A page was opened, or loaded again: show what its session has, and have its browser remember the session."""
        session = self.worker.session(request.session_hash, before)
        session.ends = ()
        updates = self._look(request) | {self.drop: session.drop or drop_value()}
        updates |= (
            self.choice(session, session.pictures[0])
            if session.pictures
            else {self.gallery: self.gallery_value(session)}
        )
        updates[self.gallery]["page"] = request.session_hash
        return updates

    def _look(self, request: gr.Request) -> Updates:
        session, job = self.session_of(request), self.worker.background
        job = None if job is None or job.ended.is_set() else job
        updates = {self.map: self.map_value(session), self.chosen: self.chosen_text(session, job)}
        return updates | {self.clock: gr.Timer(active=job is not None)}

    def _cancel(self, request: gr.Request) -> None:
        self.worker.cancel(self.session_of(request))

    def choose_unit(self, request: gr.Request, event: gr.EventData, steps: int, *settings: object) -> Iterator[Updates]:
        session, unit = self.session_of(request), event.unit
        if not 0 <= unit < len(self.cascade.codebooks[0]):
            return
        if not session.ends:
            session.unit = unit
            yield {self.map: self.map_value(session), self.chosen: self.chosen_text(session)}
            yield from self.generate(session, "sample", settings)
            return
        is_second = len(session.ends) == 1 and unit != session.ends[0]
        session.ends = (*session.ends, unit) if is_second else (unit,)
        yield {self.map: self.map_value(session), self.way: self.way_text(session.ends)}
        if is_second:
            yield from self.generate(session, "walk", settings, steps=int(steps))

    def _choose_any(self, request: gr.Request) -> Updates:
        session = self.session_of(request)
        session.unit = None
        return {self.map: self.map_value(session), self.chosen: self.chosen_text(session)}

    def _choose_ends(self, request: gr.Request, click: str) -> Updates:
        session, codebook = self.session_of(request), self.cascade.codebooks[0]
        session.ends = ()
        if click == "walk":
            start = int(codebook.counts.argmax()) if session.unit is None else session.unit
            session.ends = (start, self.worker.run_soon(lambda job: neighbour(codebook, start)))
        updates = {self.map: self.map_value(session), self.walk_group: gr.Column(visible=click == "walk")}
        return updates | ({self.way: self.way_text(session.ends)} if session.ends else {})

    def generator(self, kind: str, *names: str) -> Callable:
        """A handler that generates pictures; the fields of these names come before the settings."""

        def handler(request: gr.Request, *values: object) -> Iterator[Updates]:
            own = {name: value if value is None else int(value) for name, value in zip(names, values, strict=False)}
            yield from self.generate(self.session_of(request), kind, values[len(names) :], **own)

        return handler

    def generate(self, session: Session, kind: str, settings: tuple, **own: object) -> Iterator[Updates]:
        """Queue a request of a page and yield what changes, until it ends; cancel it if the page goes before that."""
        try:
            request = self.page_request(session, kind, settings, **own)
            job = self.worker.submit(session, PictureJob(request, self.model, session))
        except UserError as error:
            yield self.refusal(error)
            return
        yield {self.seed: request.seed}
        sheet = None
        try:
            while True:
                try:
                    kind, content = job.messages.get(timeout=REPORT_SECONDS)
                except Empty:
                    yield {self.status: self._progress(job)}
                    continue
                if kind != "shown":
                    yield self.ending(session, job, sheet, kind, content)
                    return
                if isinstance(content, Sheet):
                    sheet = content
                    yield {self.live: self.live_value(sheet), self.status: self._progress(job)}
                else:
                    yield {self.map: self.map_value(session), self.status: self._progress(job)}
        finally:
            job.cancelled.set()

    def page_request(self, session: Session, kind: str, settings: tuple, **own: object) -> PageRequest:
        """The request of a page; raises `UserError` if its fields do not go together."""
        number, seed, is_kept, chosen, *sampling = settings
        seed = seed if is_kept else random.randrange(NEW_SEEDS)
        if seed is None or not 0 <= seed < SEEDS:
            raise UserError(f"the seed is {seed}, expected a whole number from 0 to {SEEDS - 1}")
        if kind == "walk":
            if len(session.ends) != 2:
                raise UserError("click the two tiles of the map between which the walk leads")
            own = {"ends": session.ends, "steps": min(max(own["steps"], STEPS[0]), STEPS[1])}
        return PageRequest(
            kind=kind, seed=int(seed), number=int(number), label=label_from(chosen, self.cascade.labels),
            unit=session.unit, upload=session.upload, sampling=sampling_from(sampling, self.cascade.configs), **own,
        )  # fmt: skip

    def _progress(self, job: Job) -> str:
        if job.start is None:
            before = self.worker.jobs_before(job)
            return status_text(f"Waiting: {before} {'request' if before == 1 else 'requests'} before this one.")
        rate = job.done / max(time.monotonic() - job.start, 1e-3)
        numbers = f"{job.done:,} of {job.total:,} tokens, {rate:,.0f} a second"
        if job.done:
            numbers += f", {(job.total - job.done) / rate:.0f} s left"
        return status_text(f"{job.activity[:1].upper()}{job.activity[1:]}.", numbers, job.done / job.total)

    def ending(self, session: Session, job: Job, sheet: Sheet | None, kind: str, content: object) -> Updates:
        if kind == "failed":
            return self.refusal(content)
        if kind == "cancelled":
            return {self.status: status_text("Stopped.")} if session.job is job else gr.skip()
        words = f"Done: {content[0].title if len(content) == 1 else f'{len(content)} pictures'}."
        updates = {self.status: status_text(words)} | self.choice(session, content[0])
        if sheet is not None:
            keys = [picture.key for picture in content]
            updates[self.live] = self.live_value(sheet, keys if len(keys) == sheet.number else keys[:1] * sheet.number)
        return updates

    def refusal(self, error: BaseException) -> Updates:
        gr.Warning(escape(str(error)))
        return {self.status: status_text(str(error), is_error=True)}

    def _choose_picture(self, request: gr.Request, event: gr.EventData) -> Updates:
        session = self.session_of(request)
        for picture in session.pictures:
            if picture.key == event.key:
                return self.choice(session, picture)
        gr.Warning("this picture is no longer kept")
        return gr.skip()

    def choice(self, session: Session, picture: Picture) -> Updates:
        return {
            self.gallery: self.gallery_value(session, picture),
            self.details: details_text(picture),
            self.command: gr.Textbox(value=picture.command, visible=True),
        }

    def take_picture(self, request: gr.Request, event: gr.EventData) -> Updates:
        session, name = self.session_of(request), Path(str(event.name)).name
        session.upload = session.drop = None
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
        shown = session.folder / "given.png"
        write_png(image, shown, durable=False)
        session.drop = drop_value(url(shown, may_change=True), name, note or name)
        return {self.drop: session.drop}

    def _save_all(self, request: gr.Request) -> Updates:
        session = self.session_of(request)
        if not session.pictures:
            gr.Warning("there are no pictures yet")
            return gr.skip()
        path = session.folder / "pictures.zip"
        self.worker.run_soon(lambda job: write_zip(session.pictures, path))  # by the thread that also drops pictures
        return {self.save: {"src": url(path, may_change=True), "name": path.name}}


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
