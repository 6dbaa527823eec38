"""The server of the page: what Gradio is told, which paths are answered, where files lie, and how it ends."""

import logging
import os
import socket
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from playground.page_request import Model
from playground.worker import Worker
from utils.core.files import UserError

API = "/gradio_api"
EXACT = {"/", "/config", "/config/", "/theme.css", "/favicon.ico"}
EXACT |= {f"{API}/queue/{name}" for name in ("join", "data")}
EXACT |= {f"{API}/{name}" for name in ("startup-events", "theme.css", "upload", "upload_progress", "cancel")}
BEGINNINGS = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")
FILE = f"{API}/file="
LOCAL = ("127.0.0.1", "localhost", "::1")
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
    With `same_origin`, also for requests that the page of another server sends.
    """

    def __init__(self, app: ASGIApp, folder: Path, hosts: Collection[str] = (), same_origin: bool = True) -> None:
        self.app, self.folder, self.hosts, self.same_origin = app, folder.resolve(), hosts, same_origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (self.knows(dict(scope["headers"])) and self.allows(scope["path"])):
            await self.app(scope, receive, send)
        else:
            await JSONResponse({"detail": "not found"}, 404)(scope, receive, send)

    def knows(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a request calls this machine by a name that it has, and comes from its own page or from none."""
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        try:
            name, source = urlsplit(f"//{host}").hostname, urlsplit(origin).netloc
        except ValueError:  # not a host name
            return False
        return (not self.hosts or name in self.hosts) and (not self.same_origin or not origin or source == host)

    def allows(self, path: str) -> bool:
        if "\0" in (whole := unquote(path)) or ".." in whole:
            return False
        if path.startswith(FILE):
            file = Path(whole.removeprefix(FILE))  # compared unresolved too: an address is not a relative path
            return file.is_relative_to(self.folder) and file.resolve().is_relative_to(self.folder)
        return path in EXACT or path.startswith(BEGINNINGS)


def check_port(host: str, port: int) -> None:
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
            guard = [Middleware(Guard, folder=files, hosts=hosts, same_origin=not share)]
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
