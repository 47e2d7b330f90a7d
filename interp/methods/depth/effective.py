"""Effective depth: every definition, its last crossing beside its first, and its soft form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.terms import HookedModel, UsageError

DEFINITIONS = (
    "cosine, first",
    "cosine, last",
    "KL, first",
    "KL, last",
    "overlap, first",
    "overlap, last",
    "KL, mean layer",
)
OVERLAP = 0.3


@dataclass(frozen=True, eq=False)
class Curves:
    """Curves over layers by prompt, with the weight of each prompt.

    Args:
        values: ``[curve, layer, prompt]``.
        weights: ``[prompt]``.
    """

    values: np.ndarray
    weights: np.ndarray

    def mean(self, rows: np.ndarray | None) -> np.ndarray:
        """``[curve, layer]`` over these prompts (default all)."""
        chosen = slice(None) if rows is None else rows
        v, w = self.values[..., chosen], self.weights[chosen]
        known = np.isfinite(v)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(known, v * w, 0.0).sum(-1) / (known * w).sum(-1)


def first_and_last(hit: np.ndarray) -> tuple[float, float]:
    """The first layer where a curve is past its threshold, and the last at which it gets there.

    NaN where it never is (an IndexError in public code).
    """
    where = np.flatnonzero(hit)
    if not len(where):
        return np.nan, np.nan
    last = int(where[-1])
    while last > 0 and hit[last - 1]:
        last -= 1
    return float(where[0]), float(last)


def crossings(curve: np.ndarray) -> tuple[float, float]:
    """First and last layer at which a curve turns from negative to positive."""
    turned = np.flatnonzero((curve[:-1] < 0) & (curve[1:] >= 0)) + 1
    return (float(turned[0]), float(turned[-1])) if len(turned) else (np.nan, np.nan)


def soft(kl: np.ndarray) -> float:
    """Σ l·kl_l / Σ kl_l."""
    total = kl.sum()
    return float((kl * np.arange(len(kl))).sum() / total) if total > 0 else np.nan


def effective_depths(cosines: np.ndarray, lens: np.ndarray | None) -> np.ndarray:
    """Layers (from 0) by ``DEFINITIONS``; NaN where a curve never crosses.

    Args:
        cosines: mean of the three cosines, ``[1, layer]``.
        lens: KL and overlap behind each layer, ``[2, layer]``, or None.
    """
    out = list(crossings(cosines[0]))
    if lens is None:
        return np.array([*out, *[np.nan] * 5])
    kl, overlap = lens
    out += first_and_last(kl < 0.5 * np.nanmax(kl))
    out += first_and_last(overlap > OVERLAP)
    return np.array([*out, soft(kl)])


def lens_curves(result: Any, model: HookedModel, task: Any, direction: str) -> Curves:
    """KL and overlap behind each layer by prompt, from a stored logit lens.

    Raises:
        UsageError: a run of another method, model or task, or without its prompts.
    """
    check_same(result, model, task)
    data = result.data
    if "kl" not in data:
        raise UsageError(
            "lens_result keeps no prompts.", remedy="Run logit_lens with keep_prompts=True."
        )
    counted = np.arange(data.sizes["position"]) >= int(data.attrs["counted_from"])
    values, weights = [], None
    for array in (data["kl"].sel(kl_direction=direction), data["overlap"]):
        v = array.transpose("boundary", "prompt", "position").values[1:, :, counted].astype(float)
        known = np.isfinite(v)
        count = known.sum(-1)
        values.append(np.where(known, v, 0.0).sum(-1) / np.maximum(count, 1))
        weights = count[0].astype(float)
    assert weights is not None
    return Curves(np.stack(values), weights)


def check_same(result: Any, model: HookedModel, task: Any) -> None:
    """Refuse a lens of another method, model or task.

    Raises:
        UsageError: saying which.
    """
    spec = getattr(result, "spec", {})
    if spec.get("method") != "logit_lens":
        raise UsageError(
            f"lens_result is a run of {spec.get('method')!r}.", remedy="Give one of 'logit_lens'."
        )
    theirs = spec.get("model", {}).get("weight_hash"), spec.get("task", {}).get("hash")
    ours = model.weight_hash, task.hash()
    for mine, other, what in zip(ours, theirs, ("model", "task"), strict=True):
        if other is not None and other != mine:
            raise UsageError(
                f"lens_result was measured on another {what}.",
                remedy="Run logit_lens on this model and task, and give its id.",
            )
