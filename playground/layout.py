"""The layout of the page: its components, and the values that they show."""

import time
from html import escape
from pathlib import Path
from urllib.parse import quote

import gradio as gr

from playground.jobs import Sheet
from playground.page_request import FIELDS, MAX_NUMBER, Model, label_choices, recipe_values
from playground.uploads import MOST_BYTES
from playground.worker import Picture, Session
from utils.core.size import Size

HERE = Path(__file__).parent
STEPS = (2, 60)  # of a walk
LIVE_HINT = "Choose a unit of the map, or press Generate."
DROP_HINT = "Drop a picture here, click to choose one, or paste it"


def source(name: str) -> str:
    """A file beside this one: a script of a component, or the style."""
    return (HERE / name).read_text(encoding="utf-8")


def url(path: Path, *, may_change: bool = False) -> str:
    """The address of a file of a page; a new one each time if the file may have changed."""
    return f"gradio_api/file={quote(str(path))}" + (f"?{time.time_ns()}" if may_change else "")


def drop_value(src: str = "", name: str = "", say: str = DROP_HINT) -> dict:
    """What the place for a picture shows."""
    return {"src": src, "name": name, "say": say}


def status_text(words: str, numbers: str = "", share: float | None = None, *, is_error: bool = False) -> str:
    """How far a request is: only the words are read aloud, since numbers change often."""
    role = "alert" if is_error else "status"
    bar = "" if share is None else f'<progress value="{share:.3f}" aria-label="tokens written"></progress>'
    return f'<p role="{role}">{escape(words)}</p><div>{bar}<span>{escape(numbers)}</span></div>'


def details_text(picture: Picture | None) -> str:
    """The chosen picture, its settings, and where it can be saved."""
    if picture is None:
        return "<h2>Chosen picture</h2><p>Choose a picture to see its settings and the command that makes it again.</p>"
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in picture.settings.items())
    kind = {".png": "PNG", ".webp": "WebP"}[picture.path.suffix]
    return (
        f'<h2>Chosen picture</h2><div class="picked"><img src="{url(picture.path)}" alt="{escape(picture.title)}">'
        f'<div><dl>{rows}</dl><a class="save" id="save-picture" href="{url(picture.path)}" '
        f'download="{picture.path.name}">Download {kind}</a></div></div>'
        f"<p>With the command below, {escape(picture.note)}.</p>"
    )


def scripted(name: str, value: dict, **more: object) -> gr.HTML:
    """A component that the script of this name draws from its value."""
    script = source(f"{name}.js")
    return gr.HTML(value, html_template="", js_on_load=script, elem_id=name, apply_default_css=False, **more)


class Layout:
    """The components of the page, with what they show at first; inside a `gr.Blocks`."""

    def __init__(self, model: Model, first_map: Path) -> None:
        self.model, self.cascade = model, model.cascade
        size = Size.of(self.cascade.image_size)
        self.ratio, self.first_map = f"{size.width} / {size.height}", first_map
        grids = [stage.config.fine.shown for stage in self.cascade.stages]
        gr.HTML(
            f"<h1>{escape(model.path.resolve().name)}</h1>"
            f"<p>This model makes pictures of {size.shown} pixels from coarse to fine: a condition, one of "
            f"{len(self.cascade.codebooks[0])} units of a map, then tokens in {len(grids)} stages "
            f"({', '.join(grids)}). Everything runs on the machine that serves this page; "
            "nothing is sent anywhere else.</p>",
            elem_id="intro",
        )
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=4, min_width=320):
                self._add_map()
                self._add_settings()
                self._add_sampling()
                self._add_picture()
                self._add_walk()
            with gr.Column(scale=7, min_width=320):
                self._add_results()

    def _add_map(self) -> None:
        places = self.cascade.codebooks[0].coordinates.tolist()
        shape = [max(place[axis] for place in places) + 1 for axis in (0, 1)]
        with gr.Column(elem_classes="card first"):
            gr.HTML("<h2>Condition map</h2><p>Each tile is a unit. Choose one, and pictures of it are made.</p>")
            self.map = scripted("map", self.map_value(None), places=places, shape=shape, ratio=self.ratio)
            self.chosen = gr.HTML(self.chosen_text(None), elem_id="chosen")
            with gr.Row():
                self.any_unit = gr.Button("Any unit", size="sm", elem_id="any-unit", scale=2, min_width=90)
                self.atlas = gr.Button("Draw one sample per unit", size="sm", elem_id="atlas", scale=3, min_width=170)

    def _add_settings(self) -> None:
        with gr.Column(elem_classes="card third"):
            self.number = gr.Slider(1, MAX_NUMBER, 9, step=1, label="Pictures", elem_id="number", buttons=[])
            with gr.Row():
                self.seed = gr.Number(0, label="Seed", precision=0, elem_id="seed", min_width=90)
                self.dice = gr.Button("New seed", size="sm", elem_id="dice", min_width=90)
            self.label = gr.Dropdown(
                label_choices(self.cascade.labels), value=[], multiselect=True, elem_id="labels",
                label="Labels of each picture; without a choice they are drawn", visible=bool(self.cascade.labels),
            )  # fmt: skip
            with gr.Row():
                self.go = gr.Button("Generate", variant="primary", elem_id="go")
                self.stop = gr.Button("Stop", elem_id="stop")

    def _add_sampling(self) -> None:
        self.sampling: list[gr.Number] = []
        guided = [bool(stage.config.transformer.condition_dropout) for stage in self.cascade.stages]
        with gr.Accordion("Sampling of each stage", open=False, elem_id="sampling", elem_classes="card"):
            if not all(guided):
                which = ", ".join(str(number) for number, can_guide in enumerate(guided) if not can_guide)
                gr.HTML(f"<p>No guidance in stage {which}: trained without <code>condition_dropout</code>.</p>")
            for number, (stage, config) in enumerate(zip(self.cascade.stages, self.cascade.configs, strict=True)):
                values = recipe_values(config)
                gr.HTML(f"<h3>Stage {number}: {stage.config.fine.shown} tokens</h3>")
                with gr.Row(elem_classes="numbers"):
                    for (key, name), value in zip(FIELDS.items(), values, strict=True):
                        whole = {"precision": 0} if "beam" in key else {"step": 0.05}
                        self.sampling.append(
                            gr.Number(
                                value, label=name, min_width=80, **whole,
                                visible=key != "guidance_scale" or guided[number], elem_id=f"{key}-{number}",
                            )
                        )  # fmt: skip
            self.recipe = gr.Button("Back to the recipe's settings", size="sm", elem_id="recipe")

    def _add_picture(self) -> None:
        rows = self.cascade.stages[0].config.fine.height
        with gr.Accordion("Start from a picture", open=False, elem_id="picture", elem_classes="card"):
            self.drop = scripted("drop", drop_value(), most=MOST_BYTES)
            self.like = gr.Button("More like it", size="sm", elem_id="like")
            with gr.Row():
                stages = range(1, len(self.cascade.stages))
                self.from_stage = gr.Dropdown(
                    list(stages), value=stages[0] if stages else None, label="Stage", elem_id="from-stage",
                    min_width=90, visible=bool(stages),
                )  # fmt: skip
                self.detail = gr.Button(
                    "New detail from this stage", size="sm", elem_id="detail", scale=2, visible=bool(stages)
                )
            with gr.Row():
                self.keep_rows = gr.Slider(
                    1, max(2, rows - 1), max(1, rows // 2), step=1, label=f"Row, of {rows}", elem_id="rows",
                    visible=rows > 1, buttons=[],
                )  # fmt: skip
                self.complete = gr.Button(
                    "Complete it below this row", size="sm", elem_id="complete", scale=2, visible=rows > 1
                )

    def _add_walk(self) -> None:
        last = len(self.cascade.codebooks[0]) - 1
        with gr.Accordion("Walk over the map", open=False, elem_id="walk", elem_classes="card"):
            with gr.Row():
                self.start = gr.Number(0, label=f"From unit, 0 to {last}", precision=0, elem_id="from", min_width=110)
                self.take_start = gr.Button("Take the chosen unit", size="sm", elem_id="take-from")
            with gr.Row():
                self.end = gr.Number(last, label=f"To unit, 0 to {last}", precision=0, elem_id="to", min_width=110)
                self.take_end = gr.Button("Take the chosen unit", size="sm", elem_id="take-to")
            self.steps = gr.Slider(*STEPS, 24, step=1, label="Steps", elem_id="steps", buttons=[])
            self.walk = gr.Button("Walk", variant="primary", elem_id="walk-go")

    def _add_results(self) -> None:
        with gr.Row(elem_id="results", equal_height=False):
            with gr.Column(elem_id="shelf", scale=5, min_width=300):
                with gr.Column(elem_classes="card second"):
                    gr.HTML("<h2>Pictures</h2>")
                    self.status = gr.HTML(status_text("Ready."), elem_id="status")
                    self.live = scripted("live", self.live_value())
                with gr.Column(elem_classes="card fifth"):
                    with gr.Row(elem_classes="head"):
                        gr.HTML("<h2>Gallery</h2>")
                        self.zip = gr.Button("Download all as ZIP", size="sm", elem_id="zip", scale=0, min_width=170)
                    self.gallery = scripted("gallery", self.gallery_value(None))
                    self.save = scripted("save", {"src": "", "name": ""})
            with gr.Column(elem_classes="card fourth", scale=4, min_width=270):
                self.details = gr.HTML(details_text(None), elem_id="details")
                self.command = gr.Textbox(
                    label="The command that makes it again", lines=2, max_lines=12, interactive=False,
                    buttons=["copy"], elem_id="command", visible=False,
                )  # fmt: skip

    def map_value(self, session: Session | None) -> dict:
        """The picture of the map, and the chosen unit."""
        own = session and session.map
        src = url(own, may_change=True) if own else url(self.first_map)
        return {"src": src, "chosen": session.unit if session else None}

    def chosen_text(self, unit: int | None) -> str:
        """The chosen unit, in words."""
        return f"<p>Chosen: <strong>{'any unit, by its use' if unit is None else f'unit {unit}'}</strong></p>"

    def live_value(self, sheet: Sheet | None = None, keys: list[str] | None = None) -> dict:
        """The pictures of the request that runs, which can be chosen once they have keys."""
        value = {"number": 0, "columns": 1, "src": "", "name": ""}
        if sheet is not None:
            value = {"number": sheet.number, "columns": sheet.columns, "name": sheet.name}
            value["src"] = url(sheet.path, may_change=True)
        return value | {"keys": keys or [], "ratio": self.ratio, "hint": LIVE_HINT}

    def gallery_value(self, session: Session | None, chosen: Picture | None = None) -> dict:
        """All pictures of a session."""
        items = [
            {"key": picture.key, "src": url(picture.path), "alt": picture.title, "ratio": self.ratio}
            for picture in (session.pictures if session else ())
        ]
        return {"items": items, "chosen": chosen.key if chosen else None, "hint": "Nothing yet."}
