"""Trust: lines of the panel that say whether gradients and rules are what they claim to be."""

from __future__ import annotations

import math

import numpy as np

from interp.engine import Cell
from interp.engine.gradients import (
    PRESETS,
    Active,
    RuleSet,
    conservation,
    first_prompts,
    frozen_effect,
    own_estimates,
    rules,
    small_patch_slope,
)
from interp.terms import Check, HookedModel, PromptPairs, Site

UNIT = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.2, "float16": 2e-2}
"""Relative tolerance of a gradient for one layer, by dtype."""

SLOPE = {"float64": 0.01, "float32": 0.03}
"""How far a small patch may be from the estimate: it is small, and the metric is rounded."""

PROMPTS = 2
"""Facts are measured on this many prompts."""


def tolerance(model: HookedModel) -> float:
    """Relative tolerance of a gradient on this model."""
    return UNIT.get(dtype_of(model), 1e-4) * max(1, model.shape.n_layers)


def dtype_of(model: HookedModel) -> str:
    """The parameters' dtype by name."""
    return str(getattr(model, "dtype", "float32")).removeprefix("torch.")


def of_rules(active: Active) -> list[Check]:
    """Whether the rules are in force and leave values alone."""
    if not active.changed:
        return []
    least = min(active.least.values())
    counts = ", ".join(f"{k} {n} of {active.present[k]}" for k, n in active.replaced.items())
    return [
        Check(
            "rules_active",
            "least change of a replaced part's gradient",
            least,
            1e-4,
            at_least=True,
            note=f"Rules: {active.rules.name}. Replaced and reached: {counts}. Each alone moves "
            "the gradient of its part and of the model.",
        ),
        Check(
            "rules_exact",
            "change of the model's values by the rules",
            0.0 if active.bit_equal else math.nan,
            0.0,
            note="A backward rule leaves forward values as they are, to the bit.",
        ),
    ]


def of_scale(relevance: np.ndarray, metric: np.ndarray) -> Check:
    """Whether anything is left at a query or key: behind it a norm of its own undoes any scaling.

    Relevance is value times gradient, and a value whose scale changes nothing has none.
    """
    size = max(float(np.nanmax(np.abs(metric), initial=0.0)), 1e-12)
    return Check(
        "scale_matters",
        "largest relevance, over the metric's size",
        float(np.nanmax(np.abs(relevance), initial=0.0)) / size,
        1e-6,
        at_least=True,
        note="Where a head norms its own queries or keys, relevance before that norm is zero by "
        "construction; qk_norm_rule=linear passes through it.",
    )


def of_own_graph(
    model: HookedModel,
    pairs: PromptPairs,
    site: str,
    values: np.ndarray,
    *,
    metric: str,
    direction: str,
    at: int | str,
) -> Check:
    """The ordinary estimates again through the back-end's own graph."""
    few = first_prompts(pairs, 1)
    own = own_estimates(model, few, site, metric=metric, direction=direction, at=at)
    mine = values[: len(few), ..., : own.shape[-1]] if own.ndim == 2 else values[: len(few)]
    part = tuple(slice(0, n) for n in own.shape)
    mine = mine[part]
    scale = max(float(np.nanstd(own)), 1e-12)
    return Check(
        "own_graph",
        "estimates by the back-end's own graph",
        float(np.nanmax(np.abs(mine - own), initial=0.0)) / scale,
        10 * tolerance(model),
        note="Largest difference on one prompt, in standard deviations of the grid.",
    )


def of_small_patch(
    model: HookedModel,
    pairs: PromptPairs,
    site: Site,
    estimate: np.ndarray,
    chosen: RuleSet,
    *,
    metric: str,
    direction: str,
    at: int | str,
) -> Check:
    """A small part of the largest patch against the same part of its estimate."""
    few = first_prompts(pairs, PROMPTS)
    step = 1e-3 if dtype_of(model) == "float64" else 1e-2
    slope = small_patch_slope(
        model, few, site, metric=metric, direction=direction, at=at, step=step
    )
    estimate = estimate[: len(few)]
    size = float(np.abs(slope).max())
    ratio = float(np.dot(estimate, slope) / max(np.dot(slope, slope), 1e-300))
    apart = float(np.abs(estimate - slope).max()) / max(size, 1e-300)
    if chosen.active:
        return Check(
            "first_order",
            f"estimate over true slope at {site}",
            ratio,
            note="1 for ordinary gradients. Rules that share a product or stop a divisor are not "
            "first-order consistent: they trade the slope for what a whole patch does.",
        )
    return Check(
        "first_order",
        f"estimate against a small patch at {site}",
        apart,
        SLOPE.get(dtype_of(model)),
        note=f"A hundredth of the patch by plain forward passes, {len(few)} prompts; the estimate "
        f"over the true slope is {ratio:.4g}.",
    )


def of_conservation(
    model: HookedModel,
    pairs: PromptPairs,
    chosen: RuleSet,
    *,
    side: str,
    metric: str,
    at: int | str,
) -> Check | None:
    """``Σ a·ρ`` at the embedding and the constants behind it against the metric."""
    if not chosen.active or not _homogeneous(model, metric):
        return None
    few = first_prompts(pairs, PROMPTS)
    with rules(model, chosen, verify=False):
        cut, constants, value = conservation(model, few, side=side, metric=metric, at=at)
    size = max(abs(cut), abs(constants), abs(value), 1e-300)
    ratio = (cut + constants) / value if value else math.nan
    words = (
        f"Residual stream {cut:.4g}, constants {constants:.4g}, metric {value:.4g}: ratio "
        f"{ratio:.6g}; without the constants {cut / value if value else math.nan:.4g}."
    )
    if not chosen.straightens:
        return Check(
            "conservation",
            "relevance and constants over the metric",
            ratio,
            note=f"{words} Only norms, activations and patterns held constant with a "
            "shared gate conserve; these rules do not claim it.",
        )
    return Check(
        "conservation",
        "relevance and constants against the metric",
        abs(cut + constants - value) / size,
        tolerance(model),
        note=words,
    )


def of_frozen_network(
    model: HookedModel,
    pairs: PromptPairs,
    cell: Cell,
    chosen: RuleSet,
    *,
    metric: str,
    direction: str,
    at: int | str,
) -> Check | None:
    """The estimate against exact patching of the network frozen at the base run."""
    if not chosen.straightens or not _homogeneous(model, metric):
        return None
    few = first_prompts(pairs, PROMPTS)
    exact, estimate = frozen_effect(
        model, few, cell, chosen, metric=metric, direction=direction, at=at
    )
    size = max(float(np.nanmax(np.abs(exact), initial=0.0)), 1e-12)
    return Check(
        "frozen_network",
        "estimate against exact patching of the frozen network",
        float(np.nanmax(np.abs(exact - estimate), initial=0.0)) / size,
        tolerance(model),
        note="Scales, activation factors and patterns held at the base run's make the network "
        "linear, and there the estimate is the effect.",
    )


def _homogeneous(model: HookedModel, metric: str) -> bool:
    """Whether the metric is linear in the last residual once its norm is held."""
    return metric == "logit_diff" and getattr(model.blocks, "cap", None) is None


def chosen_rules(name: str, **changes: str) -> RuleSet:
    """A preset with single rules changed; ``default`` keeps the preset's."""
    from interp.engine.gradients import rule_set

    kept = {k: v for k, v in changes.items() if v != "default"}
    return rule_set(PRESETS[name], **kept)
