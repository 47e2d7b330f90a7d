"""Facts: what must hold of a gradient and of rules, measured on the model at hand.

Conservation holds for one set of rules only (norms, activations and patterns constant, products
halved or given to the value); a first-order estimate must agree with a small enough patch; a
network whose scales, factors and patterns are those of the base run is linear, so there the
estimate is the exact effect.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.buckets import Bucket, buckets_of
from interp.engine.gradients.active import blocks_of, rules
from interp.engine.gradients.passes import LayerPass
from interp.engine.gradients.paths import Walk
from interp.engine.gradients.ruleset import RuleSet
from interp.engine.metrics import metric_named, targets_of
from interp.engine.plain import plain_metrics, read_values
from interp.engine.plans import Cell
from interp.terms import Edit, HookedModel, PromptPairs, Site


def biases_of(blocks: Any, first: int) -> dict[int, dict[str, Tensor]]:
    """Additive constants of layers ``first``… and, under -1, of what stands behind them."""
    found = {n: b.biases() for n, b in enumerate(blocks.layers) if n >= first}
    ends = {"final_norm": blocks.final_norm, "unembed": blocks.w_unembed}
    honest = {n: getattr(o, "honest", o) for n, o in ends.items()}
    found[-1] = {n: o.bias for n, o in honest.items() if getattr(o, "bias", None) is not None}
    for index, block in enumerate(blocks.layers):
        for name in ("pre_attn", "post_attn", "pre_mlp", "post_mlp"):
            norm = getattr(getattr(block, name), "honest", getattr(block, name))
            if index >= first and getattr(norm, "bias", None) is not None:
                found[index][name] = norm.bias
    return found


def conservation(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    side: str = "clean",
    layer: int = 0,
    metric: str = "logit_diff",
    at: int | str = "last",
) -> tuple[float, float, float]:
    """``Σ a·ρ`` at resid_pre of a layer, the share of later constants, and the metric.

    Call it inside ``rules(...)``. Sums run over the prompts of one side of the pairs.
    """
    blocks = blocks_of(model)
    constants = biases_of(blocks, layer)
    flags = {id(b): (b, b.requires_grad) for g in constants.values() for b in g.values()}
    sums = np.zeros(3)
    try:
        for bias, _ in flags.values():
            bias.requires_grad_(True)
        for bucket in buckets_of(pairs, "noising" if side == "clean" else "denoising", at):
            sums += _shares(model, pairs, bucket, constants, layer, metric)
    finally:
        for bias, flag in flags.values():
            bias.requires_grad_(flag)
    return float(sums[0]), float(sums[1]), float(sums[2])


def _shares(
    model: HookedModel,
    pairs: PromptPairs,
    bucket: Bucket,
    constants: dict[int, dict[str, Tensor]],
    layer: int,
    metric: str,
) -> np.ndarray:
    """Cut, constants and metric of one bucket."""
    blocks, chosen = blocks_of(model), metric_named(metric)
    run = LayerPass(blocks, bucket.base, {"resid_pre"}, grad=True, also=constants).forward()
    targets = targets_of(pairs, bucket.rows.tolist(), chosen, model.shape.vocab, blocks.device)
    scores, g_ND, ends = run.pull(chosen, targets, bucket.at)
    sums = np.array([0.0, _dotted(ends, constants[-1]), float(scores.double().sum())])

    def visit(n: int, taken: dict[str, tuple[Tensor, Tensor]]) -> None:
        if n == layer:
            value, gradient = taken["resid_pre"]
            sums[0] = float((value.double() * gradient.double()).sum())

    def extra(n: int, grads: dict[str, Tensor]) -> None:
        sums[1] += _dotted(grads, constants.get(n, {}))

    run.backward(g_ND, visit, extra=extra)
    return sums


def _dotted(grads: dict[str, Tensor], values: dict[str, Tensor]) -> float:
    return float(sum((grads[n].double() * values[n].detach().double()).sum() for n in grads))


def small_patch_slope(
    model: HookedModel,
    pairs: PromptPairs,
    site: Site,
    *,
    metric: str,
    direction: str,
    at: int | str,
    step: float = 0.01,
) -> np.ndarray:
    """Slope of the metric along one node's path at the base run, ``[prompt]``.

    By the back-end's own forward passes with ``a_base ± h (a_source - a_base)`` put in place, so
    that it shares nothing with a backward pass; h = step and step / 2, extrapolated to 0.
    """
    other = "noising" if direction == "denoising" else "denoising"
    whole = site.whole
    source = read_values(model, pairs, [whole], direction=direction, at=at)[whole]
    base = read_values(model, pairs, [whole], direction=other, at=at)[whole]
    cells = []
    for h in (step, -step, step / 2, -step / 2):
        value = torch.stack([b + h * (s - b) for s, b in zip(source, base, strict=True)])
        part = site.head if site.head is not None else site.neuron
        value = value if part is None else value[:, :, part]
        cells.append(Cell((Edit(site, value.detach().double().cpu().numpy()),)))
    m = plain_metrics(model, pairs, cells, metric_named(metric), direction=direction, at=at)
    wide, near = (m[0] - m[1]) / (2 * step), (m[2] - m[3]) / step
    return (4 * near - wide) / 3


def frozen_effect(
    model: HookedModel,
    pairs: PromptPairs,
    cell: Cell,
    chosen: RuleSet,
    *,
    metric: str,
    direction: str,
    at: int | str,
) -> tuple[np.ndarray, np.ndarray]:
    """Exact effect of a cell in the network frozen at the base run, and its gradient estimate.

    Both ``[prompt]``. Scales, factors and patterns are the base run's; the source's value is the
    ordinary source run's.
    """
    blocks, scored = blocks_of(model), metric_named(metric)
    exact, estimate = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
    for bucket in buckets_of(pairs, direction, at):
        walk = Walk(blocks, model.shape.vocab, pairs, bucket, scored, [cell])
        ones = torch.ones(len(bucket), dtype=blocks.dtype, device=blocks.device)
        with rules(model, chosen, reference=bucket.base), torch.no_grad():
            moved, still = walk.moved([0], ones), walk.moved([0], 0 * ones)
        exact[bucket.rows] = (moved - still).double().cpu().numpy()
        with rules(model, chosen, verify=False):
            estimate[bucket.rows] = walk.slopes([0], (0.0,))[0]
    return exact, estimate


def first_prompts(pairs: PromptPairs, most: int) -> PromptPairs:
    """The first prompts of a task."""
    return pairs if len(pairs) <= most else pairs.select(range(most))
