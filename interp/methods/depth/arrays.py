"""Arrays: attributes, reductions and intervals that the depth methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from interp.engine.depth import Corpus
from interp.terms import HookedModel, PromptPairs, Texts

PART = ("layer", "attention", "MLP")
STATS = ("max", "mean", "q95")


def attrs(long_name: str, units: str = "1", signed: int = 0, **more: Any) -> dict[str, Any]:
    """Attributes of an array."""
    return {"units": units, "long_name": long_name, "signed": signed, **more}


def facts(model: HookedModel, corpus: Corpus, **more: Any) -> dict[str, Any]:
    """What every depth result says about itself."""
    return {
        "n_tokens": corpus.n_tokens, "n_prompts": corpus.n_prompts,
        "n_layers": model.shape.n_layers,
        "dtype": str(model.blocks.dtype).removeprefix("torch."),
        "bos": "position 0 is counted and skipped like any other" if corpus.first == 0
        else "position 0 is neither averaged nor skipped", **more,
    }  # fmt: skip


def depth_coords(n_layers: int, *axes: str) -> dict[str, Any]:
    """Coordinates of layer and boundary axes, with the relative depth l/L beside each."""
    out: dict[str, Any] = {}
    for axis in axes:
        n = n_layers + (axis == "boundary")
        out[axis] = np.arange(n)
        name = "depth" if axis == axes[0] else f"depth_{axis}"
        out[name] = (axis, np.arange(n) / n_layers)
    return out


def texts_of(task: Texts | PromptPairs) -> Any:
    """The prompts a depth method reads."""
    return task.clean if isinstance(task, PromptPairs) else task.tokens


def reduced(values: np.ndarray, stat: str, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """max, mean or 95 % quantile, NaN left out; NaN where nothing is left."""
    known = np.isfinite(values).any(axis)
    filled = np.where(np.isfinite(values), values, np.nan)
    with np.errstate(invalid="ignore"):
        if stat == "mean":
            count = np.maximum(np.isfinite(values).sum(axis), 1)
            out = np.nansum(filled, axis) / count
        elif stat == "max":
            out = np.max(np.where(np.isfinite(filled), filled, -np.inf), axis)
        else:
            safe = np.where(np.expand_dims(known, axis) if axis is not None else known, filled, 0.0)
            out = np.nanquantile(safe, 0.95, axis=axis)
    return np.where(known, out, np.nan)


def depth_score(effect: np.ndarray) -> np.ndarray:
    """Σ l·e_l / Σ e_l over the last axis, layers counted from 0; NaN where nothing is left."""
    e = np.where(np.isfinite(effect), effect, 0.0)
    total = e.sum(-1)
    moment = (e * np.arange(e.shape[-1])).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, moment / total, np.nan)


def resampled(
    n: int, n_boot: int, seed: int, compute: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray | None:
    """95 % percentile interval ``[2, …]`` of a statistic of prompts drawn with replacement.

    Args:
        n: prompts.
        n_boot: samples; 0 for none.
        seed: of the drawing.
        compute: row numbers -> the statistic, any shape.
    """
    if n_boot < 1 or n < 2:
        return None
    dice = np.random.default_rng(seed)
    drawn = np.stack([compute(dice.integers(0, n, n)) for _ in range(n_boot)])
    known = np.isfinite(drawn).mean(0) > 0.5
    safe = np.where(known, drawn, 0.0)
    tails = np.nanquantile(np.where(np.isfinite(safe), safe, np.nan), [0.025, 0.975], axis=0)
    return np.where(known, tails, np.nan)


def dataset(
    arrays: dict[str, tuple[Sequence[str], Any, dict[str, Any]]],
    coords: dict[str, Any],
    about: dict[str, Any],
) -> xr.Dataset:
    """Arrays as a dataset, float32 and float64 alike kept, only used coordinates kept."""
    used = {d for dims, _, _ in arrays.values() for d in dims}
    kept = {
        k: v for k, v in coords.items()
        if (v[0] if isinstance(v, tuple) else k) in used
    }  # fmt: skip
    return xr.Dataset(
        {k: (tuple(d), np.asarray(v), a) for k, (d, v, a) in arrays.items()}, kept, about
    )
