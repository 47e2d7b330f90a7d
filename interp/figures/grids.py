"""Maps: grids of layer, head, position and component; square maps; images; tables of words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.figures.axes import Axis
from interp.figures.palette import LIGHT, scale_of
from interp.figures.text import number, plain, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_CELLS = 250_000
"""Above this many cells blocks are pooled by their largest absolute value."""

MOST_HOVERS = 12_000
"""Up to this many cells each has its own sentence; above, hover gives numbers alone."""

MOST_RECTANGLES = 4_000


@dataclass
class Cells:
    """The numbers of one map and what is known about each.

    Args:
        values: ``[y, x]``; NaN where undefined.
        y: rows.
        x: columns.
        signed: whether the sign means something.
        units: the unit; ``"1"`` or empty for a pure number.
        limit: colour limit; None to take it from the values.
        floor: noise floor; smaller absolute values are faded.
        error: standard error, same shape, or None.
        interval: (low, high), same shape each, or None.
        inert: cells that cannot matter, or None.
        p: (p of a zero value, p over the whole grid), same shape each or None.
        clipped: whether values may lie outside the limits (robust scale).
        low: the lower colour limit of unsigned values; None to take it from the values.
    """

    values: np.ndarray
    y: Axis
    x: Axis
    signed: bool
    units: str = ""
    limit: float | None = None
    floor: float = 0.0
    error: np.ndarray | None = None
    interval: tuple[np.ndarray, np.ndarray] | None = None
    inert: np.ndarray | None = None
    p: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
    clipped: bool = False
    low: float | None = None
    notes: list[str] = field(default_factory=list)


def heatmap(
    cells: Cells,
    *,
    palette: str = "RdBu",
    dark: bool = False,
    square: bool = False,
    y_up: bool = True,
) -> go.Figure:
    """Draw a map: numeric colour bar, undefined hatched, inert shaded, under the floor faded."""
    cells, block = pool(cells)
    low, high = limits(cells)
    figure = go.Figure(_trace(cells, palette, dark, low, high, block))
    _overlays(figure, cells, low, high)
    rows, columns = cells.values.shape
    figure.update_xaxes(
        **{**cells.x.layout, "title": {"text": plain(cells.x.title)}},
        showgrid=False,
        zeroline=False,
        constrain="domain",
    )
    figure.update_yaxes(
        **{**cells.y.layout, "title": {"text": plain(cells.y.title)}, "tickangle": 0},
        showgrid=False,
        zeroline=False,
        constrain="domain",
    )
    if block != (1, 1):
        _coarse_ticks(figure, block, cells)
    if not y_up:
        figure.update_yaxes(range=[rows - 0.5, -0.5])
    if square:
        figure.update_yaxes(scaleanchor="x", scaleratio=1)
        figure.update_layout(height=_between(190 + 24 * max(rows, 6), 440, 760))
    else:
        figure.update_layout(height=_between(250 + 34 * rows, 370, 960))
    return figure


def _between(value: float, low: float, high: float) -> int:
    return int(min(max(value, low), high))


def limits(cells: Cells) -> tuple[float, float]:
    """Colour limits: ±limit where signed, least to largest where not."""
    finite = cells.values[np.isfinite(cells.values)]
    if cells.signed:
        top = cells.limit or (float(np.abs(finite).max()) if finite.size else 1.0)
        top = top if top > 0 else 1.0
        return -top, top
    top = cells.limit if cells.limit is not None else (float(finite.max()) if finite.size else 1.0)
    low = (
        cells.low
        if cells.low is not None
        else (min(0.0, float(finite.min())) if finite.size else 0.0)
    )
    return (low, top) if top > low else (low, low + 1.0)


def _trace(
    cells: Cells, palette: str, dark: bool, low: float, high: float, block: tuple[int, int]
) -> go.Heatmap:
    rows, columns = cells.values.shape
    hovers = cells.values.size <= MOST_HOVERS and block == (1, 1)
    unit = unit_text(cells.units)
    if hovers:
        extra: dict[str, Any] = {
            "customdata": hover_grid(cells),
            "hovertemplate": "%{customdata}<extra></extra>",
        }
    else:
        y, x = template_safe(cells.y.title), template_safe(cells.x.title)
        extra = {
            "hovertemplate": f"{y} %{{y}}, {x} %{{x}}<br>"
            f"%{{z:.3g}} {template_safe(unit)}<extra></extra>"
        }
    return go.Heatmap(
        z=np.asarray(cells.values, dtype=np.float32),
        x=np.arange(columns, dtype=np.float32) * block[1] + (block[1] - 1) / 2,
        y=np.arange(rows, dtype=np.float32) * block[0] + (block[0] - 1) / 2,
        zmin=float(low),
        zmax=float(high),
        zsmooth=False,
        xgap=1 if columns <= 80 else 0,
        ygap=1 if rows <= 80 else 0,
        colorscale=scale_of(cells.signed, palette, dark),
        hoverongaps=False,
        colorbar={
            "title": {"text": plain(unit), "side": "right"},
            "thickness": 14,
            "tickformat": "~g",
            "outlinewidth": 1,
            "len": 1.0,
        },
        meta={"role": "cells", "signed": int(cells.signed), "palette": palette},
        **extra,
    )


def unit_text(units: str) -> str:
    """``1`` and nothing are said in words: a colour bar never stands without a unit."""
    return units if units not in ("", "1") else "no unit"


def template_safe(text: str) -> str:
    """House words inside a hover template: escaped, and with no ``%{`` that would expand."""
    return plain(text).replace("%{", "% {")


def hover_grid(cells: Cells) -> np.ndarray:
    """One sentence a cell, escaped: ``layer 3, position 7 ␣Mary, 0.42 ± 0.03``."""
    rows, columns = cells.values.shape
    out = np.empty((rows, columns), dtype=object)
    for i in range(rows):
        for j in range(columns):
            out[i, j] = (
                f"{cells.y.names[i]}<br>{cells.x.names[j]}<br><b>{plain(sentence(cells, i, j))}</b>"
            )
    return out


def sentence(cells: Cells, i: int, j: int) -> str:
    """The value of one cell with its error, interval and marks, as plain text."""
    value = float(cells.values[i, j])
    text = number(value)
    if cells.error is not None and math.isfinite(value) and math.isfinite(cells.error[i, j]):
        text += f" ± {number(float(cells.error[i, j]), 2)}"
    if cells.interval is not None and math.isfinite(cells.interval[0][i, j]):
        low, high = cells.interval
        text += f" [{number(float(low[i, j]), 2)}, {number(float(high[i, j]), 2)}]"
    if cells.units not in ("", "1"):
        text += f" {cells.units}"
    return text + "".join(f" · {m}" for m in marks(cells, i, j))


def marks(cells: Cells, i: int, j: int) -> list[str]:
    """What a reader must know of one cell besides its number."""
    out = []
    if cells.inert is not None and cells.inert[i, j]:
        out.append("inert")
    elif abs(float(cells.values[i, j])) < cells.floor:
        out.append("under the noise floor")
    for name, p in zip(("p", "over the grid"), cells.p, strict=True):
        if p is not None and math.isfinite(p[i, j]):
            out.append(f"{name} {number(float(p[i, j]), 2)}")
    return out


def _overlays(figure: go.Figure, cells: Cells, low: float, high: float) -> None:
    values = cells.values
    undefined = ~np.isfinite(values)
    inert = np.zeros_like(undefined) if cells.inert is None else cells.inert & ~undefined
    faded = (np.abs(np.nan_to_num(values)) < cells.floor) & ~undefined & ~inert
    if faded.any():
        figure.add_trace(
            go.Heatmap(
                z=np.where(faded, 1, np.nan).astype(np.float32),
                showscale=False,
                hoverinfo="skip",
                colorscale=[[0, LIGHT["paper"]], [1, LIGHT["paper"]]],
                zmin=0,
                zmax=1,
                opacity=0.6,
                meta={"role": "fade"},
            )
        )
        cells.notes.append(f"faded: under the noise floor {number(cells.floor, 2)}")
    if inert.any():
        _hatch(figure, inert, "inert")
        cells.notes.append("dotted: inert (cannot differ)")
    if undefined.any():
        _hatch(figure, undefined, "undefined")
        cells.notes.append("hatched: undefined")
    outside = ~undefined & (
        (np.nan_to_num(values) > high * (1 + 1e-6) + 1e-12)
        | (np.nan_to_num(values) < low * (1 + 1e-6) - 1e-12)
    )
    if cells.clipped and outside.any():
        y, x = np.nonzero(outside)
        figure.add_trace(
            go.Scatter(
                x=x[:2500],
                y=y[:2500],
                mode="markers",
                hoverinfo="skip",
                showlegend=False,
                marker={"symbol": "x-thin-open", "size": 7, "color": LIGHT["text"]},
                meta={"role": "clipped"},
            )
        )
        cells.notes.append(f"×: beyond the scale ({int(outside.sum())} cells)")


def _hatch(figure: go.Figure, where: np.ndarray, role: str) -> None:
    boxes = rectangles(where)[:MOST_RECTANGLES]
    x = [b[1] + (b[3] - 1) / 2 for b in boxes]
    solid = role == "undefined"
    pattern = {
        "shape": "/" if solid else ".",
        "size": 6 if solid else 5,
        "solidity": 0.3 if solid else 0.22,
        "fgcolor": LIGHT["hatch"],
        "fillmode": "overlay",
    }
    if solid:
        pattern["bgcolor"] = LIGHT["undefined"]
    figure.add_trace(
        go.Bar(
            x=x,
            y=[b[2] for b in boxes],
            base=[b[0] - 0.5 for b in boxes],
            width=[b[3] for b in boxes],
            hoverinfo="skip",
            showlegend=False,
            marker={
                "color": LIGHT["undefined"] if solid else "rgba(0,0,0,0)",
                "pattern": pattern,
                "line": {"width": 0},
            },
            meta={"role": role},
        )
    )
    figure.update_layout(barmode="overlay", bargap=0)


def rectangles(where: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Cover the true cells by boxes (top, left, height, width), merging along columns and rows."""
    columns: list[list[tuple[int, int]]] = []
    for j in range(where.shape[1]):
        edges = np.flatnonzero(np.diff(np.r_[0, where[:, j].astype(np.int8), 0]))
        columns.append([(int(a), int(b - a)) for a, b in edges.reshape(-1, 2)])
    out: list[tuple[int, int, int, int]] = []
    start = 0
    for j in range(1, len(columns) + 1):
        if j == len(columns) or columns[j] != columns[start]:
            out += [(top, start, height, j - start) for top, height in columns[start]]
            start = j
    return out


def pool(cells: Cells) -> tuple[Cells, tuple[int, int]]:
    """Blocks pooled by the largest absolute value where there are too many cells."""
    rows, columns = cells.values.shape
    if rows * columns <= MOST_CELLS:
        return cells, (1, 1)
    by, bx = 1, 1
    while math.ceil(rows / by) * math.ceil(columns / bx) > MOST_CELLS:
        if columns / bx >= rows / by:
            bx += 1
        else:
            by += 1
    values = _blocks(cells.values, by, bx)
    cells.notes.append(
        f"pooled: each cell is the largest absolute value of {by} × {bx} of {rows} × {columns}"
    )
    cells = Cells(
        values,
        cells.y,
        cells.x,
        cells.signed,
        cells.units,
        cells.limit,
        cells.floor,
        clipped=cells.clipped,
        low=cells.low,
        notes=cells.notes,
    )
    return cells, (by, bx)


def _blocks(values: np.ndarray, by: int, bx: int) -> np.ndarray:
    rows, columns = values.shape
    padded = np.full((math.ceil(rows / by) * by, math.ceil(columns / bx) * bx), np.nan)
    padded[:rows, :columns] = values
    tiles = padded.reshape(padded.shape[0] // by, by, padded.shape[1] // bx, bx)
    flat = tiles.transpose(0, 2, 1, 3).reshape(tiles.shape[0], tiles.shape[2], -1)
    best = np.where(np.isfinite(flat), np.abs(flat), -1).argmax(-1)
    return np.take_along_axis(flat, best[..., None], -1)[..., 0]


def _coarse_ticks(figure: go.Figure, block: tuple[int, int], cells: Cells) -> None:
    figure.update_xaxes(range=[-0.5, cells.values.shape[1] * block[1] - 0.5])
    figure.update_yaxes(range=[-0.5, cells.values.shape[0] * block[0] - 0.5])


def word_table(words: Sequence[Sequence[str]], cells: Cells, *, dark: bool = False) -> go.Figure:
    """A map whose cells hold a token each (rank across, position down)."""
    figure = heatmap(cells, palette="words", dark=dark, y_up=False)
    text = [[shown(w, 14) for w in row] for row in words]
    spoken = [
        [
            f"{cells.y.names[i]}<br>{cells.x.names[j]}<br><b>{shown(w)}</b> "
            f"{plain(sentence(cells, i, j))}"
            for j, w in enumerate(row)
        ]
        for i, row in enumerate(words)
    ]
    figure.update_traces(
        text=text,
        texttemplate="%{text}",
        customdata=spoken,
        hovertemplate="%{customdata}<extra></extra>",
        selector={"type": "heatmap", "hoverongaps": False},
    )
    return figure


def legend_of(cells: Cells, picked: Mapping[str, Any]) -> str:
    """The marks and notes of a map, one line."""
    notes = [*cells.notes, cells.x.note, cells.y.note]
    return " · ".join(dict.fromkeys(n for n in notes if n))
