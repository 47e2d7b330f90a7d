"""figures_of: a dataset's arrays, each drawn by the kinds of its axes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import plotly.graph_objects as go

from interp.figures.axes import ONE_BASED, entry_name, title_of
from interp.figures.choose import Plan, drawn_names, kind_of, labels_of, narrow, plan_of
from interp.figures.grids import unit_text
from interp.figures.makers import MAKERS, View, attrs_of, numbers_of
from interp.figures.palette import theme
from interp.figures.text import number, plain
from interp.terms.errors import UsageError, unknown_name

if TYPE_CHECKING:
    import xarray as xr

Scale = Literal["own", "shared", "robust"]
MOST_BYTES = 3_000_000
"""A figure's JSON stays under this."""


def figures_of(
    data: xr.Dataset,
    *,
    tokens: Mapping[str, Any] | None = None,
    title: str = "",
    stamp: str = "",
    selection: Mapping[str, Any] | None = None,
    only: str | None = None,
    palette: str = "RdBu",
    scale: Scale = "own",
    dark: bool = False,
    relative: bool = False,
    window: int = 0,
) -> dict[str, go.Figure]:
    """Draw every array of a dataset.

    Args:
        data: arrays with ``units``, ``long_name``, ``signed``.
        tokens: raw texts: ``{"clean": [[…]…], "corrupt": …, "answers": {id: text}}``.
        title: what stands above every figure.
        stamp: the line of provenance below every figure (a result's ``stamp``).
        selection: axis -> entry, for axes of which one entry is shown at a time (``selectors_of``
            lists them); the first where nothing is said.
        only: draw this array alone.
        palette: ``"RdBu"`` or ``"PuOr"``.
        scale: colour limits from each array (``own``), from all of one unit (``shared``), or from
            the 99 % of the smallest absolute values (``robust``; what lies beyond is marked).
        dark: the dark theme (exports stay light).
        relative: label layers by their share of the depth, where an array carries it.
        window: of longer prompts show so many positions, from the first difference on; 0 for all.

    Returns:
        array name -> figure. ``figure.layout.meta`` says what is drawn: ``variable``, ``kind``,
        ``x``, ``y`` (axes), ``selection``, ``alt`` (one sentence for a screen reader).

    Raises:
        UsageError: an unknown array, axis entry, palette or scale.
    """
    if palette not in ("RdBu", "PuOr"):
        raise unknown_name("palette", str(palette), ("RdBu", "PuOr"))
    if scale not in ("own", "shared", "robust"):
        raise unknown_name("scale", str(scale), ("own", "shared", "robust"))
    names = drawn_names(data)
    if only is not None and only not in names:
        raise unknown_name("array", only, names)
    _known_axes(data, selection or {})
    view = View(data, tokens, dict(selection or {}), palette, scale, title, stamp, relative, window)
    return {n: theme(_draw(view, n), dark) for n in ([only] if only else names)}


def _known_axes(data: xr.Dataset, selection: Mapping[str, Any]) -> None:
    for axis in selection:
        if axis not in data.sizes:
            raise unknown_name("axis", str(axis), map(str, data.sizes))


def _draw(view: View, name: str) -> go.Figure:
    array = view.data[name]
    early = {a: v for a, v in view.selection.items() if a in array.dims}
    array, picked = narrow(array, early)
    plan = plan_of(array)
    array, more = narrow(array, {}, plan)
    picked |= more
    maker = MAKERS[plan.kind]
    figure, notes, axes = maker(view, name, array, plan, picked)
    _frame(figure, view, name, plan, picked, notes, axes)
    return _light_enough(figure)


def _frame(
    figure: go.Figure,
    view: View,
    name: str,
    plan: Plan,
    picked: dict[str, Any],
    notes: list[str],
    axes: tuple[str, str],
) -> None:
    """Title, what is selected, notes, stamp, and what a page must know of the figure."""
    array = view.data[name]
    long_name, units, _ = attrs_of(array, name)
    chosen = [
        f"{entry_name(a, v)} of {array.sizes[a]}" if a in ONE_BASED else entry_name(a, v)
        for a, v in picked.items()
        if array.sizes[a] > 1 or kind_of(a) not in ("image", "small")
    ]
    why = str(array.attrs.get("undefined") or view.data.attrs.get("undefined_reason") or "")
    notes = [n for n in notes if n]
    if why and any("hatched" in n for n in notes):
        notes.append(why)
    quiet = (
        [plain(line) for line in _folded(" · ".join([*chosen, *notes]))]
        if (chosen or notes)
        else []
    )
    crowded = 22 if plan.kind in ("patterns", "sheet") else 0
    above = textwrap.wrap(f"{view.title}: {long_name}" if view.title else long_name, 80)[:4]
    figure.update_layout(
        title={
            "text": "<br>".join(map(plain, above)),
            "x": 0.01,
            "xanchor": "left",
            "y": 1.0,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 12 * len(above)},
            "subtitle": {"text": "<br>".join(quiet)},
        },
        margin={
            "t": 40 + 20 * len(above) + 18 * len(quiet) + crowded,
            "l": 60,
            "r": 20,
            "b": 84 if view.stamp else 60,
        },
        meta={
            "variable": name,
            "kind": plan.kind,
            "x": axes[0],
            "y": axes[1],
            "selection": {a: v for a, v in picked.items()},
            "alt": alt_text(view, name, plan, picked),
        },
    )
    if view.stamp:
        _stamp(figure, view.stamp)


def _stamp(figure: go.Figure, stamp: str) -> None:
    """Under the x axis as part of its title, so that long tick labels push it down."""
    lines = [plain(line) for line in _folded(stamp, 84)]
    layout: Any = figure.layout
    if layout.xaxis.visible is False or "xaxis2" in layout:
        figure.add_annotation(
            text="<br>".join(lines),
            name="stamp",
            xref="paper",
            yref="paper",
            x=0.5,
            y=0,
            yshift=-18,
            yanchor="top",
            showarrow=False,
            font={"size": 10},
        )
        return
    above = layout.xaxis.title.text or ""
    small = "".join(f'<br><span style="font-size:10px">{line}</span>' for line in lines)
    figure.update_xaxes(title={"text": above + small})


def _folded(text: str, width: int = 110) -> list[str]:
    """``text`` in lines of at most ``width`` characters, broken between its parts."""
    lines = [""]
    for part in text.split(" · "):
        joined = f"{lines[-1]} · {part}" if lines[-1] else part
        if len(joined) > width and lines[-1]:
            lines.append(part)
        else:
            lines[-1] = joined
    return lines


def alt_text(view: View, name: str, plan: Plan, picked: Mapping[str, Any]) -> str:
    """One sentence for a screen reader: what is drawn and where it is largest. Plain text."""
    array, _ = narrow(view.data[name], picked)
    long_name, units, _ = attrs_of(array, name)
    if array.dtype.kind not in "iufb":
        return f"{long_name}."
    values = numbers_of(array)
    finite = np.isfinite(values)
    axes = ", ".join(f"{array.sizes[d]} {title_of(str(d))}" for d in array.dims)
    if not finite.any():
        return f"{long_name} over {axes or 'one number'}: undefined everywhere."
    if not array.dims:
        return f"{long_name}: {number(float(values))} {unit_text(units)}."
    at = np.unravel_index(int(np.argmax(np.where(finite, np.abs(values), -1))), values.shape)
    where = ", ".join(
        entry_name(str(d), labels_of(array, str(d))[i]) for d, i in zip(array.dims, at, strict=True)
    )
    return (
        f"{long_name} over {axes}; largest in size {number(float(values[at]))} at {where}; "
        f"{int((~finite).sum())} cells undefined."
    )


def _light_enough(figure: go.Figure) -> go.Figure:
    """Keep a figure's JSON under the cap: sentences go first, numbers stay."""
    size = len(str(figure.to_json()))
    if size <= MOST_BYTES:
        return figure
    for trace in figure.data:
        if trace.customdata is not None:
            trace.update(customdata=None, hovertemplate="%{x}, %{y}<extra></extra>")
    if len(str(figure.to_json())) > MOST_BYTES:
        raise UsageError(
            f"The figure would take {size / 1e6:.1f} MB in a page; at most 3 MB are drawn.",
            remedy="Select a part of it (selection=…), or read the array itself.",
        )
    return figure
