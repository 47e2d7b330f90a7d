"""Layout: estimates of all nodes put on the axes of a sweep, and the cells they estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.engine import Cell
from interp.terms import KINDS, Edit, HookedModel, PromptPairs, Site, UsageError

AUTO = {
    "embed": "position",
    "mlp_post": "layer,neuron",
    "pattern": "layer,head",
    "feature": "feature",
}
AXES = {
    "residual": ("layer,position", "layer,slot", "layer"),
    "embed": ("position", "slot"),
    "head": ("layer,head", "layer,head,position", "layer,head,slot"),
    "neuron": ("layer,neuron",),
    "pattern": ("layer,head", "layer,head,query", "layer,head,query,key"),
    "feature": ("feature", "feature,position", "feature,slot"),
}
LETTERS = {
    "layer": "L",
    "head": "H",
    "kv_head": "KV",
    "neuron": "N",
    "feature": "F",
    "position": "@",
    "query": "@",
    "slot": "@",
    "key": "<-",
}
"""How an entry of an axis is said in a cell's name."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The axes of a grid of nodes.

    Args:
        site: kind of site.
        dims: names of the axes.
        coords: values of each axis.
        exact: how a cell of a feature is patched, from its feature and position.
    """

    site: str
    dims: tuple[str, ...]
    coords: dict[str, np.ndarray]
    exact: Callable[[int, int | str | None], Cell] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return tuple(len(self.coords[d]) for d in self.dims)

    def shown(self) -> dict[str, np.ndarray]:
        """Coordinates as a dataset has them: features by name."""
        names = {"feature": np.array([f"F{f}" for f in self.coords.get("feature", ())])}
        return {d: names.get(d, v) for d, v in self.coords.items()}

    def labels(self, index: tuple[int, ...]) -> dict[str, Any]:
        """Axis -> entry of one cell."""
        return {d: self.coords[d][i].item() for d, i in zip(self.dims, index, strict=True)}

    def cell(self, index: tuple[int, ...]) -> Cell:
        """The exact patch that one entry estimates."""
        at = self.labels(index)
        position = at.get("position", at.get("slot", at.get("query")))
        if self.site == "feature":
            assert self.exact is not None
            return self.exact(at["feature"], position)
        site = Site(
            self.site,
            layer=at.get("layer"),
            head=at.get("head", at.get("kv_head")),
            neuron=at.get("neuron"),
            position=position,
            key=at.get("key"),
        )
        return Cell((Edit(site, "source"),))

    def name(self, index: tuple[int, ...]) -> str:
        """``L3 H1 @5``, as a person says it."""
        at = self.labels(index)
        return " ".join(f"{LETTERS[d]}{v}" for d, v in at.items())

    def lay(self, values: np.ndarray, pairs: PromptPairs) -> np.ndarray:
        """Node values ``[prompt, (layer), position, (part)]`` on the axes: ``[prompt, *dims]``.

        Positions that are no axis are summed.
        """
        per_layer = KINDS[self.site].per_layer and self.site != "feature"
        where = 2 if per_layer else 1
        if "layer" in self.dims:
            values = values[:, self.coords["layer"]]
        if "slot" in self.dims:
            values = _slots(values, self.coords["slot"], pairs, where)
        elif place := {"position", "query"} & set(self.dims):
            values = np.take(values, self.coords[place.pop()], axis=where)
        else:
            values = _summed(values, where)
        if "feature" in self.dims:
            values = values[..., self.coords["feature"]]
            return np.moveaxis(values, 1, 2) if values.ndim == 3 else values
        if values.ndim >= 4 and self.dims[1] in ("head", "kv_head"):
            values = np.moveaxis(values, 2, 3)
        return values


def _summed(values: np.ndarray, axis: int) -> np.ndarray:
    known = np.isfinite(values).any(axis)
    return np.where(known, np.nansum(values, axis), np.nan)


def _slots(values: np.ndarray, names: np.ndarray, pairs: PromptPairs, axis: int) -> np.ndarray:
    """Sums over each slot's positions, prompt by prompt."""
    out = []
    for name in names:
        rows = []
        for i, where in enumerate(pairs.slots[str(name)]):
            places = np.unique(np.atleast_1d(np.asarray(where, dtype=np.int64)))
            rows.append(np.take(values[i], places, axis=axis - 1).sum(axis - 1))
        out.append(np.stack(rows))
    return np.stack(out, axis)


def _chosen(what: str, wanted: Sequence[int] | None, count: int) -> np.ndarray:
    if wanted is None:
        return np.arange(count)
    index = np.array([w + count if w < 0 else w for w in wanted], dtype=np.int64)
    if not len(index) or (index < 0).any() or (index >= count).any():
        raise UsageError(f"{what} {list(wanted)} were given; there are {count}, counted from 0.")
    return index


def make_layout(
    model: HookedModel,
    pairs: PromptPairs,
    site: str,
    axes: str,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> Layout:
    """The axes of a grid of nodes; ``axes="auto"`` takes the usual ones of the site.

    Raises:
        UsageError: axes that the site does not have, or positions that do not align.
    """
    kind, axis = KINDS[site], KINDS[site].head_axis or "head"
    group = "neuron" if site == "mlp_post" else "head" if kind.head_axis else "residual"
    group = site if site in AXES else group
    if axes == "auto":
        axes = AUTO.get(site, "layer,head" if group == "head" else "layer,position")
        if "position" in axes and not pairs.aligned():
            axes = axes.replace("position", "slot") if pairs.slots else "layer"
    allowed = tuple(a.replace("head", axis) for a in AXES[group])
    axes = axes.replace("kv_head", "head").replace("head", axis)
    if axes not in allowed:
        raise UsageError(
            f"Site {site!r} has no grid over {axes!r}.",
            remedy=f"Use axes {' or '.join(repr(a) for a in allowed)}.",
        )
    names = tuple(axes.split(","))
    if {"position", "query"} & set(names) and not pairs.aligned():
        raise UsageError(
            "These prompts differ in length, so a position means something else in each.",
            remedy="Take slots (axes with 'slot') or layers alone.",
        )
    if "slot" in names and not pairs.slots:
        raise UsageError("This task names no slots.", remedy="Take positions or layers.")
    shape = model.shape
    tail = len(pairs.right[0]) - 1 if pairs.answer_form == "span" else 0
    sizes = {"head": shape.n_heads, "kv_head": shape.n_kv_heads, "neuron": shape.d_mlp}
    coords: dict[str, np.ndarray] = {}
    for name in names:
        if name == "layer":
            coords[name] = _chosen("Layers", layers, shape.n_layers)
        elif name in ("position", "query"):
            coords[name] = _chosen("Positions", positions, max(pairs.lengths) + tail)
        elif name == "slot":
            coords[name] = np.array(list(pairs.slots))
        elif name == "key":
            coords[name] = np.arange(max(pairs.lengths) + tail)
        elif name == "feature":
            coords[name] = np.arange(0)  # chosen by their estimates
        else:
            coords[name] = np.arange(sizes[name])
    return Layout(site, names, coords)
