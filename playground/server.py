"""The server of the page: what Gradio is told, which paths are answered, where files lie, and how it ends."""

import json
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from playground.page_request import Model
from playground.worker import Worker
from utils.core.files import UserError

log = logging.getLogger(__name__)

API = "/gradio_api"
EVENT, ANSWERS = f"{API}/queue/join", f"{API}/queue/data"
EXACT = {"/", "/config", "/config/", "/theme.css", "/favicon.ico", EVENT, ANSWERS, f"{API}/startup-events"}
EXACT |= {f"{API}/{name}" for name in ("theme.css", "upload", "upload_progress", "cancel")}
BEGINNINGS = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")
FILE = f"{API}/file="
LOCAL = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = 10**5  # of an event: the fields of the page, and no file
# Read by Gradio and by what it imports, so they are set before it is. It would also keep a record of each event, and
# summarise all of them after each.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}


class Guard:
    """ASGI middleware: 404 for every other path. Gradio would fetch addresses, and answer calls of other programs.

    With `hosts`, also for any other `Host`: a foreign site could point its own domain at this machine.
    With `same_origin`, also for requests that the page of another server sends. `is_open` says whether a session has
    answers to fetch, and `fault_of` why an event is refused, with 422. Where Gradio fails, one line is logged.
    """

    def __init__(
        self,
        app: ASGIApp,
        folder: Path,
        hosts: Collection[str] = (),
        same_origin: bool = True,
        is_open: Callable[[str], bool] = lambda session: True,
        fault_of: Callable[[object], str | None] = lambda event: None,
    ) -> None:
        self.app, self.folder, self.hosts, self.same_origin = app, folder.resolve(), hosts, same_origin
        self.is_open, self.fault_of = is_open, fault_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def passed(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        status, fault = 404, "not found"
        try:
            if self.knows(dict(scope["headers"])) and self.allows(scope["path"], scope["query_string"]):
                status, fault = 422, None
                if scope["path"] == EVENT and scope["method"] == "POST":
                    event, receive = await read_event(receive)
                    fault = self.fault_of(event)
            if fault is None:
                await self.app(scope, receive, passed)
                return
        except Exception as error:  # whatever Gradio fails at, or no JSON
            fault = f"cannot be answered: {type(error).__name__}"
            log.warning("%s %.100s %s", scope["method"], scope["path"], fault)
        if not has_begun:
            await JSONResponse({"detail": fault}, status)(scope, receive, send)

    def knows(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a request calls this machine by a name that it has, and comes from its own page or from none."""
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        try:
            name, source = urlsplit(f"//{host}").hostname, urlsplit(origin).netloc
        except ValueError:  # not a host name
            return False
        return (not self.hosts or name in self.hosts) and (not self.same_origin or not origin or source == host)

    def allows(self, path: str, query: bytes = b"") -> bool:
        """Whether the page needs this path, a decoded one."""
        if "\0" in (whole := unquote(path)) or ".." in whole:
            return False
        if path.startswith(FILE):
            file = Path(whole.removeprefix(FILE))  # compared unresolved too: an address is not a relative path
            return file.is_relative_to(self.folder) and file.resolve().is_relative_to(self.folder)
        if path == ANSWERS:
            return self.is_open(parse_qs(query.decode("latin-1")).get("session_hash", [""])[0])
        return path in EXACT or path.startswith(BEGINNINGS)


async def read_event(receive: Receive) -> tuple[object, Receive]:
    """The JSON of a request, and a function that receives the request again.

    Raises `ValueError` if it is too large, no JSON, or has a lone surrogate, which no answer could encode.
    """
    body, is_whole = b"", False
    while not is_whole:
        message = await receive()
        body += message.get("body", b"")
        is_whole = not message.get("more_body", False)
        if len(body) > MOST_BYTES:
            raise ValueError("too many bytes")
    json.dumps(event := json.loads(body), ensure_ascii=False).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return event, again


def check_port(host: str, port: int) -> None:
    """Raise `UserError` if nothing can listen there."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot listen at {host}, port {port} ({reason}): give another --port or --host") from None


@contextmanager
def serve(model: Model, host: str, port: int, *, share: bool = False) -> Iterator[tuple[str, str | None, Worker]]:
    """Serve the page of a model; yield its address, the public one if it is shared, and the worker.

    All files lie in a temporary folder, which is removed at the end.
    """
    os.environ |= QUIET
    with tempfile.TemporaryDirectory(prefix="playground-", ignore_cleanup_errors=True) as folder:
        files, uploads = Path(folder, "files"), Path(folder, "uploads")
        files.mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        from playground.page import PlaygroundPage, launch  # imports Gradio

        worker = Worker(model, files)
        page = PlaygroundPage(worker, uploads)
        try:
            hosts = LOCAL if host in LOCAL and not share else ()
            checks = {"is_open": page.is_open, "fault_of": page.fault_of}
            guard = [Middleware(Guard, folder=files, hosts=hosts, same_origin=not share, **checks)]
            address, public = launch(page, host, port, share, guard)
            if share and public is None:
                raise UserError("there is no public link: check the network, or leave out --share")
            yield address, public, worker
        finally:
            worker.close()
            if (server := getattr(page.blocks, "server", None)) is not None:
                server.config.timeout_graceful_shutdown = 1  # uvicorn's: it would wait for the streams of open pages
                logging.getLogger("uvicorn.error").disabled = True  # it would print a traceback for each
            page.blocks.close(verbose=False)
