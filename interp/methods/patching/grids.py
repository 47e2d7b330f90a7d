"""Grids: from knobs to cells with their axes, and back from numbers to named arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from interp.engine import Cell
from interp.terms import KINDS, CapabilityError, Edit, HookedModel, PromptPairs, Site, UsageError
from interp.terms.edits import Mode

AUTO = {
    "embed": "position",
    "z": "layer,head",
    "q": "layer,head",
    "k": "layer,kv_head",
    "v": "layer,kv_head",
    "pattern": "layer,head",
    "mlp_post": "neuron",
    "feature": "feature",
}
AXES = {
    "residual": ("layer,position", "layer,slot", "layer"),
    "embed": ("position", "slot"),
    "head": ("layer,head", "layer,head,position", "layer,head,slot"),
    "pattern": ("layer,head", "layer,head,query", "layer,head,query,key"),
    "mlp_post": ("neuron", "neuron,position", "neuron,slot"),
    "feature": ("feature", "feature,position", "feature,slot"),
}


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells with the axes they are laid out on.

    Args:
        dims: names of the axes.
        coords: values of each axis.
        cells: row-major along ``dims``.
        index: place of each cell in the flattened grid where some places have none.
        further: coordinates that belong to an axis: name -> (axis, values).
    """

    dims: tuple[str, ...]
    coords: dict[str, np.ndarray]
    cells: list[Cell]
    index: np.ndarray | None = None
    further: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return tuple(len(self.coords[d]) for d in self.dims)

    def coordinates(self) -> dict[str, Any]:
        """All coordinates, as a dataset takes them."""
        return {**self.coords, **self.further}

    def laid(self, values: np.ndarray) -> np.ndarray:
        """``[…, cell]`` on the grid; NaN (0 for whole numbers) where there is no cell."""
        if self.index is not None:
            empty = np.nan if values.dtype.kind == "f" else 0
            whole = np.full((*values.shape[:-1], math.prod(self.shape)), empty, values.dtype)
            whole[..., self.index] = values
            values = whole
        return values.reshape(*values.shape[:-1], *self.shape)


def axes_of(site: str, axes: str, pairs: PromptPairs) -> tuple[str, ...]:
    """The axes of a sweep; ``"auto"`` gives the usual ones for the site.

    Raises:
        UsageError: axes that the site does not have, or positions that do not align.
    """
    group = "head" if KINDS[site].head_axis else "residual"
    group = site if site in AXES else group
    axis = KINDS[site].head_axis or "head"
    if axes == "auto":
        axes = AUTO.get(site, "layer,position")
        if "position" in axes and not pairs.aligned():
            axes = axes.replace("position", "slot") if pairs.slots else "layer"
    allowed = tuple(a.replace("head", axis) for a in AXES[group])
    axes = axes.replace("kv_head", "head").replace("head", axis)
    if axes not in allowed:
        raise UsageError(
            f"Site {site!r} has no sweep over {axes!r}.",
            remedy=f"Use axes {' or '.join(repr(a) for a in allowed)}.",
        )
    names = tuple(axes.split(","))
    if {"position", "query"} & set(names) and not pairs.aligned():
        slots = ", ".join(sorted(pairs.slots)) or "none here"
        raise UsageError(
            "These prompts differ in length, so a position means something else in each.",
            remedy=f"Sweep over slots (axes with 'slot': {slots}) or over layers alone.",
        )
    if "slot" in names and not pairs.slots:
        raise UsageError("This task names no slots.", remedy="Sweep over positions or layers.")
    return names


def _chosen(what: str, wanted: Sequence[int] | None, count: int) -> np.ndarray:
    if wanted is None:
        return np.arange(count)
    index = np.array([w + count if w < 0 else w for w in wanted], dtype=np.int64)
    if not len(index) or (index < 0).any() or (index >= count).any():
        raise UsageError(f"{what} {list(wanted)} were given; there are {count}, counted from 0.")
    return index


def chosen_layers(wanted: Sequence[int] | None, n_layers: int) -> np.ndarray:
    """Layers to sweep; negative ones count from the end."""
    return _chosen("Layers", wanted, n_layers)


def make_grid(
    model: HookedModel,
    pairs: PromptPairs,
    site: str,
    axes: str,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    window: int = 1,
    with_: str = "source",
    values: dict[Site, np.ndarray] | None = None,
    mode: Mode = "replace",
    neurons: Sequence[Site] = (),
    direction: str = "denoising",
) -> Grid:
    """The cells of a sweep.

    Args:
        model: for its shape.
        pairs: for lengths and slots.
        site: kind of site.
        axes: comma-separated axes, or ``"auto"``.
        layers: which layers (default all); negative counts from the end.
        positions: which positions (default all).
        window: so many neighbouring layers are edited together, centred on the named one.
        with_: ``"source"`` or ``"zero"``; anything else takes its arrays from ``values``.
        values: whole site -> array that broadcasts to ``[prompt, position, *site dims]``.
        mode: whether values replace or are added.
        neurons: which neurons, for ``mlp_post``.
        direction: which prompts are the base run, whose positions are named.
    """
    names = axes_of(site, axes, pairs)
    shape = model.shape
    if site == "resid_mid" and shape.parallel:
        raise CapabilityError(
            "This model has no resid_mid: attention and MLP read the same residual.",
            remedy="Use resid_pre, attn_out or mlp_out.",
        )
    coords: dict[str, np.ndarray] = {}
    longest = max(pairs.base_lengths(direction))
    for name in names:
        if name == "layer":
            coords[name] = _chosen("Layers", layers, shape.n_layers)
        elif name in ("head", "kv_head"):
            coords[name] = np.arange(shape.n_heads if name == "head" else shape.n_kv_heads)
        elif name in ("position", "query"):
            coords[name] = _chosen("Positions", positions, longest)
        elif name == "key":
            coords[name] = np.arange(longest)
        elif name == "neuron":
            coords[name] = np.array([f"L{s.layer}N{s.neuron}" for s in neurons])
        else:
            coords[name] = np.array(list(pairs.slots))
    cells, kept = [], []
    sizes = tuple(len(coords[n]) for n in names)
    for index in np.ndindex(*sizes):
        at = {n: coords[n][i] for n, i in zip(names, index, strict=True)}
        if "key" in at and at["key"] > at["query"]:
            continue  # nothing looks ahead
        kept.append(index)
        if "neuron" in at:
            cells.append(_neuron_cell(neurons[index[0]], at, with_, values, mode))
        else:
            cells.append(_cell(site, at, shape.n_layers, window, with_, values, mode))
    whole = len(kept) == math.prod(sizes)
    places = None if whole else np.array([np.ravel_multi_index(k, sizes) for k in kept])
    further = {}
    if "neuron" in names:
        further["neuron_layer"] = ("neuron", np.array([s.layer for s in neurons]))
        further["neuron_index"] = ("neuron", np.array([s.neuron for s in neurons]))
    return Grid(names, coords, cells, places, further)


def _neuron_cell(
    neuron: Site,
    at: dict[str, Any],
    with_: str,
    values: dict[Site, np.ndarray] | None,
    mode: Mode,
) -> Cell:
    where = at.get("position")
    place = neuron.at(str(at["slot"]) if "slot" in at else None if where is None else int(where))
    value = with_ if values is None else values[place.whole][:, :, place.neuron]
    return Cell((Edit(place, value, mode),))


def _cell(
    site: str,
    at: dict[str, Any],
    n_layers: int,
    window: int,
    with_: str,
    values: dict[Site, np.ndarray] | None,
    mode: Mode,
) -> Cell:
    where = at.get("position", at.get("query", at.get("slot")))
    key = int(at["key"]) if "key" in at else None
    position = None if where is None else str(where) if "slot" in at else int(where)  # type: ignore[call-overload]
    head = at.get("head", at.get("kv_head"))
    if "layer" not in at:
        layers: list[int | None] = [None]
    else:
        first = int(at["layer"]) - window // 2  # type: ignore[call-overload]
        layers = [n for n in range(first, first + window) if 0 <= n < n_layers]
    edits = []
    for layer in layers:
        which = None if head is None else int(head)  # type: ignore[call-overload]
        place = Site(site, layer=layer, head=which, position=position, key=key)
        value = with_ if values is None else _value(values[place.whole], place)
        edits.append(Edit(place, value, mode))
    return Cell(tuple(edits))


def _value(array: np.ndarray, site: Site) -> np.ndarray:
    array = array if site.head is None else array[:, :, site.head]
    return array if site.key is None else array[..., site.key]
