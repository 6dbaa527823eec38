"""Plots that can be hovered and zoomed, as the JSON objects that plotly draws from, and their looks by theme."""

import json

import plotly.graph_objects as go

from models.codebook import Codebook
from reporting.run import Stage

MOST = 1000  # points of a curve
LOSSES = {"autoencoder": "mean squared error", "codebook": "quantization error", "transformer": "nats a token"}
LINES = {"light": ["#2763c4", "#b8500f"], "dark": ["#82b1ff", "#ffab70"]}  # training, validation
COLOURS = {
    "light": {"ink": "#1c2330", "soft": "#5a6372", "grid": "#e4e7ec", "paper": "#ffffff"},
    "dark": {"ink": "#e7eaf0", "soft": "#a0a9b8", "grid": "#2f3744", "paper": "#1a1f29"},
}


def themes() -> dict[str, dict]:
    """The two templates of plotly that a page switches between."""
    return {name: template(**colours) for name, colours in COLOURS.items()}


def template(ink: str, soft: str, grid: str, paper: str) -> dict:
    """A template in these colours."""
    axis = {"gridcolor": grid, "linecolor": grid, "zerolinecolor": grid, "tickcolor": soft, "tickfont": {"color": soft}}
    axis |= {"title": {"font": {"color": soft, "size": 13}}}
    layout = go.Layout(
        font={"color": ink, "family": "system-ui, sans-serif", "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"bgcolor": paper, "bordercolor": soft, "font": {"color": ink}},
        modebar={"bgcolor": paper, "color": soft, "activecolor": ink},
        xaxis=axis,
        yaxis=axis,
    )
    return {"layout": layout.to_plotly_json()}


def curves(stage: Stage) -> dict | None:
    """Training and validation loss by step; None where nothing was logged."""
    both = [row for row in stage.rows if "train_loss" in row and "val_loss" in row]
    lines = [
        line("training", [row for row in stage.rows if "train_loss" in row], "train_", 0),
        line("validation, a few images", both, "val_", 1, width=1.2, dash="dot"),
        line("validation", checkpoints(stage), "val_", 1, mode="lines+markers", marker={"size": 9}),
    ]
    figure = go.Figure([found for found in lines if found is not None])
    if not figure.data:
        return None
    figure.update_layout(
        hovermode="x unified",
        hoverdistance=-1,  # the nearest step, however far
        template="none",
        margin={"l": 62, "r": 12, "t": 36, "b": 44},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        xaxis={"title": {"text": "step"}, "rangemode": "tozero"},
        yaxis={"title": {"text": loss_name(stage)}, "type": "log", "tickvals": ticks(figure), "tickformat": "~g"},
    )
    return plain(figure)


def loss_name(stage: Stage) -> str:
    """What the stage's loss is."""
    config = (stage.logs["train"].config if "train" in stage.logs else None) or {}
    is_absolute = stage.kind == "autoencoder" and config.get("loss") == "l1"
    return "mean absolute error" if is_absolute else LOSSES[stage.kind]


def ticks(figure: go.Figure) -> list[float]:
    """Where a logarithmic axis is marked: at round numbers, more of them where the curves span little."""
    values = [value for trace in figure.data for value in trace.y if value > 0]
    marks = (1, 2, 5) if values and max(values) > 8 * min(values) else (1, 1.5, 2, 3, 4, 5, 6, 8)
    return [mark * 10.0**power for power in range(-6, 4) for mark in marks]


def checkpoints(stage: Stage) -> list[dict]:
    """The rows of what was measured at checkpoints, on all that validation takes."""
    return [row for row in stage.rows if "val_loss" in row and "train_loss" not in row]


def line(name: str, rows: list[dict], prefix: str, colour: int, **style: object) -> go.Scatter | None:
    """A curve of the loss of these rows; None of none."""
    if not rows:
        return None
    rows = [*rows[: -1 : -(-len(rows) // MOST)], rows[-1]]
    mode = "lines" if len(rows) > 1 else "markers"  # a line of one point would not be seen
    style = {"mode": mode, "line": {key: style.pop(key) for key in ("width", "dash") if key in style}} | style
    return go.Scatter(
        name=name,
        x=[row["step"] for row in rows],
        y=[row[f"{prefix}loss"] for row in rows],
        text=[remarks(row, prefix) for row in rows],
        hovertemplate="%{y:.4g}%{text}",
        meta=colour,
        **style,
    )


def remarks(row: dict, prefix: str) -> str:
    """What else the row says of the loss."""
    parts = []
    if (psnr := row.get(f"{prefix}psnr")) is not None:
        parts.append(f"{psnr:.1f} dB")
    if (accuracy := row.get(f"{prefix}accuracy")) is not None:
        parts.append(f"{accuracy:.1%} of tokens guessed right")
    if prefix == "val_" and "val_images" in row:
        parts.append(f"on {row['val_images']:,} images")
    return "".join(f", {part}" for part in parts)


def atlas(codebook: Codebook, uri: str, tile: tuple[int, int]) -> dict:
    """The picture of a codebook's units, of `tile` (height, width) pixels each, with their use where one points."""
    rows, columns = (int(side) + 1 for side in codebook.coordinates.amax(0))
    text: list[list[str | None]] = [[None] * columns for _ in range(rows)]
    counts: list[list[int | None]] = [[None] * columns for _ in range(rows)]
    total = int(codebook.counts.sum())
    for unit, (row, column) in enumerate(codebook.coordinates.tolist()):
        count = int(codebook.counts[unit])
        use = f"used {count:,} times, {100 * count / total:.2g} %" if total else "not counted yet"
        text[row][column], counts[row][column] = f"unit {unit}<br>{use}", count
    invisible = [[0, "rgba(0,0,0,0)"], [1, "rgba(0,0,0,0)"]]
    figure = go.Figure(
        go.Heatmap(z=counts, text=text, hovertemplate="%{text}<extra></extra>", hoverongaps=False,
                   colorscale=invisible, showscale=False)
    )  # fmt: skip
    figure.add_layout_image(
        source=uri, xref="x", yref="y", x=-0.5, y=-0.5, sizex=columns, sizey=rows, sizing="stretch", layer="below"
    )
    figure.update_layout(template="none", margin={"l": 0, "r": 0, "t": 0, "b": 0}, hovermode="closest")
    figure.update_xaxes(visible=False, range=[-0.5, columns - 0.5], constrain="domain")
    ratio = tile[0] / tile[1]
    figure.update_yaxes(visible=False, range=[rows - 0.5, -0.5], scaleanchor="x", scaleratio=ratio, constrain="domain")
    return plain(figure)


def plain(figure: go.Figure) -> dict:
    """A figure as plain lists and dictionaries."""
    return json.loads(figure.to_json())
