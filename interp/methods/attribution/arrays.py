"""Arrays: estimates of every prompt become means, shares of the gap, errors and intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from interp.engine import metric_named
from interp.engine.statistics import (
    bootstrap_interval,
    mean_and_error,
    ratio_of_means,
    resampling_weights,
)
from interp.methods.attribution.layout import Layout
from interp.terms import PromptPairs

SMALL_SAMPLE = 8
SHARE = "share of the gap"
"""Unit of an attribution, as of an effect: 1 if the metric went all the way to the source run."""


def estimate_arrays(
    each: np.ndarray,
    base: np.ndarray,
    source: np.ndarray,
    layout: Layout,
    task: PromptPairs,
    facts: dict[str, Any],
    *,
    unsigned: bool,
    n_boot: int,
    seed: int,
    keep_prompts: bool,
) -> xr.Dataset:
    """The dataset of an attribution.

    Args:
        each: estimated change of the metric ``[prompt, *dims]``.
        base: metric of the base run ``[prompt]``; source: of the source run.
        source: see ``base``.
        layout: the axes.
        task: for its templates, the unit of the bootstrap.
        facts: site, direction, metric, at, rules, estimator.
        unsigned: the mean of sizes is wanted.
        n_boot: bootstrap samples.
        seed: of the bootstrap.
        keep_prompts: keep ``each``.
    """
    metric, n, gap = metric_named(facts["metric"]), len(task), source - base
    reason = _vanishing(base, gap, task, n_boot, seed)
    flat = (np.abs(each) if unsigned else each).reshape(n, -1)
    below = np.full(n, abs(gap.mean())) if unsigned else gap
    mean, error = mean_and_error(flat)
    share, share_error = ratio_of_means(flat, below)
    if unsigned:
        share_error = error / abs(gap.mean()) if gap.mean() else error * np.nan
    interval = np.full((2, flat.shape[1]), np.nan)
    if n_boot and n > 1:
        weights = resampling_weights(n, task.template, n_boot, seed)
        interval = bootstrap_interval(flat, None if reason else below, weights)
    if reason:
        share, share_error = np.full_like(share, np.nan), np.full_like(share, np.nan)
    dims, unit, signed = layout.dims, metric.units, int(not unsigned)
    what = f"{facts['estimator']}, {facts['direction']}"

    def laid(values: np.ndarray) -> np.ndarray:
        return values.reshape(*values.shape[:-1], *layout.shape)

    arrays = {
        "attribution": (dims, laid(share), SHARE, f"attribution ({what})", signed),
        "attribution_raw": (dims, laid(mean), unit, f"estimated change ({what})", signed),
        "attribution_se": (dims, laid(share_error), SHARE, "standard error", 0),
        "attribution_raw_se": (dims, laid(error), unit, "standard error", 0),
        "attribution_ci": (
            ("bound", *dims),
            laid(interval),
            unit if reason else SHARE,
            "95 % bootstrap interval",
            signed,
        ),
        "inert": (
            dims,
            laid((flat == 0).all(0).astype(np.int8)),
            "1",
            "1 where nothing differs or nothing leads to the metric",
            0,
        ),
        "metric_base": (("prompt",), base, unit, f"{metric.title}, base run", 1),
        "metric_source": (("prompt",), source, unit, f"{metric.title}, source run", 1),
    }
    if keep_prompts:
        arrays["prompt_attribution"] = (
            ("prompt", *dims),
            each,
            unit,
            "estimated change in each prompt",
            1,
        )
    more = {
        **facts,
        "metric_title": metric.title,
        "unsigned": int(unsigned),
        "mean_gap": float(gap.mean()),
        "undefined_reason": reason,
        "n_prompts": n,
        "small_sample": int(n < SMALL_SAMPLE),
    }
    return _dataset(arrays, _coordinates(layout, task), more)


def _coordinates(layout: Layout, task: PromptPairs) -> dict[str, Any]:
    """The grid's axes, the prompts and their templates."""
    coords: dict[str, Any] = {
        **layout.shown(),
        "prompt": np.arange(len(task)),
        "bound": ["low", "high"],
    }
    if task.template is not None:
        coords["template"] = ("prompt", list(task.template))
    return coords


def _dataset(arrays: dict[str, Any], coords: dict[str, Any], facts: dict[str, Any]) -> xr.Dataset:
    """``name -> (dims, values, units, long name, signed)`` as a dataset."""
    variables = {
        k: (d, v, {"units": u, "long_name": t, "signed": s})
        for k, (d, v, u, t, s) in arrays.items()
    }
    return xr.Dataset(variables, coords=coords, attrs=facts)


def _vanishing(base: np.ndarray, gap: np.ndarray, task: PromptPairs, n_boot: int, seed: int) -> str:
    """Why a share of the gap means nothing; empty where it does."""
    if not np.isfinite(gap).all():
        return "the metric is not finite"
    mean, floor = abs(gap.mean()), 1e-6 * max(np.abs(base).mean(), 1e-300)
    if mean <= floor:
        return f"the mean gap {mean:.3g} is below {floor:.3g}"
    if n_boot > 0 and len(task) > 1:
        weights = resampling_weights(len(task), task.template, n_boot, seed)
        low, high = bootstrap_interval(gap[:, None], None, weights)[:, 0]
        if low <= 0 <= high:
            return f"the interval of the mean gap, {low:.3g} to {high:.3g}, contains 0"
    return ""
