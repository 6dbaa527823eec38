"""The layout of the page: its components, and the values that they show."""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import quote

import gradio as gr

from playground.jobs import Sheet
from playground.page_request import FIELDS, MAX_NUMBER, Model, label_choices, recipe_values
from playground.uploads import MOST_BYTES
from playground.worker import Job, Picture, Session
from utils.core.size import Size

HERE = Path(__file__).parent
STEPS = (2, 60)  # of a walk
CLOCK_SECONDS = 1  # between two looks at a map whose samples are being drawn
LIVE_HINT = "Click a tile of the map, or press Generate."
DROP_HINT = "Drop a picture here, click to choose one, or paste it"
HELP = {  # a line for each field of the sampling; the last three are for experts
    "temperature": "Higher: more varied, and more mistakes. Lower: safer, and more alike.",
    "top_p": "1 allows every choice; 0.9 leaves out the least likely ones, a tenth of all probability.",
    "guidance_scale": "Above 1 the details keep closer to the coarser picture, in twice the time.",
    "num_beam": "Versions of each picture that are written side by side; the likeliest one is kept. 1: no search.",
    "beam_width": "Ways in which each version is continued before they are compared.",
    "keep_beam": "Versions that go on after that; at most as many as there are beams.",
}
SCORES_HELP = "Scores say how likely the model finds what each stage has written: the closer to 0, the likelier."


def source(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def url(path: Path, *, may_change: bool = False) -> str:
    """The address of a file of a page; with `may_change` another one whenever the file has changed."""
    return f"gradio_api/file={quote(str(path))}" + (f"?{path.stat().st_mtime_ns}" if may_change else "")


def drop_value(src: str = "", name: str = "", say: str = DROP_HINT) -> dict:
    return {"src": src, "name": name, "say": say}


def status_text(words: str, numbers: str = "", share: float | None = None, *, is_error: bool = False) -> str:
    """How far a request is: only the words are read aloud, since numbers change often."""
    role = "alert" if is_error else "status"
    bar = "" if share is None else f'<progress value="{share:.3f}" aria-label="tokens written"></progress>'
    return f'<p role="{role}">{escape(words)}</p><div>{bar}<span>{escape(numbers)}</span></div>'


def details_text(picture: Picture | None) -> str:
    if picture is None:
        return "<h2>Chosen picture</h2><p>Choose a picture to see its settings and the command that makes it again.</p>"
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in picture.settings.items())
    kind = {".png": "PNG", ".webp": "WebP"}[picture.path.suffix]
    return (
        f'<h2>Chosen picture</h2><div class="picked"><img src="{url(picture.path)}" alt="{escape(picture.title)}">'
        f'<div><dl>{rows}</dl><a class="save" id="save-picture" href="{url(picture.path)}" '
        f'download="{picture.path.name}">Download {kind}</a></div></div>'
        f"<p>{SCORES_HELP if 'Scores' in picture.settings else ''} "
        f"With the command below, {escape(picture.note)}.</p>"
    )


def scripted(name: str, value: dict, **more: object) -> gr.HTML:
    script = source(f"{name}.js")
    return gr.HTML(value, html_template="", js_on_load=script, elem_id=name, apply_default_css=False, **more)


class Layout:
    """The components of the page, with what they show at first; inside a `gr.Blocks`."""

    def __init__(self, model: Model, shared: Session) -> None:
        self.model, self.cascade, self.shared = model, model.cascade, shared
        size = Size.of(self.cascade.image_size)
        self.ratio = f"{size.width} / {size.height}"
        self.grids = [stage.config.fine.shown for stage in self.cascade.stages]
        gr.HTML(
            f"<h1>{escape(model.path.resolve().name)}</h1><p>Draws pictures of {size.shown} pixels, from coarse to "
            "fine. It runs on the machine that serves this page; nothing is sent anywhere else.</p>",
            elem_id="intro",
        )
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=4, min_width=320):
                self._add_map()
                self._add_picture()
                self._add_sampling()
            with gr.Column(scale=7, min_width=320, elem_id="results"):
                self._add_settings()
                self._add_results()

    def _add_settings(self) -> None:
        with gr.Column(elem_classes="card", elem_id="settings"):
            with gr.Row():
                self.number = gr.Slider(
                    1, MAX_NUMBER, 9, step=1, label="Pictures", info="How many at once.", elem_id="number", scale=5,
                    min_width=140, buttons=[],
                )  # fmt: skip
                self.seed = gr.Number(
                    0, label="Seed", info="The same one, the same pictures.", precision=0, elem_id="seed", scale=4,
                    min_width=140,
                )  # fmt: skip
                with gr.Column(scale=3, min_width=140):
                    self.keep_seed = gr.Checkbox(
                        False, label="Keep this seed", info="Else each request has a new one.", elem_id="keep-seed"
                    )
                self.go = gr.Button("Generate", variant="primary", elem_id="go", scale=2, min_width=100)
                self.stop = gr.Button("Stop", elem_id="stop", min_width=60)
            self.label = gr.Dropdown(
                label_choices(self.cascade.labels), value=[], multiselect=True, elem_id="labels", label="Labels",
                info="Each picture has all that are chosen; without a choice they are drawn.",
                visible=bool(self.cascade.labels),
            )  # fmt: skip

    def _add_map(self) -> None:
        places = self.cascade.codebooks[0].coordinates.tolist()
        shape = [max(place[axis] for place in places) + 1 for axis in (0, 1)]
        with gr.Column(elem_classes="card", elem_id="atlas-card"):
            gr.HTML("<h2>Map</h2><p>Click a kind of picture; neighbours are alike.</p>")
            self.map = scripted("map", self.map_value(None), places=places, shape=shape, ratio=self.ratio)
            self.chosen = gr.HTML(self.chosen_text(None), elem_id="chosen")
            with gr.Row():
                self.any_unit = gr.Button("Any tile", size="sm", elem_id="any-unit", min_width=90)
                self.atlas = gr.Button("New samples", size="sm", elem_id="atlas", min_width=110)
            self.click = gr.Radio(
                [("makes pictures of a tile", "sample"), ("chooses the two ends of a walk", "walk")], value="sample",
                label="A click on the map", info="A walk turns a picture into another one, step by step.",
                elem_id="click", visible=len(places) > 1,
            )  # fmt: skip
            with gr.Column(visible=False, elem_id="walk") as self.walk_group:
                self.way = gr.HTML(elem_id="way")
                self.steps = gr.Slider(
                    *STEPS, 24, step=1, label="Steps", info="Pictures of the walk.", elem_id="steps", buttons=[]
                )
                self.walk = gr.Button("Walk", variant="primary", elem_id="walk-go")

    def _add_sampling(self) -> None:
        guided = [bool(stage.config.transformer.condition_dropout) for stage in self.cascade.stages]
        values = iter(recipe_values(self.cascade.configs))
        self.sampling: list[gr.Number] = []

        def add(keys: Iterable[str]) -> None:
            for key in keys:
                if key != "guidance_scale" or any(guided):
                    gr.HTML(f"<h3>{FIELDS[key]}</h3><p>{HELP[key]}</p>")
                whole = {"precision": 0} if "beam" in key else {"step": 0.05}
                with gr.Row(elem_classes="numbers"):
                    for number, grid in enumerate(self.grids):
                        self.sampling.append(
                            gr.Number(
                                next(values), label=f"Stage {number} ({grid})", min_width=80, **whole,
                                visible=key != "guidance_scale" or guided[number], elem_id=f"{key}-{number}",
                            )
                        )  # fmt: skip

        with gr.Accordion("How it draws", open=False, elem_id="sampling", elem_classes="card"):
            gr.HTML(
                "<p>A picture is written in stages, on finer and finer grids: the first one decides what it shows, the "
                "last one its details.</p>"
            )
            add(key for key in FIELDS if "beam" not in key)
            with gr.Accordion("Expert: beams", open=False, elem_id="expert"):
                add(key for key in FIELDS if "beam" in key)
            self.recipe = gr.Button("Back to the model's own settings", size="sm", elem_id="recipe")

    def _add_picture(self) -> None:
        rows = self.cascade.stages[0].config.fine.height
        with gr.Accordion("Start from a picture", open=False, elem_id="picture", elem_classes="card"):
            self.drop = scripted("drop", drop_value(), most=MOST_BYTES)
            gr.HTML("<p><strong>More like it</strong> makes other pictures of the tile that is nearest to it.</p>")
            self.like = gr.Button("More like it", size="sm", elem_id="like")
            with gr.Row():
                stages = range(1, len(self.cascade.stages))
                self.from_stage = gr.Dropdown(
                    [(f"Stage {number} ({self.grids[number]})", number) for number in stages],
                    value=stages[0] if stages else None, label="New detail from", elem_id="from-stage", min_width=90,
                    info="What the stages before it see stays.", visible=bool(stages),
                )  # fmt: skip
                self.detail = gr.Button("New detail", size="sm", elem_id="detail", visible=bool(stages), min_width=90)
            with gr.Row():
                self.keep_rows = gr.Slider(
                    1, max(2, rows - 1), max(1, rows // 2), step=1, label=f"Rows to keep, of {rows}", elem_id="rows",
                    info="The part below is made up.", visible=rows > 1, min_width=90, buttons=[],
                )  # fmt: skip
                self.complete = gr.Button("Complete it", size="sm", elem_id="complete", visible=rows > 1, min_width=90)

    def _add_results(self) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(elem_id="shelf", scale=5, min_width=300):
                with gr.Column(elem_classes="card", elem_id="pictures"):
                    gr.HTML("<h2>Pictures</h2>")
                    self.status = gr.HTML(status_text("Ready."), elem_id="status")
                    self.live = scripted("live", self.live_value())
                with gr.Column(elem_classes="card", elem_id="gallery-card"):
                    with gr.Row(elem_classes="head"):
                        gr.HTML("<h2>Gallery</h2>")
                        self.zip = gr.Button("Download all as ZIP", size="sm", elem_id="zip", scale=0, min_width=170)
                    self.gallery = scripted("gallery", self.gallery_value(None))
                    self.save = scripted("save", {"src": "", "name": ""})
            with gr.Column(elem_classes="card", elem_id="details-card", scale=4, min_width=270):
                self.details = gr.HTML(details_text(None), elem_id="details")
                self.command = gr.Textbox(
                    label="The command that makes it again", info="For a terminal, in the folder of this project.",
                    lines=2, max_lines=12, interactive=False, buttons=["copy"], elem_id="command", visible=False,
                )  # fmt: skip
        # The name of the session before the page was loaded again, and a clock while the map is being drawn.
        self.before, self.clock = gr.Textbox(visible=False), gr.Timer(CLOCK_SECONDS, active=False)

    def map_value(self, session: Session | None) -> dict:
        """The picture of the map, the chosen unit, and the ends of a walk, which are clicked if there are any.

        Without a session, as before the page was opened, nothing can be clicked: the answer to that would undo it.
        """
        is_open, session = session is not None, session or self.shared
        return {
            "is_open": is_open,
            "src": url(session.map or self.shared.map, may_change=True),
            "chosen": session.unit,
            "ends": session.ends,
        }

    def chosen_text(self, session: Session | None, job: Job | None = None) -> str:
        unit = session.unit if session else None
        text = f"Chosen: <strong>{'any tile' if unit is None else f'tile {unit}'}</strong>."
        drawn = f" Sharper samples are being drawn: {job.done / job.total:.0%}." if job else ""
        return f"<p>{text}{drawn}</p>"

    def way_text(self, ends: tuple[int, ...]) -> str:
        if len(ends) == 1:
            return f"<p>From tile {ends[0]}. Now click the tile where the walk ends.</p>"
        return (
            f"<p>From tile {ends[0]} to tile {ends[1]}. Click two others to change that: a walk between neighbours is "
            "smooth, one that goes far jumps.</p>"
        )

    def live_value(self, sheet: Sheet | None = None, keys: list[str] | None = None) -> dict:
        """The pictures of the request that runs, which can be chosen once they have keys."""
        value = {"number": 0, "columns": 1, "src": "", "name": "", "request": None}
        if sheet is not None:
            value = {name: getattr(sheet, name) for name in ("number", "columns", "name", "request")}
            value["src"] = url(sheet.path, may_change=True)
        return value | {"keys": keys or [], "ratio": self.ratio, "hint": LIVE_HINT}

    def gallery_value(self, session: Session | None, chosen: Picture | None = None) -> dict:
        items = [
            {"key": picture.key, "src": url(picture.path), "alt": picture.title, "ratio": self.ratio}
            for picture in (session.pictures if session else ())
        ]
        return {"items": items, "chosen": chosen.key if chosen else None, "hint": "Nothing yet."}
