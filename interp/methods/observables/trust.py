"""Trust: lines of the panel about observables, angles, identities and sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from interp.engine.pulls import Pulled, layer_norm_pull
from interp.engine.traces import Maps, Trace
from interp.methods.observables.inputs import Readout
from interp.methods.observables.reading import Standing
from interp.methods.observables.search import Found
from interp.terms import Check, Context

UNIT = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Relative tolerance for one layer (RMS norms keep float32 inside, in float64 too)."""

TURNED = 0.9
"""A norm whose cosine is below this turns the vector: it depends on the input."""


def tolerance(maps: Maps) -> float:
    """Relative tolerance of sums over a whole model."""
    return UNIT.get(maps.blocks.dtype, 0.05) * max(1, maps.shape.n_layers)


def of_observables(context: Context, readouts: list[Readout]) -> None:
    """Whether o changes when all logits move together."""
    worst = 0.0
    for readout in readouts:
        weights = readout.observable.weights
        worst = max(worst, float(np.max(np.abs(weights.sum(-1)) / np.abs(weights).sum(-1))))
    context.check(Check(
        "centred",
        "weights of the observable, summed over their sizes",
        worst,
        1e-9,
        note="Where the weights do not sum to zero, o changes when all logits move together.",
    ))  # fmt: skip


def of_identity(
    context: Context, maps: Maps, at: Standing, vector: torch.Tensor, treatment: str
) -> None:
    """The batched product against the two maps of the longest vector's head, one by one."""
    if not vector.numel():
        return
    sizes = vector.norm(dim=-1)
    b, n, h = np.unravel_index(int(sizes.argmax()), tuple(sizes.shape))
    part = maps.layer(int(n))
    y = layer_norm_pull(part, "post_attn", at.y[int(b), 0], treatment, None)
    alone = (part.w_v[int(h) // part.groups].double() @ part.w_o[int(h)].double()) @ y.double()
    alone = layer_norm_pull(part, "pre_attn", alone.to(y), treatment, None)
    apart = float((alone - vector[b, n, h]).abs().max() / vector[b, n, h].std())
    context.check(Check(
        "product", "the longest vector, by its head's own product", apart, tolerance(maps)
    ))  # fmt: skip


def of_angles(context: Context, parts: list[Any], ln: str) -> None:
    """How far norms turn vectors, and whether every head's shares add up."""
    cosines = [float(np.nanmin(p["cosine_final"])) for p in parts if "cosine_final" in p]
    if cosines:
        context.check(Check(
            "least_cosine",
            "least cosine of the angle by which the final norm turns the observable",
            min(cosines),
            TURNED,
            at_least=True,
            note="Below, the observable lies along the residual itself, and frozen, normed and "
            "exact vectors differ.",
        ))  # fmt: skip
    if ln != "frozen" or not parts or "identity" not in parts[0]:
        return
    context.check(Check(
        "shares",
        "shares of source tokens and biases against the head's write",
        max(float(p["identity"]) for p in parts),
        1e-3,
        note="Largest difference in standard deviations of all heads' attributions.",
    ))  # fmt: skip


def of_recursion(context: Context, maps: Maps, run: Trace, pulled: Pulled, o: np.ndarray) -> None:
    """All paths together against the observable."""
    total = torch.einsum("rtd,rtd->r", pulled.embed, run.embed) + pulled.const
    total = (total + sum(pulled.remainder)).double().cpu().numpy()
    size = max(float(np.std(o)), float(np.abs(o).mean()), 1e-30)
    context.check(Check(
        "all_paths",
        "all paths, biases and remainders against the observable",
        float(np.abs(total - o).max()) / size,
        tolerance(maps),
        note="With patterns, scales and tangents of the run the model is linear in its tokens.",
    ))  # fmt: skip


def of_paths(
    context: Context,
    maps: Maps,
    found: Found,
    goal: np.ndarray,
    base: torch.Tensor,
    u: torch.Tensor,
    *,
    whole: bool,
) -> None:
    """Whether kept, dropped and constant parts make the whole; how much was found."""
    kept = sum((p.value for p in found.ended), np.zeros(len(goal)))
    size = max(float(np.abs(goal).mean()), 1e-30)
    if whole:
        parts = kept + found.left + found.dropped + found.constants
        context.check(Check(
            "conservation",
            "paths kept and dropped, and constants, against the last residual's value",
            float(np.abs(parts - found.root.value).max()) / size,
            tolerance(maps),
            note="Every prefix is the sum of its children, biases and remainders.",
        ))  # fmt: skip
    mean = float(goal.mean())
    context.check(Check(
        "explained",
        "share of the observable that the paths found add up to",
        float(kept.mean() / mean) if mean else float("nan"),
        note=f"{found.n_dropped:,} prefixes worth "
        f"{float((found.dropped + found.left).mean()):.3g} of {mean:.3g} logits were not followed. "
        "Paths cancel, so a beam may miss large ones; width and depth bring more.",
    ))  # fmt: skip
