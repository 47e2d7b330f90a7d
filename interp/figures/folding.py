"""Folding: of a long prompt a window is shown, behind a band for what both prompts share.

Only a page folds; reports and exports stay whole.
"""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go

from interp.figures.axes import Axis

WINDOW = 64
"""Positions that a page shows at a time."""

BAND = 3.0
"""Width of the folded band, in positions."""

TICKS = 32
"""Most tokens that are written along the window."""


def fold(figure: go.Figure, axis: Axis, inert: np.ndarray | None, window: int) -> list[str]:
    """Show a window of the x axis, from the first position at which the prompts differ.

    Args:
        figure: a grid with positions along x.
        axis: its x axis.
        inert: cells that cannot differ ``[row, position]``, or None.
        window: positions shown.

    Returns:
        what the reader should know; empty where the axis fits.
    """
    n = len(axis.values)
    if n <= window:
        return []
    live = np.ones(n, bool) if inert is None else ~np.asarray(inert, bool).all(0)
    start = int(live.argmax()) if live.any() else 0
    start = 0 if start < 2 else start
    stop = min(n, start + window)
    left = start - 0.5 - (BAND if start else 0.0)
    step = math.ceil((stop - start) / TICKS)
    ticks = list(range(start % step, n, step))
    figure.update_xaxes(
        range=[left, stop - 0.5],
        tickmode="array",
        tickvals=ticks,
        ticktext=[f"{i} {axis.labels[i]}".rstrip() for i in ticks],
        tickangle=-90,
    )
    figure.update_layout(dragmode="pan")
    notes = [f"positions {start} to {stop - 1} of {n}: drag to slide, double click for all"]
    if start:
        figure.add_shape(
            type="rect", xref="x", yref="paper", x0=-0.5, x1=start - 0.5, y0=0, y1=1,
            fillcolor="rgba(128,128,128,0.35)", line={"width": 0}, name="folded",
        )  # fmt: skip
        figure.add_annotation(
            x=start - 0.5 - BAND / 2, xref="x", y=0.5, yref="paper", textangle=-90,
            text=f"0 to {start - 1}: the same", showarrow=False, font={"size": 11},
        )  # fmt: skip
        notes.append(f"0 to {start - 1} are the same in both prompts and folded away")
    return notes
