"""Attention patterns: all heads at a glance; and rows of tokens for tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.figures.axes import axis_of
from interp.figures.choose import kind_of, labels_of, narrow
from interp.figures.grids import MOST_HOVERS, template_safe, unit_text
from interp.figures.palette import scale_of
from interp.figures.text import glyphs, number, plain

if TYPE_CHECKING:
    import xarray as xr


def pattern_grid(
    array: xr.DataArray,
    *,
    tokens: Mapping[str, Any] | None = None,
    picked: Mapping[str, Any] | None = None,
    columns: int | None = None,
    limit: float | None = None,
) -> go.Figure:
    """Small maps of query × key, one for each head, on one colour scale; untitled, unthemed.

    Args:
        array: dims query, key, and head or layer or both.
        tokens: raw texts, as in ``figures_of``.
        picked: the entries that other axes were narrowed to (a prompt lends its tokens).
        columns: maps a row (default: heads of a layer, at most 8).
        limit: where the colours end (default the largest size).
    """
    outer = [str(d) for d in array.dims if d not in ("query", "key")]
    outer.sort(key=lambda d: kind_of(d) != "layer")
    array = array.transpose(*outer, "query", "key")
    y, x = (axis_of(array, a, tokens, picked) for a in ("query", "key"))
    names = [""]
    for axis in outer:
        names = [f"{n} {axis[0].upper()}{v}".strip() for n in names for v in labels_of(array, axis)]
    maps = np.asarray(array.values, dtype=np.float32).reshape(len(names), *array.shape[-2:])
    wide = columns or min(8, array.sizes[outer[-1]] if outer else 1)
    rows = math.ceil(len(maps) / wide)
    figure = make_subplots(
        rows,
        wide,
        subplot_titles=[plain(n) for n in names],
        horizontal_spacing=0.1 / max(wide, 2),
        vertical_spacing=min(0.25 / max(rows, 2), 34 / (170 * rows)),
    )
    top = limit or float(np.nanmax(np.abs(maps), initial=0)) or 1.0
    units = unit_text(str(array.attrs.get("units", "")))
    signed = bool(array.attrs.get("signed", 0))
    for k, cells in enumerate(maps):
        r, c = divmod(k, wide)
        figure.add_trace(
            _small(
                cells,
                names[k],
                x,
                y,
                top,
                signed,
                units if k == 0 else "",
                maps.size <= MOST_HOVERS,
            ),
            r + 1,
            c + 1,
        )
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False, autorange="reversed")
    figure.update_layout(height=150 + 170 * rows)
    return figure


def _small(
    cells: np.ndarray, name: str, x: Any, y: Any, top: float, signed: bool, bar: str, spoken: bool
) -> go.Heatmap:
    """One map; ``bar`` is the unit on the colour bar, empty where it has none."""
    head = plain(name)
    extra: dict[str, Any] = {
        "hovertemplate": f"{template_safe(name)}<br>query %{{y}}, key %{{x}}"
        "<br>%{z:.3g}<extra></extra>"
    }
    if spoken:
        extra = {
            "customdata": [
                [
                    f"{head}<br>{a} → {b}<br><b>{number(float(v))}</b>"
                    for b, v in zip(x.names, row, strict=True)
                ]
                for a, row in zip(y.names, cells, strict=True)
            ],
            "hovertemplate": "%{customdata}<extra></extra>",
        }
    return go.Heatmap(
        z=cells,
        zmin=-top if signed else 0,
        zmax=top,
        showscale=bool(bar),
        colorscale=scale_of(signed),
        colorbar={
            "thickness": 12,
            "title": {"text": plain(bar), "side": "right"},
            "tickformat": "~g",
        },
        meta={"role": "cells", "signed": int(signed), "palette": "RdBu"},
        **extra,
    )


def token_rows(
    data: xr.Dataset,
    ids: str,
    value: str,
    *,
    tokens: Mapping[str, Any] | None = None,
    selection: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Top tokens as rows for a table, plain text (no plotly escapes).

    Args:
        data: holds ``ids`` (token ids, with an axis ``top``) and ``value`` (same dims).
        ids: name of the array of token ids.
        value: name of the array of scores.
        tokens: raw texts; ``tokens["answers"]`` maps ids to text.
        selection: entries of the other axes.

    Returns:
        rows with the remaining axes, ``rank``, ``id``, ``token`` (glyphs) and ``value``.
    """
    chosen, _ = narrow(data[ids], selection or {})
    scores, _ = narrow(data[value], selection or {})
    scores = scores.transpose(*chosen.dims)
    answers = (tokens or {}).get("answers") or {}
    rows = []
    for at in np.ndindex(*chosen.shape):
        number_of = int(chosen.values[at])
        text = answers.get(number_of, answers.get(str(number_of)))
        row = {
            str(d): labels_of(chosen, str(d))[i]
            for d, i in zip(chosen.dims, at, strict=True)
            if d != "top"
        }
        rank = at[list(chosen.dims).index("top")] + 1 if "top" in chosen.dims else 1
        rows.append(
            {
                **row,
                "rank": rank,
                "id": number_of,
                "token": f"#{number_of}" if text is None else glyphs(text),
                "value": float(scores.values[at]),
            }
        )
    return rows
