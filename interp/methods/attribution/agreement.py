"""Agreement: estimates held against exact effects on the same grid, cell by cell."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field
from scipy import stats

from interp.engine.statistics import resampling_weights
from interp.methods.attribution.layout import LETTERS
from interp.terms import Check, Context, HookedModel, Method, ResultRef, UsageError

STATISTICS = (
    "pearson",
    "spearman",
    "overlap_top_10",
    "overlap_top_5_percent",
    "sign_top_10",
    "slope",
)
"""What is computed; ``slope`` is that of the estimate over the effect, through 0."""


class Agreement(Method):
    """How well a grid of estimates agrees with the grid of measured effects.

    On the means over prompts: Pearson, Spearman, overlap of the largest cells (10, and 5 % of all),
    share of equal signs among the largest, slope through 0; for all cells, by layer, and by
    prompt; intervals by resampling whole templates, or prompts where there is one. Cells that are
    inert in the exact grid are left out: zeros that both share would inflate every number. Source:
    jafari2025relp reports Pearson's correlation.
    """

    title: ClassVar[str] = "Agreement"
    question: ClassVar[str] = "Can these estimates stand in for the measured effects?"
    citations: ClassVar[tuple[str, ...]] = ("jafari2025relp", "kramar2024atp")
    version: ClassVar[int] = 1

    exact: ResultRef
    """A run of activation patching: the measured effects."""
    estimate: ResultRef
    """A run of attribution patching on the same grid."""
    n_boot: Annotated[int, Field(ge=0, le=20_000, json_schema_extra={"advanced": True})] = 500
    """Bootstrap samples for the intervals."""
    top: Annotated[int, Field(ge=1, le=200, json_schema_extra={"advanced": True})] = 10
    """So many of the most disagreeing cells are listed."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of the bootstrap."""

    def measure(self, model: HookedModel, task: None, context: Context) -> xr.Dataset:
        """``agreement [statistic]``, by layer and by prompt, both grids, the scatter, the worst."""
        exact, estimate = context.result(self.exact), context.result(self.estimate)
        _check_pair(exact, estimate, model)
        one, two = _common(exact.data, estimate.data)
        a, b, gap = _aligned(one, two)
        unsigned = bool(estimate.data.attrs.get("unsigned", 0))
        table = _Table(one, a, b, _inert(one, a), unsigned)
        data = self._dataset(table, exact, estimate, gap)
        context.check(
            Check(
                "cells",
                "cells that both grids have and that are not inert",
                float(table.live.sum()),
                3,
                at_least=True,
                note=f"{int((~table.live).sum())} of {table.live.size} cells are left out: inert "
                "or undefined. A correlation needs three.",
            )
        )
        context.advance(1, 1)
        return data

    def _dataset(self, table: _Table, exact: Any, estimate: Any, gap: float) -> xr.Dataset:
        first, dims = table.data, table.dims
        weights = None
        if self.n_boot and table.n_prompts > 1:
            weights = resampling_weights(
                table.n_prompts, _templates(exact.data), self.n_boot, self.seed
            )
        unit = first["effect_raw"].attrs["units"]
        whole, interval = table.agree(table.live, weights)
        own = estimate.data.attrs
        where = f"{own['site']}, {own['direction']}"
        what = f"{where}, {own.get('estimator', '')}"
        arrays: dict[str, tuple[Any, Any, str, str, int]] = {
            "agreement": (("statistic",), whole, "1", f"agreement, all cells ({what})", 1),
            "agreement_ci": (("bound", "statistic"), interval, "1", "95 % bootstrap interval", 1),
        }
        coords: dict[str, Any] = {
            "statistic": list(STATISTICS),
            "bound": ["low", "high"],
            **{d: first[d].values for d in dims},
        }
        self._scatter(arrays, coords, table, unit, what)
        arrays |= {
            "measured": (dims, table.grid(table.exact), unit, f"measured change ({where})", 1),
            "estimated": (
                dims,
                table.grid(table.estimate),
                unit,
                f"estimated change ({what})",
                int(not table.unsigned),
            ),
            "difference": (
                dims,
                table.grid(table.estimate - table.exact),
                unit,
                "estimated minus measured",
                1,
            ),
            "inert": (
                dims,
                (~table.live).reshape(table.shape).astype(np.int8),
                "1",
                "1 where a cell is left out",
                0,
            ),
            "n_cells": ((), float(table.live.sum()), "cells", "cells compared", 0),
        }
        self._parts(arrays, coords, table, weights)
        data = xr.Dataset(
            {
                k: (d, v, {"units": u, "long_name": t, "signed": s})
                for k, (d, v, u, t, s) in arrays.items()
            },
            coords=coords,
        )
        data.attrs.update(self._attrs(table, exact, estimate, gap))
        return data

    def _parts(
        self, arrays: dict[str, Any], coords: dict[str, Any], table: _Table, weights: Any
    ) -> None:
        """By layer, and by prompt."""
        if "layer" in table.dims:
            rows = [table.agree(table.live & here, weights) for here in table.layers()]
            arrays["agreement_by_layer"] = (
                ("layer", "statistic"),
                np.stack([r[0] for r in rows]),
                "1",
                "agreement within each layer",
                1,
            )
            arrays["agreement_by_layer_ci"] = (
                ("bound", "layer", "statistic"),
                np.stack([r[1] for r in rows], 1),
                "1",
                "95 % bootstrap interval",
                1,
            )
        if table.n_prompts:
            arrays["agreement_by_prompt"] = (
                ("prompt", "statistic"),
                table.by_prompt(),
                "1",
                "agreement in each prompt",
                1,
            )
            coords["prompt"] = np.arange(table.n_prompts)

    def _scatter(
        self, arrays: dict[str, Any], coords: dict[str, Any], table: _Table, unit: str, what: str
    ) -> None:
        """Both values of each live cell, and the cells that disagree most."""
        live = np.flatnonzero(table.live)
        names = table.names(coords)
        both = np.stack([table.exact[live], table.estimate[live]])
        arrays["scatter"] = (
            ("measure", "cell"),
            both,
            unit,
            f"estimated against measured change ({what})",
            1,
        )
        coords["measure"] = ["measured", "estimated"]
        coords["cell"] = np.arange(len(live))
        coords["cell_name"] = ("cell", [names[i] for i in live])
        coords |= table.places("cell", coords, live)
        apart = table.estimate - table.exact
        order = live[np.argsort(-np.abs(apart[live]), kind="stable")][: self.top]
        arrays["disagreement"] = (
            ("top",),
            apart[order],
            unit,
            "estimated minus measured, the cells furthest apart",
            1,
        )
        coords["top"] = np.arange(len(order))
        coords["top_name"] = ("top", [names[i] for i in order])
        coords |= table.places("top", coords, order)

    def _attrs(self, table: _Table, exact: Any, estimate: Any, gap: float) -> dict[str, Any]:
        own = estimate.data.attrs
        return {
            "site": str(own["site"]),
            "direction": str(own["direction"]),
            "metric": str(own["metric"]),
            "estimator": str(own.get("estimator", "")),
            "exact_run": str(self.exact),
            "estimate_run": str(self.estimate),
            "n_cells": int(table.live.sum()),
            "left_out": int((~table.live).sum()),
            "n_prompts": table.n_prompts,
            "mean_gap": gap,
            "model": str(exact.spec["model"].get("ref", "")),
        }


class _Table:
    """Two grids as flat vectors, on the means and by prompt."""

    def __init__(
        self,
        data: xr.Dataset,
        a: dict[str, Any],
        b: dict[str, Any],
        inert: np.ndarray,
        unsigned: bool,
    ) -> None:
        self.data = data
        self.dims: tuple[str, ...] = a["dims"]
        self.shape = a["mean"].shape
        self.unsigned = unsigned
        one, two = a["each"], b["each"]
        sizes = np.abs if unsigned else np.asarray
        self.a: np.ndarray | None = None
        self.b: np.ndarray | None = None
        if one is not None and two is not None:
            self.a, self.b = (sizes(x.reshape(len(x), -1)) for x in (one, two))
        self.exact = a["mean"].ravel() if self.a is None else self.a.mean(0)
        self.estimate = b["mean"].ravel()
        self.live = ~inert.ravel() & np.isfinite(self.exact) & np.isfinite(self.estimate)
        self.n_prompts = 0 if self.a is None else len(self.a)

    def grid(self, values: np.ndarray) -> np.ndarray:
        """A flat vector on the axes."""
        return values.reshape(self.shape)

    def layers(self) -> list[np.ndarray]:
        """For each layer, which cells are its own."""
        axis = self.dims.index("layer")
        where = np.indices(self.shape)[axis].ravel()
        return [where == n for n in range(self.shape[axis])]

    def places(self, axis: str, coords: dict[str, Any], which: np.ndarray) -> dict[str, Any]:
        """The grid's entries of each of these cells, as coordinates of their axis."""
        index = np.unravel_index(which, self.shape)
        return {
            f"{axis}_{d}": (axis, np.asarray(coords[d])[i])
            for d, i in zip(self.dims, index, strict=True)
        }

    def names(self, coords: dict[str, Any]) -> list[str]:
        """Every cell as a person says it."""
        return [
            " ".join(
                f"{'' if d == 'feature' else LETTERS.get(d, d)}{coords[d][i]}"
                for d, i in zip(self.dims, index, strict=True)
            )
            for index in np.ndindex(*self.shape)
        ]

    def agree(self, which: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Statistics of some cells on the means ``[statistic]``, and their interval."""
        whole = statistics_of(self.exact[which], self.estimate[which])
        interval = np.full((2, len(STATISTICS)), np.nan)
        if weights is None or self.a is None or self.b is None or which.sum() < 3:
            return whole, interval
        total = weights.sum(1, keepdims=True)
        a, b = weights @ self.a[:, which] / total, weights @ self.b[:, which] / total
        found = np.stack([statistics_of(x, y) for x, y in zip(a, b, strict=True)])
        enough = np.isfinite(found).mean(0) > 0.5
        if enough.any():
            interval[:, enough] = np.nanpercentile(found[:, enough], [2.5, 97.5], axis=0)
        return whole, interval

    def by_prompt(self) -> np.ndarray:
        """Statistics of each prompt's own values, ``[prompt, statistic]``."""
        assert self.a is not None and self.b is not None
        return np.stack(
            [statistics_of(a[self.live], b[self.live]) for a, b in zip(self.a, self.b, strict=True)]
        )


def statistics_of(exact: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """``STATISTICS`` of two vectors; NaN where a vector is constant or has fewer than 3 cells."""
    out = np.full(len(STATISTICS), np.nan)
    n = len(exact)
    if n < 3:
        return out
    if np.ptp(exact) > 0 and np.ptp(estimate) > 0:
        out[0] = np.corrcoef(exact, estimate)[0, 1]
        out[1] = np.corrcoef(stats.rankdata(exact), stats.rankdata(estimate))[0, 1]
    order = np.argsort(-np.abs(exact), kind="stable"), np.argsort(-np.abs(estimate), kind="stable")
    for i, k in ((2, 10), (3, max(1, math.ceil(0.05 * n)))):
        if k < n:
            out[i] = len(set(order[0][:k]) & set(order[1][:k])) / k
    first = order[0][: min(10, n)]
    out[4] = float((np.sign(exact[first]) == np.sign(estimate[first])).mean())
    square = float(np.dot(exact, exact))
    out[5] = float(np.dot(exact, estimate)) / square if square > 0 else np.nan
    return out


def _check_pair(exact: Any, estimate: Any, model: HookedModel) -> None:
    """Refuse two runs that are not about the same thing.

    Raises:
        UsageError: with what differs.
    """
    keys = exact.spec["method"], estimate.spec["method"]
    if keys != ("activation_patching", "attribution_patching"):
        raise UsageError(
            f"Agreement was given {keys[0]} as exact and {keys[1]} as estimate.",
            remedy="Give a run of activation_patching, then one of attribution_patching.",
        )
    one, two = exact.data.attrs, estimate.data.attrs
    for field in ("site", "direction", "metric", "at", "with_"):
        if one.get(field) != two.get(field):
            raise UsageError(
                f"The two runs differ in {field}: {one.get(field)!r} was measured and "
                f"{two.get(field)!r} estimated.",
                remedy=f"Run both with the same {field}.",
            )
    if one.get("window", 1) != 1:
        raise UsageError(
            "The exact run edits windows of layers; an estimate is of one layer.",
            remedy="Run activation_patching with window=1.",
        )
    hashes = [r.spec["model"]["weight_hash"] for r in (exact, estimate)]
    if len({*hashes, model.weight_hash}) > 1:
        raise UsageError(
            "The two runs, or the model given, have other weights.",
            remedy="Use one model for both runs and for Agreement.",
        )
    tasks = [(r.spec.get("task") or {}).get("hash") for r in (exact, estimate)]
    if tasks[0] != tasks[1]:
        raise UsageError(
            "The two runs are about other prompts.",
            remedy="Run both on the same task, with the same seed.",
        )


def _aligned(
    exact: xr.Dataset, estimate: xr.Dataset
) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Both grids on the axes and entries they share: means and single prompts.

    Raises:
        UsageError: other axes, or nothing in common.
    """
    dims = tuple(str(d) for d in exact["effect_raw"].dims)
    other = tuple(str(d) for d in estimate["attribution_raw"].dims)
    if set(dims) != set(other):
        raise UsageError(
            f"The exact grid runs over {', '.join(dims)} and the estimates over "
            f"{', '.join(other)}.",
            remedy="Run both with the same axes.",
        )
    if any(not np.array_equal(exact[d].values, estimate[d].values) for d in dims):
        raise UsageError(
            "The two grids have other layers or positions.",
            remedy="Run both with the same layers and positions.",
        )

    def each(data: xr.Dataset, name: str) -> np.ndarray | None:
        return data[name].transpose("prompt", *dims).values if name in data else None

    measured = each(exact, "patched_metric")
    if measured is not None:
        lift = exact["metric_base"].values.reshape(-1, *[1] * len(dims))
        measured = measured - lift
    a = {"dims": dims, "mean": exact["effect_raw"].values, "each": measured}
    b = {
        "dims": dims,
        "mean": estimate["attribution_raw"].transpose(*dims).values,
        "each": each(estimate, "prompt_attribution"),
    }
    gap = float((exact["metric_source"] - exact["metric_base"]).mean())
    return a, b, gap


def _templates(data: xr.Dataset) -> tuple[str, ...] | None:
    """Template of each prompt, where the task has them."""
    return tuple(data["template"].values.tolist()) if "template" in data.coords else None


def _common(exact: xr.Dataset, estimate: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Both on the features that both chose; as they are where there are none."""
    if "feature" not in exact.dims or "feature" not in estimate.dims:
        return exact, estimate
    theirs = set(estimate["feature"].values.tolist())
    both = [f for f in exact["feature"].values.tolist() if f in theirs]
    if len(both) < 3:
        raise UsageError(
            f"The two runs share {len(both)} features.",
            remedy="Raise top in both, or name the features of the exact run.",
        )
    return exact.sel(feature=both), estimate.sel(feature=both)


def _inert(exact: xr.Dataset, a: dict[str, Any]) -> np.ndarray:
    return exact["inert"].transpose(*a["dims"]).values.astype(bool)
