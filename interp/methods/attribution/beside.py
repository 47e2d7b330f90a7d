"""Beside: what is measured beside the estimates: the largest cells exactly, facts of the gradient.

``spec`` is the method, an AttributionPatching.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from interp.engine import metric_named, sweep
from interp.methods.attribution import trust
from interp.methods.attribution.layout import Layout
from interp.terms import Check, Context, HookedModel, PromptPairs


def largest(values: np.ndarray, most: int) -> np.ndarray:
    """Flat places of the largest sizes, without zeros."""
    size = np.abs(np.nan_to_num(values.ravel()))
    order = np.argsort(-size, kind="stable")[:most]
    return order[size[order] > 0]


def with_verified(
    spec: Any,
    model: HookedModel,
    task: PromptPairs,
    context: Context,
    data: xr.Dataset,
    layout: Layout,
) -> xr.Dataset:
    """The largest cells measured exactly, beside their estimates."""
    raw = data["attribution_raw"].values
    top = largest(raw, spec.verify)
    if not len(top):
        return data
    index = [np.unravel_index(c, layout.shape) for c in top]
    where = [tuple(int(i) for i in cell) for cell in index]
    found = sweep(model, task, [layout.cell(i) for i in where], context, **spec.knobs)
    change = found.patched - found.base
    exact = np.nanmean(np.abs(change) if spec.unsigned else change, axis=1)
    estimate = raw.ravel()[top]
    unit = metric_named(spec.metric).units
    for name, values, words in (
        ("verified_effect", exact, "measured change of the largest cells"),
        ("verified_estimate", estimate, "estimated change of the same cells"),
    ):
        says = {"units": unit, "long_name": words, "signed": int(not spec.unsigned)}
        data[name] = ("top", values, says)
    names = [layout.name(i) for i in where]
    data = data.assign_coords(top=np.arange(len(top)), name=("top", names))
    size = max(float(np.abs(exact).max()), 1e-300)
    context.check(
        Check(
            "verified",
            f"estimate against measured effect, {len(top)} largest cells",
            float(np.abs(exact - estimate).max()) / size,
            note="Largest difference over the largest measured effect. It is the estimator's "
            "error, not a fault: see the cells, and Agreement for whole grids.",
        )
    )
    return data


def check_facts(
    spec: Any,
    model: HookedModel,
    task: PromptPairs,
    context: Context,
    raw: np.ndarray,
    nodes: np.ndarray | None,
    layout: Layout,
) -> None:
    """Lines of the trust panel about the gradient."""
    chosen = spec.rule_set()
    parts = spec.site in ("pattern", "feature")
    corrected = spec.ig_steps or spec.qk_fix or spec.grad_drop
    if nodes is not None and not (corrected or chosen.active or parts):
        context.check(trust.of_own_graph(model, task, spec.site, nodes, **spec.knobs))
    top = largest(np.nanmean(raw, 0), 1)
    if not len(top) or corrected:
        return
    where = tuple(int(i) for i in np.unravel_index(top[0], layout.shape))
    cell = layout.cell(where)
    if "slot" not in layout.dims and task.aligned() and not parts:
        estimate = raw.reshape(len(task), -1)[:, top[0]]
        site = cell.edits[0].site
        context.check(trust.of_small_patch(model, task, site, estimate, chosen, **spec.knobs))
    side = "corrupt" if spec.direction == "denoising" else "clean"
    line = trust.of_conservation(model, task, chosen, side=side, metric=spec.metric, at=spec.place)
    if line is not None:
        context.check(line)
    line = None if parts else trust.of_frozen_network(model, task, cell, chosen, **spec.knobs)
    if line is not None:
        context.check(line)
