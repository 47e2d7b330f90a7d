"""Bars, curves, whiskers and cards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.figures.axes import Axis
from interp.figures.grids import unit_text
from interp.figures.palette import DASHES, LIGHT, SERIES, SYMBOLS
from interp.figures.text import number, plain

MOST_BARS = 400
"""More entries than this are drawn as a line of points."""


def _spoken(
    names: Sequence[str],
    values: np.ndarray,
    units: str,
    error: np.ndarray | None = None,
    prefix: str = "",
) -> list[str]:
    tail = "" if units in ("", "1") else f" {plain(units)}"
    out = []
    for i, name in enumerate(names):
        text = number(float(values[i]))
        if error is not None and np.isfinite(error[i]) and np.isfinite(values[i]):
            text += f" ± {number(float(error[i]), 2)}"
        out.append(f"{prefix}{name}<br><b>{text}</b>{tail}")
    return out


def _y_title(units: str) -> dict[str, Any]:
    return {"text": plain(unit_text(units))}


def _along(figure: go.Figure, x: Axis) -> None:
    figure.update_xaxes(
        **{**x.layout, "title": {"text": plain(x.title)}}, showgrid=False, zeroline=False
    )


def bars(
    values: np.ndarray,
    x: Axis,
    *,
    units: str,
    error: np.ndarray | None = None,
    interval: Any = None,
    sure: Sequence[bool] | None = None,
) -> go.Figure:
    """One number an entry; whiskers are the interval, or ± one standard error.

    Where ``sure`` says which are certified, the others are hatched.
    """
    values = np.asarray(values, dtype=float)
    customdata = _spoken(x.names, values, units, error)
    whiskers = None
    if interval is not None:
        low, high = (np.asarray(v, dtype=float) for v in interval)
        whiskers = {
            "type": "data",
            "symmetric": False,
            "array": high - values,
            "arrayminus": values - low,
            "thickness": 1.2,
            "width": 4,
        }
    elif error is not None:
        whiskers = {"type": "data", "array": error, "thickness": 1.2, "width": 4}
    common = {
        "x": x.values,
        "y": values.astype(np.float32),
        "customdata": customdata,
        "hovertemplate": "%{customdata}<extra></extra>",
        "error_y": whiskers,
    }
    if len(values) <= MOST_BARS:
        hatched = [] if sure is None else ["" if s else "/" for s in sure]
        pattern = {"pattern": {"shape": hatched, "fgopacity": 0.6}} if any(hatched) else {}
        trace: Any = go.Bar(marker={"color": SERIES[0], "line": {"width": 0}, **pattern}, **common)
    else:
        trace = go.Scatter(mode="markers", marker={"color": SERIES[0], "size": 4}, **common)
    figure = go.Figure(trace)
    missing = np.flatnonzero(~np.isfinite(values))
    if missing.size:
        figure.add_trace(
            go.Scatter(
                x=[x.values[i] for i in missing],
                y=[0] * missing.size,
                mode="markers",
                marker={"symbol": "x-thin-open", "size": 9, "color": LIGHT["text"]},
                customdata=[f"{x.names[i]}<br><b>undefined</b>" for i in missing],
                hovertemplate="%{customdata}<extra></extra>",
                showlegend=False,
                meta={"role": "clipped"},
            )
        )
    _along(figure, x)
    figure.update_yaxes(title=_y_title(units), zeroline=True, tickformat="~g")
    figure.update_layout(height=380, bargap=0.25, showlegend=False)
    return figure


def curves(
    values: np.ndarray,
    x: Axis,
    numbers: Sequence[float],
    lines: Axis | None,
    *,
    long_name: str,
    units: str,
    error: np.ndarray | None = None,
    sure: Sequence[bool] | None = None,
    log: bool = False,
) -> go.Figure:
    """Lines over a numeric axis: colour, dash and marker differ together.

    Args:
        values: ``[x]`` or ``[x, line]``.
        x: the axis along.
        numbers: where each entry of it stands.
        lines: the other axis.
        long_name: what the numbers are.
        units: their unit.
        error: standard errors of the same shape.
        sure: for each line whether it is certified; certified ones are solid, estimates dashed.
        log: a logarithmic y axis, where all values are above 0.
    """
    values = np.asarray(values, dtype=float)
    table = values[:, None] if values.ndim == 1 else values
    errors = None if error is None else np.asarray(error, dtype=float).reshape(table.shape)
    figure = go.Figure()
    for k in range(table.shape[1]):
        name = lines.names[k] if lines else plain(long_name)
        prefix = f"{name}<br>" if lines else ""
        side = None if errors is None else errors[:, k]
        figure.add_trace(
            go.Scatter(
                x=np.asarray(numbers, dtype=np.float32),
                y=table[:, k].astype(np.float32),
                mode="lines+markers" if len(numbers) <= 60 else "lines",
                name=lines.labels[k] if lines else name,  # the legend's title says the axis
                line={
                    "color": SERIES[k % len(SERIES)],
                    "dash": _dash(k, sure),
                    "width": 2,
                },
                marker={"symbol": SYMBOLS[k % len(SYMBOLS)], "size": 7},
                customdata=_spoken(x.names, table[:, k], units, side, prefix),
                hovertemplate="%{customdata}<extra></extra>",
                error_y=None if side is None else {"type": "data", "array": side, "thickness": 1},
            )
        )
    figure.update_xaxes(
        title={"text": plain(x.title)}, automargin=True, tickformat="~g", zeroline=False
    )
    if numbers and min(numbers) > 0 and max(numbers) / min(numbers) > 200:
        figure.update_xaxes(type="log")
    figure.update_yaxes(title=_y_title(units), tickformat="~g")
    finite = table[np.isfinite(table)]
    if log and finite.size and finite.min() > 0:
        figure.update_yaxes(type="log", dtick="D2")
    figure.update_layout(
        height=400,
        showlegend=lines is not None,
        legend={"title": {"text": plain(lines.title)}} if lines else None,
    )
    return figure


def _dash(k: int, sure: Sequence[bool] | None) -> str:
    """The dash of line k."""
    if sure is None:
        return DASHES[k % len(DASHES)]
    return "solid" if sure[k] else "dash"


def whiskers(
    values: np.ndarray, bound: Axis, x: Axis | None, *, long_name: str, units: str
) -> go.Figure:
    """Bounds of one quantity: a line from the least to the largest, a marker for each.

    Args:
        values: ``[bound]`` or ``[bound, x]``.
        bound: names of the bounds.
        x: the other axis.
        long_name: what is bounded.
        units: its unit.
    """
    table = np.asarray(values, dtype=float)
    table = table[:, None] if table.ndim == 1 else table
    where = x.values if x else [0]
    names = x.names if x else [plain(long_name)]
    figure = go.Figure()
    line_x: list[Any] = []
    line_y: list[Any] = []
    for j, at in enumerate(where):
        column = table[:, j][np.isfinite(table[:, j])]
        if column.size:
            line_x += [at, at, None]
            line_y += [float(column.min()), float(column.max()), None]
    figure.add_trace(
        go.Scatter(
            x=line_x,
            y=line_y,
            mode="lines",
            hoverinfo="skip",
            line={"color": LIGHT["hatch"], "width": 2},
            showlegend=False,
        )
    )
    for k in range(table.shape[0]):
        figure.add_trace(
            go.Scatter(
                x=where,
                y=table[k].astype(np.float32),
                mode="markers",
                name=bound.names[k],
                marker={
                    "symbol": SYMBOLS[k % len(SYMBOLS)],
                    "size": 10,
                    "color": SERIES[k % len(SERIES)],
                },
                customdata=_spoken(names, table[k], units, prefix=f"{bound.names[k]}<br>"),
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    finite = table[np.isfinite(table)]
    if finite.size and finite.min() > 0 and finite.max() / finite.min() > 50:
        figure.update_yaxes(type="log", dtick="D2")
    if x:
        _along(figure, x)
    else:
        figure.update_xaxes(tickvals=[], range=[-1, 1], showgrid=False, zeroline=False)
    figure.update_yaxes(title=_y_title(units), tickformat="~g")
    figure.update_layout(
        height=400, showlegend=True, legend={"title": {"text": plain(bound.title)}}
    )
    return figure


def scatter(values: np.ndarray, measure: Axis, cells: Axis, *, units: str) -> go.Figure:
    """Two measures of the same cells against each other, with the line on which they are equal.

    Args:
        values: ``[measure, cell]``, two measures: across and up.
        measure: names of the two.
        cells: names of the cells.
        units: the unit of both.
    """
    across, up = np.asarray(values, dtype=float)
    known = np.isfinite(across) & np.isfinite(up)
    names = [
        f"{name}<br>{plain(measure.raw[0])} <b>{number(float(a))}</b>"
        f"<br>{plain(measure.raw[1])} <b>{number(float(b))}</b>"
        for name, a, b in zip(cells.names, across, up, strict=True)
    ]
    both = np.concatenate([across[known], up[known], [0.0]])
    low, high = float(both.min()), float(both.max())
    pad = 0.05 * (high - low) or 1.0
    ends = [low - pad, high + pad]
    figure = go.Figure(
        go.Scatter(
            x=ends,
            y=ends,
            mode="lines",
            line={"color": LIGHT["hatch"], "dash": "dash", "width": 1.5},
            hoverinfo="skip",
            showlegend=False,
            meta={"role": "identity"},
        )
    )
    figure.add_trace(
        go.Scatter(
            x=across[known].astype(np.float32),
            y=up[known].astype(np.float32),
            mode="markers",
            marker={"color": SERIES[0], "size": 7, "opacity": 0.75},
            customdata=[n for n, k in zip(names, known, strict=True) if k],
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
        )
    )
    tail = unit_text(units)
    for axes, name in (
        (figure.update_xaxes, measure.raw[0]),
        (figure.update_yaxes, measure.raw[1]),
    ):
        text = f"{name}, {tail}"
        axes(title={"text": plain(text)}, range=ends, tickformat="~g", zeroline=True)
    figure.update_layout(height=480)
    return figure


def card(value: Any, *, units: str, error: float | None = None, interval: Any = None) -> go.Figure:
    """A single number, large, with its error and unit."""
    text = value if isinstance(value, str) else number(float(value), 4)
    unit = "" if units in ("", "1") else f" {units}"
    lines = [f"<b>{plain(text)}</b>{plain(unit)}"]
    if error is not None and np.isfinite(error):
        lines.append(f"± {number(error, 2)} (standard error)")
    if interval is not None and np.isfinite(interval[0]):
        lines.append(f"interval {number(interval[0])} to {number(interval[1])}")
    figure = go.Figure()
    figure.add_annotation(
        text=lines[0],
        x=0.5,
        y=0.62,
        xref="paper",
        yref="paper",
        showarrow=False,
        font={"size": 34},
        name="value",
    )
    if len(lines) > 1:
        figure.add_annotation(
            text="<br>".join(lines[1:]),
            x=0.5,
            y=0.12,
            xref="paper",
            yref="paper",
            showarrow=False,
            font={"size": 14},
            name="quiet",
        )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(height=220)
    return figure
