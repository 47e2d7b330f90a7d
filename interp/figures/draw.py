"""figures_of: a dataset's arrays, each drawn by the kinds of its axes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import plotly.graph_objects as go

from interp.figures import charts, graphs, grids
from interp.figures.axes import ONE_BASED, Axis, axis_of, entry_name, title_of
from interp.figures.choose import (
    Plan,
    drawn_names,
    kind_of,
    labels_of,
    narrow,
    noise_floor,
    plan_of,
    spoken_labels,
)
from interp.figures.palette import theme
from interp.figures.patterns import pattern_grid
from interp.figures.text import number, plain
from interp.terms.errors import UsageError, unknown_name

if TYPE_CHECKING:
    import xarray as xr

Scale = Literal["own", "shared", "robust"]
MOST_BYTES = 3_000_000
"""A figure's JSON stays under this."""


@dataclass(frozen=True)
class View:
    """What a person chose about the looks, and what every figure of a dataset shares."""

    data: Any
    tokens: Mapping[str, Any] | None = None
    selection: Mapping[str, Any] = field(default_factory=dict)
    palette: str = "RdBu"
    scale: str = "own"
    title: str = ""
    stamp: str = ""


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
    view = View(data, tokens, dict(selection or {}), palette, scale, title, stamp)
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


def _beside(
    view: View, name: str, suffix: str, array: xr.DataArray, picked: Mapping[str, Any]
) -> xr.DataArray | None:
    """The helper array of ``name`` (error, interval, inert), narrowed and laid out alike."""
    helper = view.data.get(name + suffix if suffix.startswith("_") else suffix)
    if helper is None:
        return None
    helper, _ = narrow(helper, {a: v for a, v in picked.items() if a in helper.dims})
    wanted = [d for d in array.dims if d in helper.dims]
    if "bound" in helper.dims:
        wanted = ["bound", *wanted]
    extra = [d for d in helper.dims if d not in wanted]
    if extra and suffix == "inert":
        helper = helper.all(extra)
    elif extra:
        return None
    helper = helper.transpose(*wanted)
    if [d for d in helper.dims if d != "bound"] != list(array.dims):
        if suffix != "inert":
            return None
        helper = helper.broadcast_like(array).transpose(*array.dims)
    return helper


def _interval(helper: xr.DataArray | None) -> tuple[np.ndarray, np.ndarray] | None:
    if helper is None or helper.sizes.get("bound") != 2:
        return None
    return np.asarray(helper[0].values, float), np.asarray(helper[1].values, float)


def _numbers(array: xr.DataArray) -> np.ndarray:
    return np.asarray(array.values, dtype=float)


def _attrs(array: xr.DataArray, name: str) -> tuple[str, str, bool]:
    return (
        str(array.attrs.get("long_name", name)),
        str(array.attrs.get("units", "")),
        bool(array.attrs.get("signed", 0)),
    )


def _cells(
    view: View, name: str, array: xr.DataArray, y: Any, x: Any, picked: Mapping[str, Any]
) -> grids.Cells:
    _, units, signed = _attrs(array, name)
    error = _beside(view, name, "_se", array, picked)
    inert = _beside(view, name, "inert", array, picked)
    shape = (len(y.names), len(x.names))
    interval = _interval(_beside(view, name, "_ci", array, picked))
    cells = grids.Cells(
        _numbers(array).reshape(shape),
        y,
        x,
        signed,
        units,
        floor=_floor(view, name),
        error=None if error is None else _numbers(error).reshape(shape),
        interval=None
        if interval is None
        else (interval[0].reshape(shape), interval[1].reshape(shape)),
        inert=None if inert is None else inert.values.astype(bool).reshape(shape),
    )
    _limit(view, name, cells)
    return cells


def _floor(view: View, name: str) -> float:
    return noise_floor(view.data, name)


def _limit(view: View, name: str, cells: grids.Cells) -> None:
    """Set the colour limits that the chosen scale asks for."""
    whole = [_numbers(view.data[name])]
    if view.scale == "own":
        return
    if view.scale == "shared":
        units = view.data[name].attrs.get("units")
        whole = [
            _numbers(view.data[n])
            for n in drawn_names(view.data)
            if view.data[n].attrs.get("units") == units
            and view.data[n].dtype.kind in "iuf"
            and bool(view.data[n].attrs.get("signed")) == cells.signed
        ]
    every = np.concatenate([w[np.isfinite(w)].ravel() for w in whole])
    if not every.size:
        return
    share = 99.0 if view.scale == "robust" else 100.0
    cells.limit = float(np.percentile(np.abs(every) if cells.signed else every, share)) or None
    cells.clipped = view.scale == "robust"
    if not cells.signed:
        cells.low = min(0.0, float(np.percentile(every, 100 - share)))
    cells.notes.append(
        "colours end at 99 % of the cells"
        if view.scale == "robust"
        else "one scale for all figures of this unit"
    )


def _grid(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    if plan.stack:
        return _stack(view, name, array, plan, picked)
    array = array.transpose(*plan.axes)
    y, x = (axis_of(array, a, view.tokens, picked) for a in plan.axes)
    cells = _cells(view, name, array, y, x, picked)
    flipped = plan.axes[0] in ("query", "label", "row", "boundary") or (
        kind_of(plan.axes[0]) in ("position", "small", "selector", "component")
    )
    figure = grids.heatmap(
        cells, palette=view.palette, square=plan.kind in ("square", "image"), y_up=not flipped
    )
    return figure, [grids.legend_of(cells, picked)], (plan.axes[1], plan.axes[0])


def _stack(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    layer, head = plan.stack
    array = array.transpose(layer, head, plan.axes[0])
    x = axis_of(array, plan.axes[0], view.tokens, picked)
    layers, heads = labels_of(array, layer), labels_of(array, head)
    raw = [f"L{a} H{b}" for a in layers for b in heads]
    ticks = [i * len(heads) for i in range(len(layers))] if len(raw) > 40 else range(len(raw))
    y = Axis(
        head,
        f"{title_of(layer)} and {title_of(head)}",
        raw,
        {
            "tickmode": "array",
            "tickvals": list(ticks),
            "ticktext": [raw[i] for i in ticks],
            "range": [-0.5, len(raw) - 0.5],
            "automargin": True,
        },
        "",
        list(range(len(raw))),
        raw,
        raw,
    )
    cells = _cells(view, name, array, y, x, picked)
    figure = grids.heatmap(cells, palette=view.palette)
    return figure, [grids.legend_of(cells, picked)], (plan.axes[0], f"{layer}+{head}")


def _patterns(
    view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]
) -> Any:
    if plan.axes[2:] and math.prod(array.sizes[d] for d in plan.axes[2:]) == 1:
        array = array.squeeze(list(plan.axes[2:]))
        return _grid(view, name, array, Plan("square", ("query", "key")), picked)
    return pattern_grid(array, tokens=view.tokens, picked=picked), [], ("key", "query")


def _words(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    array = array.transpose(*plan.axes) if len(array.dims) == 2 else array.expand_dims("row")
    first = plan.axes[0] if len(plan.axes) == 2 else "row"
    y = axis_of(array, first, view.tokens, picked)
    x = axis_of(array, "top", view.tokens, picked)
    answers = (view.tokens or {}).get("answers") or {}
    words = [
        [answers.get(int(t), answers.get(str(int(t)), f"#{int(t)}")) for t in row]
        for row in array.values
    ]
    partner = view.data[name].attrs.get("shade")
    shade = view.data[partner] if partner in view.data else None
    if shade is not None:
        shade, _ = narrow(shade, {a: v for a, v in picked.items() if a in shade.dims})
        shade = shade.transpose(*[d for d in array.dims if d in shade.dims])
    values = _numbers(shade).reshape(array.shape) if shade is not None else np.zeros(array.shape)
    _, units, signed = _attrs(shade if shade is not None else array, name)
    cells = grids.Cells(values, y, x, signed, units)
    figure = grids.word_table(words, cells)
    return figure, [grids.legend_of(cells, picked)], ("top", first)


def _bars(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    x = axis_of(array, plan.axes[0], view.tokens, picked)
    long_name, units, _ = _attrs(array, name)
    error = _beside(view, name, "_se", array, picked)
    figure = charts.bars(
        _numbers(array),
        x,
        long_name=long_name,
        units=units,
        error=None if error is None else _numbers(error),
        interval=_interval(_beside(view, name, "_ci", array, picked)),
    )
    return figure, [x.note], (plan.axes[0], "")


def _curve(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    array = array.transpose(*plan.axes)
    x = axis_of(array, plan.axes[0], view.tokens, picked)
    lines = axis_of(array, plan.axes[1], view.tokens, picked) if len(plan.axes) > 1 else None
    labels = labels_of(array, plan.axes[0])
    numeric = all(isinstance(v, (int, float)) for v in labels)
    long_name, units, _ = _attrs(array, name)
    error = _beside(view, name, "_se", array, picked)
    figure = charts.curves(
        _numbers(array),
        x,
        labels if numeric else x.values,
        lines,
        long_name=long_name,
        units=units,
        error=None if error is None else _numbers(error),
    )
    if not numeric:
        figure.update_xaxes(**x.layout)
    return figure, [x.note], (plan.axes[0], plan.axes[1] if lines else "")


def _whiskers(
    view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]
) -> Any:
    array = array.transpose(*plan.axes)
    bound = axis_of(array, "bound", view.tokens, picked)
    x = axis_of(array, plan.axes[1], view.tokens, picked) if len(plan.axes) > 1 else None
    long_name, units, _ = _attrs(array, name)
    figure = charts.whiskers(_numbers(array), bound, x, long_name=long_name, units=units)
    return figure, [], (plan.axes[1] if x else "", "bound")


def _graph(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    array = array.transpose("src", "dst")
    _, units, signed = _attrs(array, name)
    src, dst = ([str(v) for v in spoken_labels(array, d)] for d in ("src", "dst"))
    known = set(src)
    figure, notes = graphs.graph(
        _numbers(array),
        src,
        dst,
        signed=signed,
        units=units,
        node_of=lambda label: next(
            (
                label[: label.rfind(s)]
                for s in (".q", ".k", ".v", " q", " k", " v", "<q>", "<k>", "<v>")
                if label.endswith(s) and label[: label.rfind(s)] in known
            ),
            label,
        ),
    )
    return figure, notes, ("src", "dst")


def _card(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    _, units, _ = _attrs(array, name)
    value = array.values.item()
    value = value if isinstance(value, (str, bytes)) else float(value)
    error = _beside(view, name, "_se", array, picked)
    interval = _interval(_beside(view, name, "_ci", array, picked))
    figure = charts.card(
        value.decode() if isinstance(value, bytes) else value,
        units=units,
        error=None if error is None else float(error),
        interval=interval and (float(interval[0]), float(interval[1])),
    )
    return figure, [], ("", "")


MAKERS = {
    "patterns": _patterns,
    "grid": _grid,
    "square": _grid,
    "image": _grid,
    "words": _words,
    "bars": _bars,
    "curve": _curve,
    "whiskers": _whiskers,
    "graph": _graph,
    "card": _card,
}


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
    long_name, units, _ = _attrs(array, name)
    chosen = [
        f"{entry_name(a, v)} of {array.sizes[a]}" if a in ONE_BASED else entry_name(a, v)
        for a, v in picked.items()
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
    above = plain(f"{view.title}: {long_name}" if view.title else long_name)
    figure.update_layout(
        title={
            "text": above,
            "x": 0.01,
            "xanchor": "left",
            "y": 0.985,
            "yanchor": "top",
            "subtitle": {"text": "<br>".join(quiet)},
        },
        margin={"t": 60 + 18 * len(quiet), "l": 60, "r": 20, "b": 84 if view.stamp else 60},
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
    lines = [plain(line) for line in _folded(stamp)]
    if figure.layout.xaxis.visible is False or "xaxis2" in figure.layout:
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
    above = figure.layout.xaxis.title.text or ""
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
    long_name, units, _ = _attrs(array, name)
    if array.dtype.kind not in "iufb":
        return f"{long_name}."
    values = _numbers(array)
    finite = np.isfinite(values)
    axes = ", ".join(f"{array.sizes[d]} {title_of(str(d))}" for d in array.dims)
    if not finite.any():
        return f"{long_name} over {axes or 'one number'}: undefined everywhere."
    if not array.dims:
        return f"{long_name}: {number(float(values))} {grids.unit_text(units)}."
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
    size = len(figure.to_json())
    if size <= MOST_BYTES:
        return figure
    for trace in figure.data:
        if trace.customdata is not None:
            trace.update(customdata=None, hovertemplate="%{x}, %{y}<extra></extra>")
    if len(figure.to_json()) > MOST_BYTES:
        raise UsageError(
            f"The figure would take {size / 1e6:.1f} MB in a page; at most 3 MB are drawn.",
            remedy="Select a part of it (selection=…), or read the array itself.",
        )
    return figure
