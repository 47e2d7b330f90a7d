"""Values: what ablations put in place of the base run's activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.engine import read_values
from interp.terms import HookedModel, ModelShape, PromptPairs, Site, UsageError

Values = dict[Site, np.ndarray]
"""Whole site -> array that broadcasts to ``[prompt, position, *site dims]``."""


def lent_values(
    model: HookedModel,
    task: PromptPairs,
    sites: Sequence[Site],
    with_: str,
    *,
    mean_over: str,
    draws: int,
    constant: tuple[float, ...],
    seed: int,
    direction: str,
    at: int | str,
) -> list[Values]:
    """Values to put in place, one set a draw.

    Args:
        model: whose source runs are read.
        task: the prompts.
        sites: whole sites.
        with_: ``"mean"``, ``"resample"`` or ``"constant"``.
        mean_over: ``"prompts"`` (a mean for each position) or ``"prompts,positions"``.
        draws: random orders of resampling.
        constant: one number, or one for each coordinate.
        seed: of the orders.
        direction: whose source runs lend.
        at: as of the sweep.

    Raises:
        UsageError: positions that do not align, constants that do not fit.
    """
    patterns = any(s.kind == "pattern" for s in sites)
    if with_ == "constant" and not patterns:
        return [{s: _constant(s, model.shape, constant) for s in sites}]
    everywhere = with_ == "mean" and mean_over == "prompts,positions"
    if patterns and (everywhere or (with_ == "constant" and len(constant) > 1)):
        raise UsageError(
            "Rows of a pattern have as many entries as their position; they have no common mean "
            "over positions, and one number fills them.",
            remedy="Use mean_over='prompts', or a single constant.",
        )
    if not everywhere and not task.aligned():
        other = ", or mean_over='prompts,positions'" if with_ == "mean" else ""
        raise UsageError(
            f"with_={with_!r} needs prompts of one length; these differ.",
            remedy=f"Use with_='source' or 'zero', prompts of one length{other}.",
        )
    found = read_values(model, task, sites, direction=direction, at=at)
    arrays = {s: [v.detach().double().cpu().numpy() for v in vs] for s, vs in found.items()}
    if everywhere:
        return [{s: np.concatenate(v).mean(0)[None, None] for s, v in arrays.items()}]
    stacked = {s: np.stack(v) for s, v in arrays.items()}
    if with_ == "constant":  # a number for every key that a query may see
        fill = float(np.asarray(constant).flat[0])
        return [{s: np.where((v > 0).any(0, keepdims=True), fill, 0.0) for s, v in stacked.items()}]
    if with_ == "mean":
        return [{s: v.mean(0, keepdims=True) for s, v in stacked.items()}]
    orders = [derangement(len(task), seed + draw) for draw in range(draws)]
    return [{s: v[order] for s, v in stacked.items()} for order in orders]


def _constant(site: Site, shape: ModelShape, constant: tuple[float, ...]) -> np.ndarray:
    sizes = {
        "d_model": shape.d_model,
        "head": shape.n_heads,
        "kv_head": shape.n_kv_heads,
        "d_head": shape.d_head,
        "neuron": shape.d_mlp,
    }
    dims = tuple(sizes[d] for d in site.spec.dims)
    if len(constant) not in (1, dims[-1]):
        raise UsageError(
            f"{len(constant)} constants were given for {site.kind}.",
            remedy=f"Give one number, or one for each of its {dims[-1]} coordinates.",
        )
    return np.broadcast_to(np.array(constant, dtype=np.float64), (1, 1, *dims)).copy()


def derangement(n: int, seed: int) -> np.ndarray:
    """A random order in which no prompt keeps its place."""
    if n < 2:
        raise UsageError("Resampling needs another prompt.", remedy="Give at least two prompts.")
    order = np.random.default_rng(seed).permutation(n)
    out = np.empty(n, dtype=np.int64)
    out[order] = np.roll(order, 1)
    return out
