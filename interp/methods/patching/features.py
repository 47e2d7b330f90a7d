"""Features: which of a dictionary's are measured exactly, and what they are set to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from interp.engine import feature_cells, feature_values
from interp.engine.gradients import attribute
from interp.methods.patching.grids import Grid, axes_of
from interp.methods.patching.values import derangement
from interp.models.dictionaries import Dictionary
from interp.terms import Context, HookedModel, PromptPairs, UsageError


def named_features(text: str, book: Dictionary) -> list[int]:
    """Features from names such as ``F17``.

    Raises:
        UsageError: a word that names none.
    """
    out = []
    for word in (w.strip() for w in text.split(",") if w.strip()):
        match = re.fullmatch(r"F?(\d+)", word, re.IGNORECASE)
        if match is None or int(match[1]) >= book.n_features:
            raise UsageError(
                f"{word!r} is no feature of {book.name}.",
                remedy=f"Write F17, with numbers below {book.n_features}.",
            )
        out.append(int(match[1]))
    return list(dict.fromkeys(out))


def likely_features(
    model: HookedModel,
    task: PromptPairs,
    context: Context,
    book: Dictionary,
    top: int,
    **knobs: Any,
) -> tuple[list[int], np.ndarray]:
    """Features whose first-order estimate of the effect is largest, and these estimates.

    ``Δf_j (W_dec[j] · gradient)`` of every feature takes two forward passes and one backward
    (marks2025sparse); summed over positions, averaged over prompts.
    """
    found = attribute(model, task, ["feature"], context, dictionary=book, **knobs)
    estimate = np.nansum(found.values["feature"], axis=1).mean(0)
    order = np.argsort(-np.abs(estimate), kind="stable")[:top]
    return order.tolist(), estimate[order]


def feature_grids(
    model: HookedModel,
    task: PromptPairs,
    book: Dictionary,
    features: Sequence[int],
    axes: str,
    *,
    positions: Sequence[int] | None,
    with_: str,
    mode: str,
    mean_over: str,
    constant: tuple[float, ...],
    draws: int,
    seed: int,
    direction: str,
    at: int | str,
) -> list[Grid]:
    """The grid of a sweep over features, or one a draw.

    Args:
        model: whose runs hold the features' values.
        task: the prompts.
        book: the dictionary.
        features: which.
        axes: ``feature``, with ``position`` or ``slot``, or ``auto``.
        positions: which (default all).
        with_: ``source``, ``zero``, ``mean``, ``resample`` or ``constant``.
        mode: whether the value replaces the feature or is added to it.
        mean_over: as of the method; likewise ``constant``, ``draws`` and ``seed``.
        constant: see ``mean_over``.
        draws: see ``mean_over``.
        seed: see ``mean_over``.
        direction: as of the sweep; likewise ``at``.
        at: see ``direction``.

    Raises:
        UsageError: positions that do not align, constants that do not fit.
    """
    names = axes_of("feature", axes, task)
    base, source = feature_values(model, task, book, features, direction=direction, at=at)
    if with_ in ("resample", "mean") and mean_over == "prompts" and not task.aligned():
        raise UsageError(
            f"with_={with_!r} needs prompts of one length; these differ.",
            remedy="Use with_='source' or 'zero', or mean_over='prompts,positions'.",
        )
    coords: dict[str, np.ndarray] = {"feature": np.array([f"F{f}" for f in features])}
    where: list[int | str | None] = [None]
    if "position" in names:
        coords["position"] = _positions(positions, max(task.base_lengths(direction)))
        where = [int(p) for p in coords["position"]]
    elif "slot" in names:
        coords["slot"] = np.array(list(task.slots))
        where = list(task.slots)
    further = {
        "feature_index": ("feature", np.array(list(features))),
        "feature_layer": ("feature", np.full(len(features), book.site.layer)),
    }
    grids = []
    for value in _lent(source, with_, mean_over, constant, draws, seed):
        change = value if mode == "add" else value - base
        cells = feature_cells(book, features, change, where)
        grids.append(Grid(names, coords, cells, None, further))
    return grids


def _positions(wanted: Sequence[int] | None, count: int) -> np.ndarray:
    if wanted is None:
        return np.arange(count)
    index = np.array([w + count if w < 0 else w for w in wanted], dtype=np.int64)
    if not len(index) or (index < 0).any() or (index >= count).any():
        raise UsageError(f"Positions {list(wanted)} were given; there are {count}, counted from 0.")
    return index


def _lent(
    source: np.ndarray,
    with_: str,
    mean_over: str,
    constant: tuple[float, ...],
    draws: int,
    seed: int,
) -> list[np.ndarray]:
    """What the features are set to, ``[prompt, position, feature]``, one array a draw."""
    if with_ == "source":
        return [source]
    if with_ == "zero":
        return [np.zeros_like(source)]
    if with_ == "constant":
        if len(constant) not in (1, source.shape[2]):
            raise UsageError(
                f"{len(constant)} constants were given for {source.shape[2]} features.",
                remedy="Give one number, or one for each feature measured.",
            )
        return [np.broadcast_to(np.array(constant, dtype=np.float64), source.shape).copy()]
    if with_ == "mean":
        over = (0, 1) if mean_over == "prompts,positions" else 0
        mean = np.nanmean(source, over, keepdims=True)
        return [np.broadcast_to(mean, source.shape).copy()]
    return [source[derangement(len(source), seed + draw)] for draw in range(draws)]
