"""What the server answers at all: the paths that the page needs, and no file but those of its pages."""

from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from urllib.parse import unquote, urlsplit

Scope = dict[str, object]
Receive = Callable[[], Awaitable[dict]]
Send = Callable[[dict], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api"
EXACT = {"/", "/config", "/config/", "/theme.css", "/favicon.ico", f"{API}/startup-events"}
EXACT |= {f"{API}/{name}" for name in ("theme.css", "upload", "upload_progress", "queue/join", "queue/data", "cancel")}
BEGINNINGS = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")
FILE = f"{API}/file="


class Guard:
    """ASGI middleware: 404 for every other path. Gradio would fetch addresses, and answer calls of other programs.

    With `hosts`, also for every other name of this machine: a foreign page could have its own name lead here.
    """

    def __init__(self, app: App, folder: Path, hosts: Collection[str] = ()) -> None:
        self.app, self.folder, self.hosts = app, folder.resolve(), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http" or (self.knows(dict(scope["headers"])) and self.allows(scope["path"])):
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"not found"})

    def knows(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a request calls this machine by a name that it has."""
        return not self.hosts or urlsplit(f"//{headers.get(b'host', b'').decode('latin-1')}").hostname in self.hosts

    def allows(self, path: str) -> bool:
        """Whether the page needs this path, a decoded one."""
        if path.startswith(FILE):
            return Path(unquote(path.removeprefix(FILE))).resolve().is_relative_to(self.folder)
        return path in EXACT or (path.startswith(BEGINNINGS) and ".." not in path)
