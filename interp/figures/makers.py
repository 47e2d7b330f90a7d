"""Makers: for each kind of figure the function that draws it from an array and its helpers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.figures import charts, graphs, grids
from interp.figures.axes import Axis, axis_of, title_of
from interp.figures.choose import (
    Plan,
    drawn_names,
    holds_tokens,
    kind_of,
    labels_of,
    narrow,
    noise_floor,
    spoken_labels,
)
from interp.figures.folding import fold
from interp.figures.panels import sheet_of, waterfall_of
from interp.figures.patterns import pattern_grid
from interp.figures.points import Cloud, cloud
from interp.figures.text import number, plain

if TYPE_CHECKING:
    import xarray as xr


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
    relative: bool = False
    window: int = 0


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


def numbers_of(array: xr.DataArray) -> np.ndarray:
    """Values as float64."""
    return np.asarray(array.values, dtype=float)


def attrs_of(array: xr.DataArray, name: str) -> tuple[str, str, bool]:
    """What it is, its unit, and whether its sign means something."""
    return (
        str(array.attrs.get("long_name", name)),
        str(array.attrs.get("units", "")),
        bool(array.attrs.get("signed", 0)),
    )


def certified(array: xr.DataArray, axis: str, entries: Axis | None) -> list[bool] | None:
    """Which lines or bars are certified bounds: by the axis's own word, else by the array's.

    None where an array does not say what it certifies.
    """
    beside = array.coords.get("certificate")
    if beside is not None and beside.dims == (axis,):
        return [str(v) in ("upper", "exact") for v in beside.values]
    if "certified" not in array.attrs:
        return None
    return [bool(array.attrs["certified"])] * (len(entries.names) if entries else 1)


def _cells(
    view: View, name: str, array: xr.DataArray, y: Any, x: Any, picked: Mapping[str, Any]
) -> grids.Cells:
    _, units, signed = attrs_of(array, name)
    error = _beside(view, name, "_se", array, picked)
    inert = _beside(view, name, "inert", array, picked)
    shape = (len(y.names), len(x.names))
    tests = [
        None if error is None else _beside(view, name, p, array, picked)
        for p in ("p_value", "p_fwer")
    ]
    interval = _interval(_beside(view, name, "_ci", array, picked))
    cells = grids.Cells(
        numbers_of(array).reshape(shape),
        y,
        x,
        signed,
        units,
        floor=noise_floor(view.data, name),
        error=None if error is None else numbers_of(error).reshape(shape),
        interval=None
        if interval is None
        else (interval[0].reshape(shape), interval[1].reshape(shape)),
        inert=None if inert is None else inert.values.astype(bool).reshape(shape),
        p=tuple(None if t is None else numbers_of(t).reshape(shape) for t in tests),  # type: ignore[arg-type]
    )
    _limit(view, name, cells)
    return cells


def _scaled_with(view: View, name: str) -> np.ndarray:
    """The numbers that one scale serves: the array's own, or those of all arrays of its unit."""
    own = view.data[name].attrs
    names = [name]
    if view.scale == "shared":
        names = [
            n
            for n in drawn_names(view.data)
            if view.data[n].attrs.get("units") == own.get("units")
            and view.data[n].dtype.kind in "iuf"
            and bool(view.data[n].attrs.get("signed")) == bool(own.get("signed"))
        ]
    whole = [numbers_of(view.data[n]) for n in names]
    return np.concatenate([w[np.isfinite(w)].ravel() for w in whole])


def _limit(view: View, name: str, cells: grids.Cells) -> None:
    """Set the colour limits that the chosen scale asks for."""
    low, high = (view.data[name].attrs.get(k) for k in ("low", "high"))
    if view.scale == "own" and high is not None:
        # a quantity with ends of its own: maps of it compare at sight, what lies beyond is marked
        cells.limit, cells.clipped = float(high), True
        cells.low = None if low is None else float(low)
    if view.scale == "own":
        return
    every = _scaled_with(view, name)
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
    y, x = (axis_of(array, a, view.tokens, picked, view.relative) for a in plan.axes)
    cells = _cells(view, name, array, y, x, picked)
    flipped = plan.axes[0] in ("query", "label", "row", "boundary") or (
        kind_of(plan.axes[0]) in ("position", "small", "selector", "component")
    )
    figure = grids.heatmap(
        cells, palette=view.palette, square=plan.kind in ("square", "image"), y_up=not flipped
    )
    notes = [grids.legend_of(cells, picked)]
    if view.window and plan.kind == "grid" and kind_of(plan.axes[1]) == "position":
        notes += fold(figure, x, cells.inert, view.window)
    return figure, notes, (plan.axes[1], plan.axes[0])


def _stack(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    layer, head = plan.stack
    array = array.transpose(layer, head, plan.axes[0])
    x = axis_of(array, plan.axes[0], view.tokens, picked, view.relative)
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
    notes = [grids.legend_of(cells, picked)]
    if view.window and kind_of(plan.axes[0]) == "position":
        notes += fold(figure, x, cells.inert, view.window)
    return figure, notes, (plan.axes[0], f"{layer}+{head}")


def _patterns(
    view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]
) -> Any:
    if plan.axes[2:] and math.prod(array.sizes[d] for d in plan.axes[2:]) == 1:
        array = array.squeeze(list(plan.axes[2:]))
        return _grid(view, name, array, Plan("square", ("query", "key")), picked)
    limit = None
    if view.scale != "own":
        every = np.abs(_scaled_with(view, name))
        share = 99.0 if view.scale == "robust" else 100.0
        limit = float(np.percentile(every, share)) if every.size else None
    figure = pattern_grid(array, tokens=view.tokens, picked=picked, limit=limit)
    return figure, [], ("key", "query")


def _words(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    across = plan.axes[-1]
    x = axis_of(array, across, view.tokens, picked, view.relative)
    if len(plan.axes) == 2:
        array = array.transpose(*plan.axes)
        y = axis_of(array, plan.axes[0], view.tokens, picked, view.relative)
    else:
        array = array.expand_dims("row")
        y = Axis("row", "", [""], {"tickvals": [], "range": [-0.5, 0.5]}, "", [0], [""], [""])
    answers = (view.tokens or {}).get("answers") or {}
    words = [
        [answers.get(int(t), answers.get(str(int(t)), f"#{int(t)}")) for t in row]
        for row in array.values
    ]
    partner = view.data[name].attrs.get("shade") or _score_of(view, name)
    shade = view.data[partner] if partner in view.data else None
    if shade is not None:
        shade, _ = narrow(shade, {a: v for a, v in picked.items() if a in shade.dims})
        shade = shade.transpose(*[d for d in array.dims if d in shade.dims])
    values = numbers_of(shade).reshape(array.shape) if shade is not None else np.zeros(array.shape)
    _, units, _ = attrs_of(shade, name) if shade is not None else ("", "", False)
    cells = grids.Cells(values, y, x, False, units)
    figure = grids.word_table(words, cells)
    if shade is None:
        figure.update_traces(showscale=False)
    return figure, [grids.legend_of(cells, picked)], (across, y.name)


def _score_of(view: View, name: str) -> str | None:
    """The array that says how much each token counts: same axes, numbers, alike in name first."""
    dims = view.data[name].dims
    same = [
        n
        for n in drawn_names(view.data)
        if view.data[n].dims == dims and n != name and not holds_tokens(view.data[n])
    ]
    stem = name.removesuffix("_id")
    return next((n for n in same if n.startswith(stem)), same[0] if same else None)


def _bars(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    x = axis_of(array, plan.axes[0], view.tokens, picked, view.relative)
    _, units, _ = attrs_of(array, name)
    error = _beside(view, name, "_se", array, picked)
    figure = charts.bars(
        numbers_of(array),
        x,
        units=units,
        error=None if error is None else numbers_of(error),
        interval=_interval(_beside(view, name, "_ci", array, picked)),
        sure=certified(array, plan.axes[0], x),
    )
    return figure, [x.note], (plan.axes[0], "")


def _logarithmic(figure: Any, array: xr.DataArray) -> None:
    """A logarithmic scale where the array asks for one (``log``) and its numbers bear it."""
    values = numbers_of(array)
    values = values[np.isfinite(values)]
    if array.attrs.get("log") and values.size and values.min() > 0:
        if values.max() > 20 * values.min():
            figure.update_yaxes(type="log")


def _curve(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    array = array.transpose(*plan.axes)
    x = axis_of(array, plan.axes[0], view.tokens, picked, view.relative)
    others = plan.axes[1:]
    lines = axis_of(array, others[0], view.tokens, picked, view.relative) if others else None
    labels = labels_of(array, plan.axes[0])
    numeric = all(isinstance(v, (int, float)) for v in labels)
    long_name, units, _ = attrs_of(array, name)
    error = _beside(view, name, "_se", array, picked)
    figure = charts.curves(
        numbers_of(array),
        x,
        labels if numeric else x.values,
        lines,
        long_name=long_name,
        units=units,
        error=None if error is None else numbers_of(error),
        sure=certified(array, others[0] if others else "", lines),
        log=array.attrs.get("scale") == "log",
    )
    if not numeric:
        figure.update_xaxes(**x.layout)
    _logarithmic(figure, array)
    return figure, [x.note], (plan.axes[0], others[0] if others else "")


def _whiskers(
    view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]
) -> Any:
    array = array.transpose(*plan.axes)
    bound = axis_of(array, "bound", view.tokens, picked, view.relative)
    others = plan.axes[1:]
    x = axis_of(array, others[0], view.tokens, picked, view.relative) if others else None
    long_name, units, _ = attrs_of(array, name)
    figure = charts.whiskers(numbers_of(array), bound, x, long_name=long_name, units=units)
    return figure, [], (others[0] if others else "", "bound")


def _scatter(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    array = array.transpose(*plan.axes)
    measure, cells = (axis_of(array, d, view.tokens, picked, view.relative) for d in plan.axes)
    _, units, _ = attrs_of(array, name)
    figure = charts.scatter(numbers_of(array), measure, cells, units=units)
    note = "on the dashed line both are equal"
    return figure, [note], (measure.raw[0], measure.raw[1])


def _graph(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    array = array.transpose("src", "dst")
    _, units, signed = attrs_of(array, name)
    src, dst = ([str(v) for v in spoken_labels(array, d)] for d in ("src", "dst"))
    known = set(src)
    figure, notes = graphs.graph(
        numbers_of(array),
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
    _, units, _ = attrs_of(array, name)
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


def _points(view: View, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]) -> Any:
    """Points with what their attributes name.

    Colour and symbol are coordinates beside the points; rays, centres and segments are other
    arrays with a coordinate axis.
    """
    across = plan.axes[0]
    array = array.transpose(*plan.axes)
    said = array.attrs
    places = numbers_of(array)[:, : 2 if said.get("flat") else 3]
    width = places.shape[1]
    axis = axis_of(array, across, view.tokens, picked, view.relative)

    def beside(key: str) -> np.ndarray | None:
        found = said.get(key)
        return array.coords[found].values if found in array.coords else None

    def other(key: str) -> tuple[np.ndarray | None, list[str]]:
        found = said.get(key)
        if found not in view.data:
            return None, []
        table = view.data[found].transpose(..., "coordinate")
        names = [str(v) for v in spoken_labels(table, str(table.dims[0]))]
        return numbers_of(table)[..., :width], names

    colour = beside("colour")
    colour = np.asarray(axis.raw) if colour is None and len(places) <= 60 else colour
    (centres, centre_names), (rays, ray_names) = other("centres"), other("rays")
    names = list(axis.names)
    for key in ("colour", "symbol"):
        values = beside(key)
        if values is not None:
            word = plain(title_of(str(said[key]).removeprefix("draw_")))
            names = [
                f"{n}<br>{word} {plain(number(v) if isinstance(v, float) else str(v))}"
                for n, v in zip(names, values.tolist(), strict=True)
            ]
    figure = cloud(Cloud(
        places, names, colour, title_of(str(said.get("colour", across)).removeprefix("draw_")),
        beside("symbol"), centres, centre_names, rays, ray_names, other("segments")[0],
    ))  # fmt: skip
    return figure, [], (across, "coordinate")


MAKERS: dict[str, Any] = {
    "sheet": sheet_of,
    "waterfall": waterfall_of,
    "scatter": _scatter,
    "patterns": _patterns,
    "grid": _grid,
    "square": _grid,
    "image": _grid,
    "words": _words,
    "bars": _bars,
    "curve": _curve,
    "points": _points,
    "whiskers": _whiskers,
    "graph": _graph,
    "card": _card,
}
"""Kind -> ``maker(view, name, array, plan, picked)`` -> (figure, notes, (x axis, y axis))."""
