"""Sheets: small pictures side by side on one scale; waterfalls from nothing to a total."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.figures.axes import Axis
from interp.figures.grids import MOST_HOVERS, unit_text
from interp.figures.palette import LIGHT, SERIES, scale_of
from interp.figures.text import number, plain

ALL_SPOKEN = 12
"""Up to so many pictures each pixel's hover tells its value in all of them."""


def sheet(
    maps: np.ndarray,
    titles: Sequence[str],
    y: Axis,
    x: Axis,
    *,
    signed: bool,
    units: str,
    beside: np.ndarray | None = None,
    beside_title: str = "",
    palette: str = "RdBu",
    wide: int = 4,
) -> go.Figure:
    """Small pictures on one zero-centred (or 0-based) scale.

    Args:
        maps: ``[picture, row, column]``.
        titles: of each picture, plain text.
        y: rows.
        x: columns.
        signed: whether the sign means something.
        units: of all pictures.
        beside: a picture that stands first, in grey with a scale of its own.
        beside_title: its title.
        palette: colours of signed pictures.
        wide: pictures in a row.
    """
    first = [] if beside is None else [beside_title]
    names = [*first, *titles]
    wide = min(wide, len(names))
    high = math.ceil(len(names) / wide)
    figure = make_subplots(
        high, wide, subplot_titles=["<br>".join(map(plain, n.split("\n"))) for n in names],
        horizontal_spacing=0.06 / max(wide - 1, 1), vertical_spacing=min(0.3, 0.34 / high),
    )  # fmt: skip
    finite = maps[np.isfinite(maps)]
    top = float(np.abs(finite).max()) if finite.size else 1.0
    spoken = _spoken(maps, titles, y, x, units)
    for k, name in enumerate(names):
        r, c = divmod(k, wide)
        if beside is not None and k == 0:
            trace = _picture(beside, name, scale=_GREYS)
        else:
            i = k - len(first)
            trace = _picture(
                maps[i], name, scale=scale_of(signed, palette), top=top or 1.0, signed=signed,
                bar=unit_text(units) if i == 0 else "", spoken=spoken and spoken[i],
                palette=palette,
            )  # fmt: skip
        figure.add_trace(trace, r + 1, c + 1)
    for k in range(1, len(names) + 1):
        tail = "" if k == 1 else str(k)
        figure.layout[f"yaxis{tail}"].update(scaleanchor=f"x{tail}", scaleratio=1)
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False, constrain="domain")
    figure.update_yaxes(
        showticklabels=False, showgrid=False, zeroline=False, autorange="reversed",
        constrain="domain",
    )  # fmt: skip
    figure.update_annotations(font_size=12)
    figure.update_layout(height=130 + (215 if high > 1 else 260) * high)
    return figure


_GREYS = [[0.0, "#000000"], [1.0, "#ffffff"]]


def _spoken(
    maps: np.ndarray, titles: Sequence[str], y: Axis, x: Axis, units: str
) -> list[list[list[str]]] | None:
    """Hover of every pixel of every picture: its own value, and that of all the others."""
    if maps.size > MOST_HOVERS:
        return None
    short = [plain(t.split("\n")[0]) for t in titles]
    unit = "" if units in ("", "1") else f" {plain(units)}"
    out = []
    for k in range(len(maps)):
        rows = []
        for i in range(maps.shape[1]):
            row = []
            for j in range(maps.shape[2]):
                head = f"{y.names[i]}, {x.names[j]}<br><b>{short[k]}: {number(maps[k, i, j])}</b>"
                others = (
                    "".join(
                        f"<br>{short[m]}: {number(maps[m, i, j])}"
                        for m in range(len(maps)) if m != k
                    ) if len(maps) <= ALL_SPOKEN else ""
                )  # fmt: skip
                row.append(head + unit + others)
            rows.append(row)
        out.append(rows)
    return out


def _picture(
    values: np.ndarray,
    name: str,
    *,
    scale: list[Any],
    top: float | None = None,
    signed: bool = False,
    bar: str = "",
    spoken: Any = None,
    palette: str = "RdBu",
) -> go.Heatmap:
    limits = {} if top is None else {"zmin": -top if signed else 0, "zmax": top}
    extra: dict[str, Any] = {"hovertemplate": "row %{y}, column %{x}<br>%{z:.3g}<extra></extra>"}
    if spoken:
        extra = {"customdata": spoken, "hovertemplate": "%{customdata}<extra></extra>"}
    return go.Heatmap(
        z=np.asarray(values, dtype=np.float32), showscale=bool(bar), colorscale=scale,
        colorbar={"thickness": 12, "title": {"text": plain(bar), "side": "right"},
                  "tickformat": "~g"},
        meta={"role": "cells" if top is not None else "beside", "signed": int(signed),
              "palette": palette},
        **limits, **extra,
    )  # fmt: skip


def waterfall(start: float, steps: np.ndarray, names: Sequence[str], units: str) -> go.Figure:
    """From 0 to a total: a first bar, one step for each entry, and the total.

    Args:
        start: the first bar.
        steps: what each entry adds; NaN where undefined.
        names: of the entries, plain text.
        units: of all of them.
    """
    known = np.isfinite(steps)
    labels = ["input", *(n for n, k in zip(names, known, strict=True) if k), "output"]
    values = np.concatenate([[start], steps[known]])
    before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
    total = float(values.sum())
    heights = np.append(values, total)
    bases = np.append(before, 0.0)
    unit = "" if units in ("", "1") else f" {plain(units)}"
    sums = [*np.cumsum(values).tolist(), total]
    spoken = [
        f"{plain(n)}<br><b>{number(float(h))}</b>{unit}<br>together {number(float(s))}"
        for n, h, s in zip(labels, heights, sums, strict=True)
    ]
    ends = np.zeros(len(labels), dtype=bool)
    ends[[0, -1]] = True
    figure = go.Figure()
    for where, colour, shape in (
        (ends, SERIES[7], ""), (~ends & (heights >= 0), SERIES[0], ""),
        (~ends & (heights < 0), SERIES[1], "/"),
    ):  # fmt: skip
        at = np.flatnonzero(where)
        if at.size:
            figure.add_trace(go.Bar(
                x=at.tolist(), y=heights[at].astype(np.float32), width=0.8,
                base=bases[at].astype(np.float32), customdata=[spoken[k] for k in at],
                marker={"color": colour, "line": {"width": 0},
                        "pattern": {"shape": shape, "fgopacity": 0.6}},
                hovertemplate="%{customdata}<extra></extra>",
            ))  # fmt: skip
    xs, ys = [], []
    for k, s in enumerate(sums[:-1]):
        xs += [k - 0.4, k + 1.4, None]
        ys += [s, s, None]
    figure.add_trace(go.Scatter(
        x=xs, y=ys, mode="lines", line={"color": LIGHT["hatch"], "width": 1}, hoverinfo="skip",
        showlegend=False, meta={"role": "identity"},
    ))  # fmt: skip
    text = [plain(n if len(n) <= 34 else n[:33] + "…") for n in labels]
    figure.update_xaxes(
        tickmode="array", tickvals=list(range(len(labels))), ticktext=text, tickangle=-45,
        showgrid=False, zeroline=False, automargin=True, range=[-0.6, len(labels) - 0.4],
    )  # fmt: skip
    figure.update_yaxes(title={"text": plain(unit_text(units))}, zeroline=True, tickformat="~g")
    figure.update_layout(height=460, barmode="overlay", showlegend=False)
    return figure
