"""The worker: one thread that runs all jobs of the model in turn, their queue, and the session of each open page.

A session is known by the hash that Gradio gives its page, and lives on if the page is loaded again. Its pictures lie in
a folder of its own, which goes when it does.
"""

import itertools
import json
import logging
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

from playground.page_request import Model
from playground.uploads import Upload
from utils.core.files import UserError
from utils.runtime.device import give_back_memory

log = logging.getLogger(__name__)

MAX_WAITING = 16  # jobs in the queue
MAX_SESSIONS = 200  # the oldest one is closed beyond that: its page may have gone without a word
MAX_PICTURES = 100  # of a session
KEPT_SECONDS = 600  # how long a session is kept for a page that is loaded again or a phone that wakes up
GONE_SECONDS = 2  # how long a reloaded page waits until the server has seen the old one leave
REPORT_SECONDS = 0.25  # between two reports of the progress of a job


class Cancelled(Exception):
    """A job was cancelled by its page, or its page has been closed."""


class Job:
    """A request of a page: its work, its progress in tokens of all its pictures, and what it reports.

    A message is "shown" with pictures of a level, as a sheet or as the file of a map, or how the job has ended: "done"
    with the result of its work, "cancelled" with None, or "failed" with the error.
    """

    def __init__(self, work: Callable[["Job"], object], total: int = 1) -> None:
        self.work, self.total, self.done = work, total, 0
        self.cancelled = threading.Event()  # takes effect at the next token, or before the job's turn
        self.between: Callable[[], None] = lambda: None  # is called between two tokens
        self.start: float | None = None  # when its turn came
        self.ended = threading.Event()
        self.activity = ""  # in words
        self.messages: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()

    def count(self, number: int) -> None:
        """Count tokens as written; raises `Cancelled` if the job is to end."""
        if self.cancelled.is_set():
            raise Cancelled
        self.done += number
        self.between()

    def run(self) -> None:
        self.start = time.monotonic()
        try:
            self.count(0)
            self.messages.put(("done", self.work(self)))
        except Cancelled:
            self.messages.put(("cancelled", None))
        except Exception as error:  # the page shows it, and the thread goes on with the next job
            if not isinstance(error, UserError):
                log.exception("a request failed")
            self.messages.put(("failed", error))
        self.ended.set()


@dataclass(frozen=True, eq=False)
class Picture:
    key: str  # unique
    path: Path
    title: str
    settings: dict[str, str]
    command: str
    note: str  # which file of the command this is


@dataclass(eq=False)
class Session:
    """The state of one open page: its folder, its pictures, the newest first, and what it works with."""

    folder: Path
    pictures: tuple[Picture, ...] = ()  # replaced as a whole, since other threads read it
    unit: int | None = None
    ends: tuple[int, ...] = ()  # of a walk: two units, or the first one alone; none if clicks make pictures of a unit
    upload: Upload | None = None
    drop: dict | None = None  # what the place for a picture shows of it
    numbers: Iterator[int] = field(default_factory=itertools.count)  # of its pictures
    shown: Iterator[int] = field(default_factory=itertools.count)  # of the files that show a request while it runs
    job: Job | None = None
    sheet: Path | None = None  # the pictures of the running or the last request, side by side
    map: Path | None = None  # once a page has drawn an atlas of its own
    leaving: threading.Timer | None = None  # runs once the page has gone

    def next_shown(self, name: str) -> Path:
        """The file to show next: eight in turn, since the one before may be read while this one is written."""
        return self.folder / f"{name}_{next(self.shown) % 8}.png"

    def new_path(self, name: str) -> Path:
        """A new file, whose name ends so; downloads from the page have this name."""
        return self.folder / f"{next(self.numbers):05d}_{name}"

    def add(self, pictures: list[Picture]) -> None:
        everything = (*pictures, *self.pictures)
        self.pictures = everything[:MAX_PICTURES]
        for picture in everything[MAX_PICTURES:]:
            picture.path.unlink(missing_ok=True)


def write_zip(pictures: tuple[Picture, ...], path: Path) -> None:
    """Pack pictures, the newest first, with commands.txt and settings.json, which say how each was generated."""
    lines, settings = [], {}
    with zipfile.ZipFile(path, "w") as archive:  # pictures are compressed already
        for picture in pictures:
            name = picture.path.name
            archive.write(picture.path, name)
            lines += [f"# {name}: {picture.title}; {picture.note}", picture.command, ""]
            settings[name] = picture.settings | {"command": picture.command}
        archive.writestr("commands.txt", "\n".join(lines))
        archive.writestr("settings.json", json.dumps(settings, indent=2, ensure_ascii=False))


class Worker:
    """Runs the jobs of all sessions in turn, on one model, with a folder for their files."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.shared = Session(folder)  # its map is the one of all pages without their own
        self.background: Job | None = None
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._jobs: deque[Job] = deque()
        self._short_jobs: deque[Job] = deque()  # done between two tokens of another job
        self._running: Job | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def session(self, name: str, before: str = "") -> Session:
        """The session of this name: at its first request a new one, or that of the page `before`, if it has gone."""
        with self._changed:
            if before in self._sessions and name not in self._sessions:
                old = self._sessions[before]
                if self._changed.wait_for(lambda: old.leaving, GONE_SECONDS) and self._sessions.pop(before, None):
                    self._sessions[name] = old
            session = self._sessions.setdefault(name, Session(self.folder / secrets.token_hex(16)))
            if session.leaving:
                session.leaving.cancel()
                session.leaving = None
            self._sessions.move_to_end(name)
            if len(self._sessions) > MAX_SESSIONS:
                self.close_session(next(iter(self._sessions)))
        return session

    def leave_session(self, name: str) -> None:
        """A page has gone: cancel its job, and close its session unless it comes back."""
        with self._changed:
            if (session := self._sessions.get(name)) is not None and not session.leaving:
                self.cancel(session)
                session.leaving = threading.Timer(KEPT_SECONDS, self._close_left, [session])
                session.leaving.daemon = True
                session.leaving.start()
                self._changed.notify_all()

    def close_session(self, name: str) -> None:
        with self._changed:
            if (session := self._sessions.pop(name, None)) is not None:
                self.cancel(session)
                if session.leaving:
                    session.leaving.cancel()
                # In the thread, which may be writing a file there until the job is cancelled.
                self._put(Job(lambda job: shutil.rmtree(session.folder, ignore_errors=True)), self._short_jobs)

    def _close_left(self, session: Session) -> None:
        with self._changed:
            for name in [name for name, each in self._sessions.items() if each is session and each.leaving]:
                self.close_session(name)

    def submit(self, session: Session, job: Job) -> Job:
        """Queue a job of a session in place of the one before. Raises `UserError` if too many wait."""
        with self._changed:
            if len(self._jobs) - (session.job in self._jobs) >= MAX_WAITING:
                raise UserError(f"{MAX_WAITING} requests are waiting already: try again in a moment")
            self.cancel(session)
            session.job, job.between = job, self._run_short_jobs
            self._put(job, self._jobs)
        return job

    def run_soon(self, work: Callable[[Job], object]) -> object:
        """Do something short at the next token, before all queued jobs; return its result or raise its error."""
        job = Job(work)
        self._put(job, self._short_jobs)
        kind, content = job.messages.get()
        if kind == "failed":
            raise content
        return content

    def cancel(self, session: Session) -> None:
        with self._changed:
            if session.job is not None:
                session.job.cancelled.set()
            if session.job in self._jobs:
                self._jobs.remove(session.job)
                session.job.run()  # reports that it was cancelled

    def run_in_background(self, job: Job) -> None:
        """Run a job, once, while no other one waits: those that come are run between two of its tokens."""
        with self._changed:
            self.background, job.between = job, self._run_waiting
            self._changed.notify_all()

    def jobs_before(self, job: Job) -> int:
        with self._changed:
            return self._jobs.index(job) + (self._running is not None) if job in self._jobs else 0

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            for job in filter(None, (*self._jobs, *self._short_jobs, self._running, self.background)):
                job.cancelled.set()
            self._changed.notify_all()
        self._thread.join(timeout=2)

    def _put(self, job: Job, jobs: deque[Job]) -> None:
        with self._changed:
            if self._is_closed:  # the thread may have ended
                job.cancelled.set()
                job.run()  # reports that it was cancelled
                return
            jobs.append(job)
            self._changed.notify_all()

    def _run_short_jobs(self) -> None:
        while self._short_jobs:
            self._short_jobs.popleft().run()

    def _run_waiting(self) -> None:
        while True:
            self._run_short_jobs()
            with self._changed:
                self._running = self._jobs.popleft() if self._jobs else None
            if self._running is None:
                return
            self._running.run()
            give_back_memory()

    def _run(self) -> None:
        """The loop of the thread. It alone uses the model, so PyTorch keeps one pool of threads."""
        torch.set_grad_enabled(False)
        has_background = lambda: self.background is not None and self.background.start is None  # noqa: E731
        while not self._is_closed:
            with self._changed:
                self._changed.wait_for(lambda: self._short_jobs or self._jobs or has_background() or self._is_closed)
            self._run_waiting()
            if has_background():
                self.background.run()
                give_back_memory()
        self._run_waiting()  # all that wait report that they were cancelled
