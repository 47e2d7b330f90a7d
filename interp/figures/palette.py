"""Colours: scales that a colour-blind reader can tell apart, and the light and dark themes."""

from __future__ import annotations

from typing import Any, Literal

import plotly.graph_objects as go
from plotly import colors

Palette = Literal["RdBu", "PuOr"]
PALETTES: dict[str, str] = {"RdBu": "red to blue", "PuOr": "orange to purple"}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#6a4fb3", "#777777")
"""Okabe and Ito's colours (the yellow darkened to be read on white)."""

SERIES_DARK = (
    "#4db3f0",
    "#ff9248",
    "#2fd3a5",
    "#f0a6cf",
    "#d9bb4a",
    "#9cd8ff",
    "#a993f5",
    "#b5b5b5",
)
"""The same in the dark: every one 4.5:1 against the paper."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "triangle-down")

LIGHT = {
    "paper": "#ffffff",
    "text": "#1f2430",
    "quiet": "#565d6d",
    "grid": "#e3e6ec",
    "undefined": "#d4d7dd",
    "hatch": "#7b8290",
    "middle": None,
}
DARK = {
    "paper": "#14171c",
    "text": "#e8eaf0",
    "quiet": "#aab1bf",
    "grid": "#2b313b",
    "undefined": "#3a404b",
    "hatch": "#8d95a5",
    "middle": "#20252d",
}


def colours(dark: bool) -> dict[str, Any]:
    """The colours of one theme by role."""
    return DARK if dark else LIGHT


def scale_of(signed: bool, palette: str = "RdBu", dark: bool = False) -> list[list[Any]]:
    """The colour scale: diverging where a sign matters (white, or black in the dark, is zero).

    Palette ``"words"`` is pale enough (dark enough) for text to be read on every colour of it.
    """
    if palette == "words":
        pale = ["#14171c", "#1d3d5c", "#235a86"] if dark else ["#ffffff", "#cfe3f2", "#8dbfe2"]
        return [list(p) for p in colors.make_colorscale(pale)]
    if not signed:
        return [list(p) for p in colors.make_colorscale(colors.sequential.Cividis)]
    if palette == "PuOr":
        ends = ["#7f3b08", "#e08214", "#f7f7f7", "#8073ac", "#2d004b"]
        night = ["#ffb454", "#b06d1e", "#20252d", "#8a6fc9", "#c9b3ff"]
    else:
        ends = ["#67001f", "#d6604d", "#f7f7f7", "#4393c3", "#053061"]
        night = ["#ff8a73", "#b5483a", "#20252d", "#2f7fb8", "#8fd0ff"]
    return [list(p) for p in colors.make_colorscale(night if dark else ends)]


def theme(figure: go.Figure, dark: bool = False) -> go.Figure:
    """The same figure in the light or dark theme; the one given is left as it is."""
    figure = go.Figure(figure)
    tone = colours(dark)
    axis = {
        "gridcolor": tone["grid"],
        "linecolor": tone["quiet"],
        "zerolinecolor": tone["quiet"],
        "tickfont": {"color": tone["text"]},
        "title": {"font": {"color": tone["text"]}},
    }
    figure.update_layout(
        paper_bgcolor=tone["paper"],
        plot_bgcolor=tone["paper"],
        font={"family": FONT, "size": 13, "color": tone["text"]},
        title={
            "font": {"color": tone["text"], "size": 16},
            "subtitle": {"font": {"color": tone["quiet"], "size": 12}},
        },
        legend={"font": {"color": tone["text"]}},
        hoverlabel={
            "bgcolor": tone["paper"],
            "bordercolor": tone["quiet"],
            "font": {"color": tone["text"], "family": FONT},
        },
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    space = {f"{n}axis": {k: v for k, v in axis.items() if k != "title"} for n in "xyz"}
    figure.update_scenes({**space, "bgcolor": tone["paper"]})
    figure.for_each_annotation(
        lambda note: note.update(
            font={"color": tone["quiet" if note.name in ("stamp", "quiet") else "text"]}
        )
    )
    for trace in figure.data:
        _recolour(trace, dark)
        _paint(trace, tone, dark)
    return figure


def _recolour(trace: Any, dark: bool) -> None:
    """Swap the colours of lines, markers and bars for those of the other theme."""
    old, new = (SERIES, SERIES_DARK) if dark else (SERIES_DARK, SERIES)
    swap = dict(zip(old, new, strict=True))
    for part in ("line", "marker"):
        if part in trace and isinstance(trace[part].color, str):
            trace[part].color = swap.get(trace[part].color, trace[part].color)


def _paint(trace: Any, tone: dict[str, Any], dark: bool) -> None:
    meta = trace.meta if isinstance(trace.meta, dict) else {}
    role = meta.get("role")
    if role == "cells":
        trace.colorscale = scale_of(bool(meta["signed"]), meta.get("palette", "RdBu"), dark)
        if meta.get("palette") == "words":
            trace.textfont.color = tone["text"]
        trace.colorbar.update(
            tickfont={"color": tone["text"]},
            outlinecolor=tone["grid"],
            title={"font": {"color": tone["text"]}},
        )
    elif role == "points" and trace.marker.showscale:
        trace.marker.colorbar.update(
            tickfont={"color": tone["text"]}, title={"font": {"color": tone["text"]}}
        )
    elif role == "fade":
        trace.colorscale = [[0, tone["paper"]], [1, tone["paper"]]]
    elif role == "undefined":
        trace.marker.update(
            color=tone["undefined"],
            pattern={"fgcolor": tone["hatch"], "bgcolor": tone["undefined"]},
        )
    elif role == "inert":
        trace.marker.pattern.fgcolor = tone["hatch"]
    elif role == "clipped":
        trace.marker.color = tone["text"]
    elif role == "nodes":
        trace.update(
            marker={"color": tone["paper"], "line": {"color": tone["text"]}},
            textfont={"color": tone["text"]},
        )
    elif role == "table":
        trace.update(
            header={"fill": {"color": tone["grid"]}, "font": {"color": tone["text"]}},
            cells={"fill": {"color": tone["paper"]}, "font": {"color": tone["text"]}},
        )
