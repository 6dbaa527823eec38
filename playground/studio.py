"""The studio: one thread that does all the work of the model, the requests that wait for it, and what pages have.

A page is known by the hash that Gradio gives it. Its pictures lie in a folder of its own, which goes when it does.
"""

import itertools
import json
import queue
import secrets
import shutil
import threading
import time
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from playground.asks import Model
from playground.uploads import Upload
from utils.core.files import UserError
from utils.runtime.device import give_back_memory

WAITING = 16  # requests that may wait for their turn
PAGES = 200  # whose pictures are kept; a page that was never heard to go is forgotten once there are more
KEPT = 100  # pictures of a page
TELL = 0.25  # seconds between two reports of how far a request is


class Stopped(Exception):
    """A request was stopped by its page, or its page has gone."""


@dataclass(frozen=True)
class News:
    """What a job has to say: pictures of a level, as a sheet or as the file of a map, or that it has ended."""

    kind: str  # shown, done, stopped or failed
    content: object = None


class Job:
    """One request: what is to be done, how far it is, and what it has to say."""

    def __init__(self, work: Callable[["Job"], object], total: int = 1, at_once: int = 1) -> None:
        self.work, self.total, self.at_once = work, total, at_once
        self.done = 0  # tokens of `total`, each of which is written for `at_once` pictures
        self.between: Callable[[], None] = lambda: None  # is called between two tokens
        self.begun: float | None = None  # when its turn came
        self.activity = ""  # in words
        self.news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._stop = threading.Event()

    def stop(self) -> None:
        """Have it end at the next token, or before its turn."""
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def count(self, number: int) -> None:
        """Count tokens as written; raises `Stopped` if the job is to end."""
        if self.is_stopped:
            raise Stopped
        self.done += number
        self.between()

    def show(self, content: object) -> None:
        """Hand something over to the page."""
        self.news.put(News("shown", content))

    def run(self) -> None:
        """Do the work, and say how it ended."""
        self.begun = time.monotonic()
        try:
            self.count(0)
            self.news.put(News("done", self.work(self)))
        except Stopped:
            self.news.put(News("stopped"))
        except Exception as error:  # the page says it, and the thread goes on with what others want
            self.news.put(News("failed", error))

    @property
    def rate(self) -> float:
        """Tokens a second, so far."""
        return self.done / max(time.monotonic() - self.begun, 1e-3) if self.begun else 0.0


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a page: its file, what was asked for and how it is shown."""

    key: str  # unique
    path: Path
    title: str
    settings: dict[str, str]
    command: str
    note: str  # which file of the command this is


@dataclass(eq=False)
class Page:
    """What a page has: its folder, its pictures, the newest first, and what it works with."""

    folder: Path
    pictures: tuple[Picture, ...] = ()  # replaced as a whole, since other threads read it
    unit: int | None = None
    upload: Upload | None = None
    map_path: Path | None = None  # of the atlas that it has drawn
    shown: list[Path] = field(default_factory=list)  # files of the request that runs or ran last
    numbers: Iterator[int] = field(default_factory=itertools.count)  # of its files
    single: dict[str, Path] = field(default_factory=dict)  # files that there is one of: the archive, …
    job: Job | None = None

    def new_path(self, name: str) -> Path:
        """A file that does not exist yet, of this name behind a number; what is saved from the page is called so."""
        return self.folder / f"{next(self.numbers):05d}_{name}"

    def add(self, pictures: list[Picture]) -> None:
        """Keep pictures, the first of them in front, and drop the oldest ones and their files."""
        everything = (*pictures, *self.pictures)
        self.pictures = everything[:KEPT]
        for picture in everything[KEPT:]:
            picture.path.unlink(missing_ok=True)

    def keep_one(self, name: str, path: Path) -> None:
        """Keep a file in place of the one before it."""
        if name in self.single:
            self.single[name].unlink(missing_ok=True)
        self.single[name] = path

    def find(self, key: str) -> Picture:
        """A picture by its key; raises `UserError` if it is not there any more."""
        for picture in self.pictures:
            if picture.key == key:
                return picture
        raise UserError("this picture is not kept any more")

    def forget_shown(self) -> None:
        """Remove the files that showed the last request, but for the map that is still shown."""
        for path in self.shown:
            if path != self.map_path:
                path.unlink(missing_ok=True)
        self.shown = [path for path in self.shown if path == self.map_path]


def write_zip(pictures: tuple[Picture, ...], path: Path) -> None:
    """Pack pictures, the newest first, with commands.txt and settings.json, which say how each was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines, settings = [], {}
    with zipfile.ZipFile(path, "w") as archive:  # pictures are compressed already
        for picture in pictures:
            name = picture.path.name
            archive.write(picture.path, name)
            lines += [f"# {name}: {picture.title}; {picture.note}", picture.command, ""]
            settings[name] = picture.settings | {"command": picture.command}
        archive.writestr("commands.txt", "\n".join(lines))
        archive.writestr("settings.json", json.dumps(settings, indent=2, ensure_ascii=False))


class Studio:
    """Works for pages in turn, on a model, with a folder for their files."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.model, self.folder = model, folder
        self._pages: OrderedDict[str, Page] = OrderedDict()
        self._jobs: deque[Job] = deque()
        self._errands: deque[Job] = deque()  # what takes a moment, and is done between two tokens of a job
        self._running: Job | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="studio", daemon=True)
        self._thread.start()

    # --- Pages ---

    def page(self, name: str) -> Page:
        """The page of this name, a new one at its first request."""
        with self._changed:
            if name not in self._pages:
                self._pages[name] = Page(self.folder / secrets.token_hex(16))
            self._pages.move_to_end(name)
            page, oldest = self._pages[name], next(iter(self._pages))
            is_full = len(self._pages) > PAGES
        if is_full:
            self.leave(oldest)
        return page

    def leave(self, name: str) -> None:
        """A page has gone: stop what it wants, and remove what it has."""
        with self._changed:
            page = self._pages.pop(name, None)
        if page is not None:
            self.stop(page)
            # By the thread, which may be writing a file there, and is stopped before it comes to this.
            self._put(Job(lambda job: shutil.rmtree(page.folder, ignore_errors=True)), self._errands)

    # --- Work ---

    def ask(self, page: Page, work: Callable[[Job], object], total: int = 1, at_once: int = 1) -> Job:
        """Queue a request of a page; the one before it ends. Raises `UserError` if too many wait."""
        with self._changed:
            self.stop(page)
            if len(self._jobs) >= WAITING:
                raise UserError(f"{WAITING} requests are waiting already: try again in a moment")
            page.job = Job(work, total, at_once)
            page.job.between = self._run_errands
            self._put(page.job, self._jobs)
        return page.job

    def do(self, work: Callable[[Job], object]) -> object:
        """Do something that takes a moment, before other requests, and return its result or raise what it raises."""
        job = Job(work)
        self._put(job, self._errands)
        news = job.news.get()
        if news.kind == "failed":
            raise news.content
        return news.content

    def stop(self, page: Page) -> None:
        """End the request of a page, if it has one."""
        with self._changed:
            if page.job is None:
                return
            page.job.stop()
            if page.job in self._jobs:
                self._jobs.remove(page.job)
                page.job.run()  # says that it was stopped

    def before(self, job: Job) -> int:
        """Requests whose turn comes before that of this one."""
        with self._changed:
            return self._jobs.index(job) + (self._running is not None) if job in self._jobs else 0

    def close(self) -> None:
        """End all work, and wait a moment for it."""
        with self._changed:
            self._is_closed = True
            for job in (*self._jobs, *([self._running] if self._running else [])):
                job.stop()
            self._changed.notify_all()
        self._thread.join(timeout=2)

    def _put(self, job: Job, jobs: deque[Job]) -> None:
        with self._changed:
            jobs.append(job)
            self._changed.notify_all()

    def _run_errands(self) -> None:
        while self._errands:
            self._errands.popleft().run()

    def _work(self) -> None:
        """What the thread does. It is the only one that uses the model, so PyTorch keeps one pool of threads."""
        torch.set_grad_enabled(False)
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._errands or self._jobs or self._is_closed)
                if self._is_closed:
                    return
                self._running = self._jobs.popleft() if self._jobs and not self._errands else None
            self._run_errands()
            if self._running is not None:
                self._running.run()
                give_back_memory()
