"""What the page says: values of components that are text, and the archive of its pictures."""

import json
import zipfile
from html import escape
from pathlib import Path
from urllib.parse import quote

from playground.studio import Made

DROP_HINT = "Drop a picture here, click to choose one, or paste it"


def url(path: Path) -> str:
    """The address of a file of a page."""
    return f"gradio_api/file={quote(str(path))}"


def drop_value(src: str = "", name: str = "", say: str = DROP_HINT) -> dict:
    """What the place for a picture shows."""
    return {"src": src, "name": name, "say": say}


def status_text(words: str, numbers: str = "", share: float | None = None, *, is_error: bool = False) -> str:
    """How far a request is: only the words are read aloud, since numbers change often."""
    role = "alert" if is_error else "status"
    bar = "" if share is None else f'<progress value="{share:.3f}" aria-label="tokens written"></progress>'
    return f'<p role="{role}">{escape(words)}</p><div>{bar}<span>{escape(numbers)}</span></div>'


def details_text(made: Made | None) -> str:
    """The chosen picture, its settings, and where it can be saved."""
    if made is None:
        return "<h2>Chosen picture</h2><p>Choose a picture to see its settings and the command that makes it again.</p>"
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in made.settings.items())
    kind = {".png": "PNG", ".webp": "WebP"}[made.path.suffix]
    return (
        f'<h2>Chosen picture</h2><div class="picked"><img src="{url(made.path)}" alt="{escape(made.title)}">'
        f'<div><dl>{rows}</dl><a class="save" id="save-picture" href="{url(made.path)}" '
        f'download="{made.path.name}">Download {kind}</a></div></div>'
        f"<p>With the command below, {escape(made.note)}.</p>"
    )


def write_zip(pictures: tuple[Made, ...], path: Path) -> None:
    """Pack pictures, the newest first, with commands.txt and settings.json, which say how each was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines, settings = [], {}
    with zipfile.ZipFile(path, "w") as archive:  # pictures are compressed already
        for made in pictures:
            name = made.path.name
            archive.write(made.path, name)
            lines += [f"# {name}: {made.title}; {made.note}", made.command, ""]
            settings[name] = made.settings | {"command": made.command}
        archive.writestr("commands.txt", "\n".join(lines))
        archive.writestr("settings.json", json.dumps(settings, indent=2, ensure_ascii=False))
