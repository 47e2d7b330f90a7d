"""Scores: edges and their scores out of a run that measured or estimated single edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from interp.terms import HookedModel, Site, UsageError
from interp.terms.circuits import Edge

SCORED = ("effect", "attribution")
"""Arrays over (src, dst), as shares of the gap: positive where the edge carries it."""


def check_scores(found: Any, model: HookedModel) -> None:
    """Refuse a run without edges, or of other weights.

    Raises:
        UsageError: with what is wrong.
    """
    known = [n for n in SCORED if n in found.data and {"src", "dst"} == set(found.data[n].dims)]
    if not known:
        raise UsageError(
            f"Run {found.spec['method']} has no scores of edges.",
            remedy="Give a run of path_patching with all senders and receivers.",
        )
    if found.spec["model"]["weight_hash"] != model.weight_hash:
        raise UsageError(
            "The edges were scored on a model with other weights.",
            remedy="Use the model of that run.",
        )
    if str(found.data.attrs.get("freeze", "heads+mlps")) != "heads+mlps":
        raise UsageError(
            "The run scored paths through MLPs, not single edges.",
            remedy="Run path_patching with freeze='heads+mlps'.",
        )


def scores_of(data: xr.Dataset) -> dict[Edge, float]:
    """Edge -> its share of the gap (or, where that is undefined, its change in the same sense)."""
    name = next(n for n in SCORED if n in data)
    array = data[name].transpose("src", "dst").values
    if np.isnan(array).all() and f"{name}_raw" in data:
        sign = -1.0 if data.attrs.get("direction") == "noising" else 1.0
        array = sign * data[f"{name}_raw"].transpose("src", "dst").values
    src, dst = (sites_of(data, axis) for axis in ("src", "dst"))
    return {
        (src[i], dst[j]): float(array[i, j])
        for i, j in np.ndindex(*array.shape)
        if np.isfinite(array[i, j])
    }


def sites_of(data: xr.Dataset, axis: str) -> list[Site]:
    """The nodes on an axis of a graph."""
    columns = (data[f"{axis}_{c}"].values for c in ("input", "layer", "head"))
    return [
        Site(str(kind), layer=None if n < 0 else int(n), head=None if h < 0 else int(h))
        for kind, n, h in zip(*columns, strict=True)
    ]
