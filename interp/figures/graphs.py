"""Graphs: who writes to whom, at most 500 edges; the table twin has the rest."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.figures.palette import LIGHT, SERIES
from interp.figures.text import number, plain, shown

MOST_EDGES = 500
WIDTHS = (1.0, 2.2, 4.0, 6.5)
"""Line widths of the four classes of size."""


def depth_of(label: str) -> float:
    """Where a node stands: its layer, attention before MLP; embeddings first, logits last."""
    low = label.lower()
    if low.startswith(("embed", "input", "pos")):
        return -1.0
    if low.startswith(("logit", "unembed", "output")):
        return math.inf
    found = re.search(r"\d+", label)
    layer = float(found[0]) if found else 0.0
    return layer + (0.5 if re.match(r"(mlp|m)\s*\d*", low) else 0.0)


def graph(
    values: np.ndarray,
    src: Sequence[str],
    dst: Sequence[str],
    *,
    signed: bool,
    units: str,
    node_of: Any = None,
) -> tuple[go.Figure, list[str]]:
    """Draw the largest edges.

    Args:
        values: ``[src, dst]``, NaN where there is no edge.
        src: names of the writers.
        dst: names of the readers.
        signed: whether negative edges are drawn apart (dashed).
        units: the unit.
        node_of: a reader's name -> the node it belongs to (several inputs of one head).

    Returns:
        the figure, and notes for the reader.
    """
    node_of = node_of or (lambda name: name)
    order = np.argsort(-np.abs(np.nan_to_num(values)), axis=None)
    found = int((np.nan_to_num(values) != 0).sum())
    edges = [divmod(int(k), values.shape[1]) for k in order[: min(found, MOST_EDGES)]]
    names = {src[i] for i, _ in edges} | {node_of(dst[j]) for _, j in edges}
    place = _places(names)
    top = max((abs(values[e]) for e in edges), default=1.0)
    figure = go.Figure()
    for negative in (False, True):
        for c, width in enumerate(WIDTHS):
            chosen = [
                (i, j)
                for i, j in edges
                if (values[i, j] < 0) == negative and _class(abs(values[i, j]) / top) == c
            ]
            _edges(
                figure,
                [(place[src[i]], place[node_of(dst[j])]) for i, j in chosen],
                width,
                negative,
            )
    _hovers(figure, values, src, dst, edges, place, node_of, units)
    _nodes(figure, place)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(
        height=int(min(900, 240 + 62 * len({y for _, y in place.values()}))),
        showlegend=signed,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"},
    )
    notes = []
    if found > len(edges):
        notes.append(f"the {len(edges)} largest of {found} edges; the table has all")
    return figure, notes


def _class(size: float) -> int:
    return 3 if size > 0.75 else 2 if size > 0.5 else 1 if size > 0.25 else 0


def _places(names: set[str]) -> dict[str, tuple[float, float]]:
    depths = sorted({depth_of(n) for n in names})
    place = {}
    for row, depth in enumerate(depths):
        level = sorted((n for n in names if depth_of(n) == depth), key=_natural)
        for k, name in enumerate(level):
            place[name] = ((k + 0.5) / len(level) + (0.06 if row % 2 else 0.0), float(row))
    return place


def _natural(name: str) -> list[Any]:
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]


def _edges(figure: go.Figure, lines: list[Any], width: float, negative: bool) -> None:
    if not lines:
        return
    x: list[Any] = []
    y: list[Any] = []
    for (x0, y0), (x1, y1) in lines:
        x += [x0, x1, None]
        y += [y0, y1, None]
    label = "negative (dashed)" if negative else "positive"
    shown_already = any(t.name == label and t.showlegend for t in figure.data)
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="lines",
            hoverinfo="skip",
            name=label,
            legendgroup=label,
            showlegend=not shown_already,
            opacity=0.75,
            line={
                "width": width,
                "color": SERIES[1 if negative else 0],
                "dash": "dash" if negative else "solid",
            },
        )
    )


def _hovers(
    figure: go.Figure,
    values: np.ndarray,
    src: Sequence[str],
    dst: Sequence[str],
    edges: list[tuple[int, int]],
    place: dict[str, tuple[float, float]],
    node_of: Any,
    units: str,
) -> None:
    points, text = [], []
    tail = "" if units in ("", "1") else f" {plain(units)}"
    for i, j in edges:
        (x0, y0), (x1, y1) = place[src[i]], place[node_of(dst[j])]
        points.append((x0 * 0.6 + x1 * 0.4, y0 * 0.6 + y1 * 0.4))
        text.append(
            f"{shown(src[i])} → {shown(dst[j])}<br><b>{number(float(values[i, j]))}</b>{tail}"
        )
    figure.add_trace(
        go.Scatter(
            x=[p[0] for p in points],
            y=[p[1] for p in points],
            mode="markers",
            showlegend=False,
            marker={"size": 9, "opacity": 0},
            customdata=text,
            hovertemplate="%{customdata}<extra></extra>",
        )
    )


def _nodes(figure: go.Figure, place: dict[str, tuple[float, float]]) -> None:
    names = list(place)
    figure.add_trace(
        go.Scatter(
            x=[place[n][0] for n in names],
            y=[place[n][1] for n in names],
            mode="markers+text",
            text=[shown(n, 18) for n in names],
            textposition="middle center",
            showlegend=False,
            marker={
                "symbol": "square",
                "size": 38,
                "color": LIGHT["paper"],
                "line": {"width": 1.4, "color": LIGHT["text"]},
            },
            textfont={"size": 10, "color": LIGHT["text"]},
            customdata=[shown(n) for n in names],
            hovertemplate="%{customdata}<extra></extra>",
            meta={"role": "nodes"},
        )
    )
