"""Which figure an array gets: from the kinds of its axes alone, never from the method's name."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from interp.figures.text import glyphs
from interp.terms.axes import AXES
from interp.terms.errors import UsageError, near_misses

if TYPE_CHECKING:
    import xarray as xr

Kind = Literal[
    "patterns",
    "graph",
    "image",
    "curve",
    "whiskers",
    "square",
    "grid",
    "words",
    "bars",
    "card",
    "scatter",
    "points",
    "sheet",
    "waterfall",
]

PICTURES: tuple[tuple[str, str], ...] = (("row", "column"), ("row_out", "column_out"))
"""Pairs of axes that make a picture, (y, x)."""

MOST_SHEET = 32
"""Most pictures side by side; with more, one is shown at a time."""

SQUARES: tuple[tuple[str, str], ...] = (
    ("query", "key"),
    ("boundary", "layer_skipped"),
    ("layer", "layer_skipped"),
    ("layer_a", "layer_b"),
    ("label", "label_b"),
)
"""Pairs of one kind, (y, x): drawn as a square map."""

ROWS = ("layer", "head", "small", "component", "position")
"""Which of two kinds stands on the y axis: the earlier one."""

STACKED_ROWS = 400
"""layer × head × something is drawn with a row for every head, up to this many rows."""

MOST_MAPS = 64
"""Most maps of a grid of attention patterns; with more, one layer is shown at a time."""

SMALL_KINDS = {
    **dict.fromkeys(("alpha", "n_train", "reading", "drop"), "curve"),
    **dict.fromkeys(
        ("observable", "stat", "readout", "times", "target", "score", "seed"), "selector"
    ),
}
"""Small axes that are drawn as another kind: numbers with an order, or one entry at a time."""

LINES = 8
"""Most lines of one curve figure; more become a choice."""

HELPERS = ("inert",)
SUFFIXES = ("_se", "_ci", "_floor")
"""Arrays that belong to another: its standard error, interval, noise floor."""


@dataclass(frozen=True)
class Plan:
    """How one array is drawn.

    Args:
        kind: the kind of figure.
        axes: the axes that are drawn; for maps (y, x), for curves (x, line).
        stack: two axes whose product makes the rows of a grid, or empty.
        selectors: the axes of which one entry is shown at a time.
    """

    kind: Kind
    axes: tuple[str, ...]
    selectors: tuple[str, ...] = ()
    stack: tuple[str, ...] = ()


def kind_of(axis: str) -> str:
    """The kind of an axis; ``small`` for those a method adds."""
    return SMALL_KINDS.get(axis) or AXES.get(axis, "small")


def drawn_names(data: xr.Dataset) -> list[str]:
    """The arrays that get a figure of their own: numbers, and no helpers of other arrays."""
    names = [str(n) for n in data.data_vars]
    drawn_with = {data[n].attrs.get(k) for n in names for k in ("rays", "segments")}
    out = []
    for name in names:
        parent = next((name[: -len(s)] for s in SUFFIXES if name.endswith(s)), None)
        if name in HELPERS or parent in names or name in drawn_with:
            continue
        if data[name].dtype.kind in "biufSUO":
            out.append(name)
    return out


def noise_floor(data: xr.Dataset, name: str) -> float:
    """The noise floor of an array, 0 where none is known.

    An array says it itself (``noise_floor``), or its dataset does: ``noise_floor_NAME``, and
    ``noise_floor`` for raw changes of the metric (``…_raw``).
    """
    found = data[name].attrs.get("noise_floor", data.attrs.get(f"noise_floor_{name}"))
    if found is None and name.endswith("_raw"):
        found = data.attrs.get("noise_floor")
    return float(found) if found is not None and math.isfinite(float(found)) else 0.0


def plan_of(array: xr.DataArray) -> Plan:
    """Choose the figure for an array by the kinds of its axes."""
    dims = [str(d) for d in array.dims]
    sizes = {d: int(array.sizes[d]) for d in dims}
    if {"src", "dst"} <= set(dims):
        return _plan("graph", ("src", "dst"), dims)
    if sizes.get("measure") == 2 and len(dims) > 1:
        other = next(d for d in dims if d != "measure")
        return _plan("scatter", ("measure", other), dims)
    if sizes.get("coordinate") in (2, 3) and len(dims) > 1:
        other = next((d for d in ("draw", "label") if d in dims), None)
        other = other or next(d for d in dims if d != "coordinate")
        return _plan("points", (other, "coordinate"), dims)
    for pair in PICTURES:
        if set(pair) <= set(dims):
            return _picture(array, pair, dims, sizes)
    if array.attrs.get("waterfall") and "component" in dims:
        return _plan("waterfall", ("component",), dims)
    if "bound" in dims:
        others = [d for d in dims if d != "bound" and kind_of(d) not in ("selector",)]
        others = others or [d for d in dims if d != "bound"]
        return _plan("whiskers", ("bound", *others[:1]), dims)
    curve = [d for d in dims if kind_of(d) == "curve"]
    if curve:
        return _curve(curve[0], dims, sizes)
    heads = [d for d in dims if kind_of(d) == "head"]
    if {"query", "key"} <= set(dims) and heads:
        grid = [d for d in dims if kind_of(d) in ("layer", "head")]
        drawn = grid if math.prod(sizes[d] for d in grid) <= MOST_MAPS else heads[:1]
        return _plan("patterns", ("query", "key", *drawn), dims)
    for pair in SQUARES:
        if set(pair) <= set(dims):
            return _plan("square", pair, dims)
    return _by_kinds(dims, sizes, holds_tokens(array))


def _plan(kind: Kind, axes: tuple[str, ...], dims: list[str]) -> Plan:
    return Plan(kind, axes, tuple(d for d in dims if d not in axes))


def _picture(
    array: xr.DataArray, pair: tuple[str, str], dims: list[str], sizes: dict[str, int]
) -> Plan:
    """One picture, or a sheet of them along the axis that the array names (``sheet``)."""
    along = str(array.attrs.get("sheet", ""))
    if along in dims and 1 < sizes[along] <= MOST_SHEET:
        return _plan("sheet", (*pair, along), dims)
    return _plan("image", pair, dims)


def _curve(x: str, dims: list[str], sizes: dict[str, int]) -> Plan:
    lines = [d for d in dims if d != x and sizes[d] <= LINES]
    lines.sort(key=lambda d: kind_of(d) == "selector")
    return _plan("curve", (x, *lines[:1]), dims)


def _by_kinds(dims: list[str], sizes: dict[str, int], words: bool) -> Plan:
    main = [d for d in dims if kind_of(d) != "selector"]
    several = [d for d in main if sizes[d] > 1 or kind_of(d) != "small"]
    main = several or main  # of a small axis with one entry there is nothing to see
    if not main:
        main = [d for d in dims if kind_of(d) == "selector"]
    if words and dims:
        across = "top" if "top" in dims else main[-1]
        rows = [d for d in main if d != across] or [d for d in dims if d != across]
        rows.sort(key=lambda d: kind_of(d) != "position")
        return _plan("words", (*rows[:1], across), dims)
    if not main:
        return Plan("card", ())
    if len(main) == 1:
        return _plan("bars", (main[0],), dims)
    kinds = [kind_of(d) for d in main]
    if len(main) == 3 and sorted(kinds)[:2] == ["head", "layer"]:
        return _stacked(main, dims, sizes)
    main.sort(
        key=lambda d: (
            kind_of(d) == "small",
            ROWS.index(kind_of(d)) if kind_of(d) in ROWS else len(ROWS),
        )
    )
    first = main[0]
    second = next((d for d in main[1:] if kind_of(d) != kind_of(first)), main[1])
    pair = tuple(sorted((first, second), key=lambda d: _row_rank(d)))
    return _plan("grid", pair, dims)


def _row_rank(axis: str) -> int:
    kind = kind_of(axis)
    return ROWS.index(kind) if kind in ROWS else len(ROWS)


def _stacked(main: list[str], dims: list[str], sizes: dict[str, int]) -> Plan:
    layer = next(d for d in main if kind_of(d) == "layer")
    head = next(d for d in main if kind_of(d) == "head")
    rest = next(d for d in main if d not in (layer, head))
    if sizes[layer] * sizes[head] > STACKED_ROWS:
        return _plan("grid", (layer, rest), dims)
    others = tuple(d for d in dims if d not in main)
    return Plan("grid", (rest,), others, stack=(layer, head))


def holds_tokens(array: xr.DataArray) -> bool:
    """Whether the numbers are token ids: whole numbers with the unit ``token``."""
    said = array.attrs.get("token_ids")
    return (
        bool(said)
        if said is not None
        else (array.attrs.get("units") == "token" and array.dtype.kind in "iu")
    )


def labels_of(array: xr.DataArray, axis: str) -> list[Any]:
    """The coordinate of an axis as plain values; 0…n-1 where it has none."""
    if axis in array.coords and array.coords[axis].ndim == 1:
        return _values(array, axis)
    return list(range(int(array.sizes[axis])))


def _values(array: xr.DataArray, coord: str) -> list[Any]:
    return [v.item() if hasattr(v, "item") else v for v in array.coords[coord].values]


def spoken_labels(array: xr.DataArray, axis: str) -> list[Any]:
    """Labels for people: a ``name`` coordinate beside the axis, or its layer put in front.

    A chosen list of neurons carries its layers as a coordinate (``layer`` on ``neuron``), the
    nodes of a graph their layer, head and input. Classes that are tokens carry their raw texts
    (``label_token`` on ``label``), which are shown as glyphs.
    """
    labels = labels_of(array, axis)
    beside = {str(c) for c in array.coords if array.coords[c].dims == (axis,)} - {axis}
    if f"{axis}_token" in beside:
        return [glyphs(str(v)) for v in _values(array, f"{axis}_token")]
    for named in ("name", f"{axis}_name", "names"):
        if named in beside:
            return _values(array, named)
    if "layer" in beside and not isinstance(labels[0] if labels else "", str):
        return [
            f"L{layer} {axis[0].upper()}{label}"
            for layer, label in zip(_values(array, "layer"), labels, strict=True)
        ]
    return labels


def selectors_of(data: xr.Dataset) -> dict[str, list[Any]]:
    """The choices that the figures of a dataset offer: axis -> its entries."""
    out: dict[str, list[Any]] = {}
    for name in drawn_names(data):
        for axis in plan_of(data[name]).selectors:
            out.setdefault(axis, labels_of(data[name], axis))
    return out


def narrow(
    array: xr.DataArray, selection: Mapping[str, Any], plan: Plan | None = None
) -> tuple[xr.DataArray, dict[str, Any]]:
    """Pick one entry of every selector.

    Args:
        array: what is to be drawn.
        selection: axis -> entry (its label; an index where the axis has no labels).
        plan: whose selectors are narrowed to their first entry where nothing is selected.

    Returns:
        the narrowed array, and what was picked.

    Raises:
        UsageError: an entry that the axis does not have.
    """
    picked: dict[str, Any] = {}
    for axis, wanted in selection.items():
        if axis in array.dims and wanted is not None:
            array, picked[axis] = _pick(array, axis, wanted)
    for axis in plan.selectors if plan else ():
        if axis in array.dims:
            label = labels_of(array, axis)[0]
            array, picked[axis] = array.isel({axis: 0}), label
    return array, picked


def _pick(array: xr.DataArray, axis: Hashable, wanted: Any) -> tuple[xr.DataArray, Any]:
    labels = labels_of(array, str(axis))
    for i, label in enumerate(labels):
        if label == wanted or str(label) == str(wanted):
            return array.isel({axis: i}), label
    close = near_misses(str(wanted), map(str, labels))
    raise UsageError(
        f"The axis {axis!r} has no entry {wanted!r}.",
        remedy=f"It has {', '.join(close or map(str, labels[:20]))}.",
    )
