"""Interactive plots, as the JSON objects that plotly draws from; report.js adds the colours of the theme."""

import json

import plotly.graph_objects as go

from models.codebook import Codebook
from reporting.run import Step

MOST = 1000  # points of a curve


def curves(step: Step, loss: str) -> dict | None:
    """Training and validation loss by step of the training; None if nothing was logged. `loss` is its name."""
    training = [row for row in step.rows if "train_loss" in row]
    lines = [
        line("training", training, "train_", 0),
        line("validation (subset)", [row for row in training if "val_loss" in row], "val_", 1, width=1.2, dash="dot"),
        line("validation", step.checkpoints, "val_", 1, mode="lines+markers", marker={"size": 9}),
    ]
    figure = go.Figure([trace for trace in lines if trace is not None])
    if not figure.data:
        return None
    figure.update_layout(
        hovermode="x unified",
        hoverdistance=-1,  # the nearest step, however far
        template="none",
        margin={"l": 62, "r": 12, "t": 36, "b": 44},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        xaxis={"title": {"text": "step"}, "rangemode": "tozero"},
        yaxis={"title": {"text": loss}, "type": "log", "tickvals": ticks(figure), "tickformat": "~g"},
    )
    return json.loads(figure.to_json())


def ticks(figure: go.Figure) -> list[float]:
    """The ticks of a logarithmic axis, at round numbers: more of them if the curves span a small range."""
    values = [value for trace in figure.data for value in trace.y if value > 0]
    marks = (1, 2, 5) if values and max(values) > 8 * min(values) else (1, 1.5, 2, 3, 4, 5, 6, 8)
    return [mark * 10.0**power for power in range(-6, 4) for mark in marks]


def line(name: str, rows: list[dict], prefix: str, colour: int, **style: object) -> go.Scatter | None:
    if not rows:
        return None
    rows = [*rows[: -1 : -(-len(rows) // MOST)], rows[-1]]
    remarks = {f"{prefix}psnr": "{:.1f} dB", f"{prefix}accuracy": "{:.1%} of tokens correct"}
    remarks |= {"val_images": "on {:,} images"} if prefix == "val_" else {}
    mode = "lines" if len(rows) > 1 else "markers"  # a line of one point would be invisible
    style = {"mode": mode, "line": {key: style.pop(key) for key in ("width", "dash") if key in style}} | style
    return go.Scatter(
        name=name,
        x=[row["step"] for row in rows],
        y=[row[f"{prefix}loss"] for row in rows],
        text=["".join(f", {text.format(row[key])}" for key, text in remarks.items() if key in row) for row in rows],
        hovertemplate="%{y:.4g}%{text}",
        meta=colour,
        **style,
    )


def atlas(codebook: Codebook, uri: str, size: tuple[int, int]) -> dict:
    """The picture of a codebook's units, of this (width, height), with the use of the unit under the mouse."""
    rows, columns = (int(side) + 1 for side in codebook.coordinates.amax(0))
    text: list[list[str | None]] = [[None] * columns for _ in range(rows)]
    counts: list[list[int | None]] = [[None] * columns for _ in range(rows)]
    total = int(codebook.counts.sum())
    for unit, (row, column) in enumerate(codebook.coordinates.tolist()):
        count = int(codebook.counts[unit])
        use = f"used {count:,} times, {100 * count / total:.2g} %" if total else "not counted yet"
        text[row][column], counts[row][column] = f"unit {unit}<br>{use}", count
    heatmap = go.Heatmap(z=counts, text=text, hovertemplate="%{text}<extra></extra>", hoverongaps=False)
    figure = go.Figure(heatmap.update(colorscale=[[0, "rgba(0,0,0,0)"], [1, "rgba(0,0,0,0)"]], showscale=False))
    figure.add_layout_image(
        source=uri, xref="x", yref="y", x=-0.5, y=-0.5, sizex=columns, sizey=rows, sizing="stretch", layer="below"
    )
    figure.update_layout(template="none", margin={"l": 0, "r": 0, "t": 0, "b": 0}, hovermode="closest")
    figure.update_xaxes(visible=False, range=[-0.5, columns - 0.5], constrain="domain")
    ratio = (size[1] // rows) / (size[0] // columns)
    figure.update_yaxes(visible=False, range=[rows - 0.5, -0.5], scaleanchor="x", scaleratio=ratio, constrain="domain")
    return json.loads(figure.to_json())
