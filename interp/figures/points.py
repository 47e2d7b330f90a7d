"""Points: places in a plane or in space, with rays from the origin and lines between regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.figures.palette import LIGHT, SERIES, SYMBOLS
from interp.figures.text import number, plain

SOLID = ("circle", "square", "diamond", "cross", "x")
"""Markers that exist in three dimensions."""

MOST_NAMED = 24
"""Up to so many centres carry their names; more have them on hover and in the legend."""


@dataclass
class Cloud:
    """What is drawn.

    Args:
        points: ``[point, coordinate]``, two or three coordinates.
        names: hover name of each point.
        colour: what colours them: numbers, or words (a colour and marker each); None for one.
        colour_title: words for it.
        group: words that choose the marker, where ``colour`` is a number.
        centres: ``[centre, coordinate]``, larger markers, with names.
        centre_names: names of the centres.
        rays: ``[ray, coordinate]``, lines from the origin, with names.
        ray_names: names of the rays.
        segments: ``[segment, 2, coordinate]``, dashed lines.
    """

    points: np.ndarray
    names: Sequence[str]
    colour: np.ndarray | None = None
    colour_title: str = ""
    group: np.ndarray | None = None
    centres: np.ndarray | None = None
    centre_names: Sequence[str] = field(default_factory=tuple)
    rays: np.ndarray | None = None
    ray_names: Sequence[str] = field(default_factory=tuple)
    segments: np.ndarray | None = None


def _trace(at: np.ndarray, **options: Any) -> Any:
    """A scatter trace of two or three coordinates."""
    across = {"x": at[:, 0].astype(np.float32), "y": at[:, 1].astype(np.float32)}
    if at.shape[1] == 2:
        return go.Scatter(**across, **options)
    return go.Scatter3d(**across, z=at[:, 2].astype(np.float32), **options)


def cloud(given: Cloud) -> go.Figure:
    """Points by colour and marker; rays, centres and dashed lines over them, one scale a side."""
    figure = go.Figure()
    space = given.points.shape[1] == 3
    small = 4 if len(given.points) > 60 else 9
    known = np.asarray(np.isfinite(given.points).all(axis=1))
    for at, name, marker in _groups(given, known):
        marker["symbol"] = SOLID[marker["symbol"] % len(SOLID)] if space else SYMBOLS[
            marker["symbol"] % len(SYMBOLS)]  # fmt: skip
        figure.add_trace(_trace(
            given.points[at], mode="markers", name=plain(name),
            marker={"size": small, "opacity": 0.75 if len(given.points) > 60 else 1.0, **marker},
            customdata=[given.names[i] for i in at],
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=bool(name), legendgroup=name, meta={"role": "points"},
        ))  # fmt: skip
    _rays(figure, given)
    _centres(figure, given, space)
    if given.segments is not None:
        for k, ends in enumerate(given.segments):
            figure.add_trace(_trace(
                np.asarray(ends), mode="lines", name="decision boundary", hoverinfo="skip",
                line={"color": LIGHT["hatch"], "dash": "dash", "width": 2},
                showlegend=k == 0, legendgroup="boundary",
            ))  # fmt: skip
    axis = {"title": {"text": ""}, "showticklabels": False, "zeroline": True}
    if space:
        axes = {f"{n}axis": {**axis, "showbackground": False} for n in "xyz"}
        figure.update_layout(scene={**axes, "aspectmode": "data"}, height=560)
    else:
        figure.update_xaxes(**axis)
        figure.update_yaxes(**axis, scaleanchor="x")
        figure.update_layout(height=560)
    figure.update_layout(legend={"itemsizing": "constant"})
    return figure


def _groups(given: Cloud, known: np.ndarray) -> list[tuple[np.ndarray, str, dict[str, Any]]]:
    """Row numbers, name and marker of each trace."""
    every = np.flatnonzero(known)
    if given.colour is None:
        return [(every, "", {"color": SERIES[0], "symbol": 0})]
    if given.colour.dtype.kind == "f" and given.group is not None:
        found = []
        low, high = float(given.colour.min()), float(given.colour.max())
        for n, word in enumerate(dict.fromkeys(given.group[every].tolist())):
            at = every[given.group[every] == word]
            bar = {"title": {"text": plain(given.colour_title)}, "thickness": 14, "x": 1.02,
                   "len": 0.35, "y": 0.0, "yanchor": "bottom"}  # fmt: skip
            found.append((at, str(word), {
                "color": given.colour[at].astype(np.float32), "colorscale": "Cividis",
                "cmin": low, "cmax": high, "symbol": n, "showscale": n == 0, "colorbar": bar,
            }))  # fmt: skip
        return found
    words = list(dict.fromkeys(np.sort(given.colour[every]).tolist()))
    out = []
    for n, word in enumerate(words):
        at = every[given.colour[every] == word]
        out.append((at, f"{given.colour_title} {word}".strip(), {
            "color": SERIES[n % len(SERIES)], "symbol": n // len(SERIES) + n % len(SERIES),
        }))  # fmt: skip
    return out


def _rays(figure: go.Figure, given: Cloud) -> None:
    if given.rays is None:
        return
    for k, (end, name) in enumerate(zip(given.rays, given.ray_names, strict=True)):
        if not np.isfinite(end).all():
            continue
        figure.add_trace(_trace(
            np.stack([np.zeros_like(end), end]), mode="lines+text", name="classifier",
            text=["", plain(name)], textposition="top center",
            line={"color": SERIES[k % len(SERIES)], "width": 3},
            hoverinfo="skip", showlegend=k == 0, legendgroup="rays",
        ))  # fmt: skip


def _centres(figure: go.Figure, given: Cloud, space: bool) -> None:
    if given.centres is None:
        return
    known = [int(k) for k in np.flatnonzero(np.isfinite(given.centres).all(1))]
    tail = [
        f"{given.centre_names[k]}<br>mean at "
        + ", ".join(number(float(v)) for v in given.centres[k])
        for k in known
    ]
    named = len(known) <= MOST_NAMED
    figure.add_trace(_trace(
        given.centres[known], mode="markers+text" if named else "markers", name="class mean",
        text=[plain(given.centre_names[k]) for k in known], textposition="top center",
        marker={"size": 7 if space else 12, "symbol": "diamond",
                "color": [SERIES[k % len(SERIES)] for k in known],
                "line": {"width": 1.5, "color": LIGHT["hatch"]}},
        customdata=tail, hovertemplate="%{customdata}<extra></extra>",
    ))  # fmt: skip
