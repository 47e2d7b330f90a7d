"""Sides: the prompts that a short method looks at, clean and corrupt or a single text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from interp.terms import HookedModel, PromptPairs, TaskError, Texts, UsageError

Variables = Mapping[str, tuple[tuple[str, ...], Any, str, str, int]]


def sides_of(task: PromptPairs | Texts, rows: Sequence[int] | None) -> dict[str, np.ndarray]:
    """Token ids of the chosen prompts by side, ``[prompt, position]`` each.

    Args:
        task: pairs give the sides ``clean`` and ``corrupt``, texts the side ``text``.
        rows: which prompts, counted from 0; all if None.

    Raises:
        UsageError: a prompt that is not there.
        TaskError: the chosen prompts differ in length.
    """
    chosen = range(len(task)) if rows is None else rows
    if not len(chosen) or any(not 0 <= r < len(task) for r in chosen):
        raise UsageError(
            f"Prompts {list(chosen)} were asked for; this task has {len(task)}, counted from 0."
        )
    columns = (
        {"clean": task.clean, "corrupt": task.corrupt}
        if isinstance(task, PromptPairs)
        else {"text": task.tokens}
    )
    out = {}
    for name, column in columns.items():
        prompts = [column[r] for r in chosen]
        if len({len(p) for p in prompts}) > 1:
            raise TaskError(
                "The chosen prompts differ in length.",
                remedy="Choose one prompt, or prompts of one length.",
            )
        out[name] = np.array(prompts)
    if len({v.shape for v in out.values()}) > 1:
        raise TaskError(
            "Clean and corrupt differ in length here.",
            remedy="Choose one side by swapping the pair, or a pair of one length.",
        )
    return out


def top_tokens(probabilities: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest along the last axis: token ids and probabilities, largest first."""
    k = min(k, probabilities.shape[-1])
    ids = np.argsort(-probabilities, axis=-1, kind="stable")[..., :k]
    return ids, np.take_along_axis(probabilities, ids, -1)


def dataset(variables: Variables, coords: dict[str, object], **attrs: object) -> xr.Dataset:
    """A dataset of ``name -> (dims, values, units, long_name, signed)``."""
    return xr.Dataset(
        {
            k: (d, v, {"units": u, "long_name": n, "signed": s})
            for k, (d, v, u, n, s) in variables.items()
        },
        coords=coords,
        attrs=attrs,
    )


def check_layer(model: HookedModel, layer: int, head: int | None = None) -> None:
    """Refuse a layer or head that the model does not have."""
    shape = model.shape
    if not 0 <= layer < shape.n_layers:
        raise UsageError(f"Layer {layer} was asked for; this model has {shape.n_layers}.")
    if head is not None and not 0 <= head < shape.n_heads:
        raise UsageError(f"Head {head} was asked for; a layer here has {shape.n_heads}.")
