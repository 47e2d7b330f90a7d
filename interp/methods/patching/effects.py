"""Effects: from the metrics of a sweep to named arrays with their statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.engine import Sweep, metric_named
from interp.engine.statistics import (
    bootstrap_interval,
    mean_and_error,
    ratio_of_means,
    resampling_weights,
    sign_flip_tests,
)
from interp.methods.patching.grids import Grid
from interp.terms import PromptPairs

SMALL_SAMPLE = 8
SHARE = "share of the gap"
"""Unit of an effect: 0 nothing moved, 1 the metric went all the way to the source run."""


@dataclass(frozen=True)
class Reading:
    """How a sweep is turned into effects.

    Args:
        metric: a key of ``METRICS``; direction, at: as of the sweep.
        n_boot: bootstrap samples, 0 for no interval.
        seed: of bootstrap and sign flips.
        keep_prompts: whether every prompt's patched metric is kept.
    """

    metric: str
    direction: str
    at: str
    n_boot: int
    seed: int
    keep_prompts: bool


def effects_of(
    found: Sweep, grid: Grid, task: PromptPairs, how: Reading, attrs: dict[str, str | float | int]
) -> xr.Dataset:
    """``effect``, ``effect_raw`` and their statistics on a grid.

    ``effect = mean (m(patched) - m(base)) / mean (m(source) - m(base))``; NaN with
    ``undefined_reason`` where the gap vanishes.

    Args:
        found: metrics of the grid's cells, in its order.
        grid: axes and layout.
        task: the prompts, for their templates.
        how: see ``Reading``.
        attrs: what else the dataset says of itself.
    """
    metric = metric_named(how.metric)
    raw = (found.patched - found.base).T
    gap = found.source - found.base
    reason = _vanishing(found, gap, task, how)
    arrays = _statistics(raw, gap, task, how, reason)
    unit, dims = metric.units, grid.dims
    share = unit if reason else SHARE
    about = {
        "effect": (SHARE, "effect", 1),
        "effect_raw": (unit, "change of the metric", 1),
        "effect_se": (SHARE, "standard error of the effect", 0),
        "effect_raw_se": (unit, "standard error of the change", 0),
        "effect_ci": (share, "95 % bootstrap interval", 1),
        "p_value": ("1", "p of a zero effect (sign flips)", 0),
        "p_fwer": ("1", "p over the whole grid (max-T)", 0),
        "inert": ("1", "1 where the value is the same or cannot reach the metric", 0),
        "patched_metric": (unit, f"{metric.title}, patched", 1),
    }
    arrays["inert"] = _inert(found)
    if how.keep_prompts:
        arrays["patched_metric"] = found.patched.T
    first = {"effect_ci": ("bound",), "patched_metric": ("prompt",)}
    variables = {
        name: ((*first.get(name, ()), *dims), grid.laid(values), _says(*about[name]))
        for name, values in arrays.items()
    }
    for side, values in (("base", found.base), ("source", found.source)):
        says = _says(unit, f"{metric.title}, {side} run", 1)
        variables[f"metric_{side}"] = (("prompt",), values, says)
    coords = {**grid.coordinates(), "prompt": np.arange(len(task)), "bound": ["low", "high"]}
    if task.template is not None:
        coords["template"] = ("prompt", list(task.template))
    data = xr.Dataset(variables, coords=coords)
    if task.span_map is not None:  # positions are the base run's, and so are the tokens there
        for name in {"position", "query", "key"} & set(dims):
            data[name].attrs["tokens"] = "clean" if how.direction == "noising" else "corrupt"
    data.attrs.update(attrs)
    data.attrs.update(_attrs(found, gap, task, how, reason))
    return data


def _says(units: str, long_name: str, signed: int) -> dict[str, str | int]:
    return {"units": units, "long_name": long_name, "signed": signed}


def _statistics(
    raw: np.ndarray, gap: np.ndarray, task: PromptPairs, how: Reading, reason: str
) -> dict[str, np.ndarray]:
    """Means, errors, intervals and p, ``[cell]`` each (the interval ``[bound, cell]``)."""
    mean, error = mean_and_error(raw)
    effect, effect_error = ratio_of_means(raw, gap)
    interval = np.full((2, raw.shape[1]), np.nan)
    p, p_grid = np.full(raw.shape[1], np.nan), np.full(raw.shape[1], np.nan)
    if how.n_boot > 0 and len(task) > 1:
        weights = resampling_weights(len(task), task.template, how.n_boot, how.seed)
        interval = bootstrap_interval(raw, None if reason else gap, weights)
        p, p_grid = sign_flip_tests(raw, how.seed)
    if reason:
        effect, effect_error = np.full_like(effect, np.nan), np.full_like(effect, np.nan)
    return {
        "effect": effect,
        "effect_raw": mean,
        "effect_se": effect_error,
        "effect_raw_se": error,
        "effect_ci": interval,
        "p_value": p,
        "p_fwer": p_grid,
    }


def _vanishing(found: Sweep, gap: np.ndarray, task: PromptPairs, how: Reading) -> str:
    """Why the effect cannot be a share of the gap; empty where it can."""
    if not np.isfinite(gap).all():
        return "unfinished" if np.isnan(found.base).any() else "the metric is not finite"
    mean = abs(gap.mean())
    floor = max(10 * found.noise, 1e-6 * np.abs(found.base).mean())
    if mean <= floor:
        return f"the mean gap {mean:.3g} is not above {floor:.3g}, ten times the noise floor"
    if how.n_boot > 0 and len(task) > 1:
        weights = resampling_weights(len(task), task.template, how.n_boot, how.seed)
        low, high = bootstrap_interval(gap[:, None], None, weights)[:, 0]
        if low <= 0 <= high:
            return f"the interval of the mean gap, {low:.3g} to {high:.3g}, contains 0"
    return ""


def _attrs(
    found: Sweep, gap: np.ndarray, task: PromptPairs, how: Reading, reason: str
) -> dict[str, str | float | int]:
    known = np.isfinite(gap).any()
    scale = abs(float(np.nanmean(gap))) if known else math.nan
    return {
        "direction": how.direction,
        "metric": how.metric,
        "metric_title": metric_named(how.metric).title,
        "at": how.at,
        "noise_floor": found.noise,
        "noise_floor_effect": found.noise / scale if scale > 0 else math.nan,
        "mean_gap": float(np.nanmean(gap)) if known else math.nan,
        "undefined_reason": reason,
        "undefined_cells": int(np.isnan(found.patched).all(1).sum()),
        "n_prompts": len(task),
        "small_sample": int(len(task) < SMALL_SAMPLE),
        "rows": int(sum(found.chunks)),
        "flops": found.flops,
        "naive_flops": found.naive,
    }


def _inert(found: Sweep) -> np.ndarray:
    """Cells that change nothing in any prompt: out of reach, or equal values in both runs."""
    same = (found.moved == 0) & np.isfinite(found.patched)
    return (found.inert | same).all(1).astype(np.int8)


def averaged(found: Sweep, extra: int, draws: int) -> Sweep:
    """The grid alone (without the first ``extra`` cells), averaged over draws."""

    def mean(values: np.ndarray) -> np.ndarray:
        return values[extra:].reshape(draws, -1, values.shape[1]).mean(0)

    first = len(found.patched[extra:]) // draws
    return Sweep(
        mean(found.patched),
        found.base,
        found.source,
        found.inert[extra : extra + first],
        found.undefined[extra : extra + first],
        mean(found.moved),
        found.telling[extra : extra + first],
        found.noise,
        found.chunks,
        found.flops,
        found.naive,
    )
