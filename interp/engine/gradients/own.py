"""Own graph: the same estimates from a back-end's own graph, ``model.run(grad=True)``.

For models whose layers the engine cannot drive, and to hold the layer-wise passes to something
that shares nothing with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from interp.engine.buckets import Bucket, buckets_of
from interp.engine.metrics import Metric, Targets, metric_named, targets_of
from interp.engine.plain import pick_positions
from interp.terms import KINDS, HookedModel, PromptPairs, Site


def own_graph(
    model: HookedModel,
    tokens: np.ndarray,
    sites: Sequence[Site],
    score: Callable[[Tensor], Tensor],
) -> tuple[Tensor, dict[Site, Tensor], dict[Site, Tensor]]:
    """Metric ``[prompt]``, values and gradients of sites through the back-end's own graph.

    Args:
        model: any adapter.
        tokens: ids ``[prompt, position]``.
        sites: whole sites.
        score: logits ``[prompt, position, vocab]`` to the metric ``[prompt]``.
    """
    run = model.run(tokens, read=sites, grad=True)
    with torch.enable_grad():
        scores = score(run.logits)
        found = torch.autograd.grad(scores.sum(), [run.reads[s] for s in sites], allow_unused=True)
    grads = {
        s: torch.zeros_like(run.reads[s]) if g is None else g
        for s, g in zip(sites, found, strict=True)
    }
    return scores.detach(), {s: run.reads[s].detach() for s in sites}, grads


def sites_of(model: HookedModel, kind: str) -> list[Site]:
    """Every whole site of a kind, layer by layer."""
    if not KINDS[kind].per_layer:
        return [Site(kind)]
    return [Site(kind, layer=n) for n in range(model.shape.n_layers)]


def scorer(metric: Metric, targets: Targets, at: np.ndarray) -> Callable[[Tensor], Tensor]:
    """Whole logits to the metric of each prompt."""

    def score(logits: Tensor) -> Tensor:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        chosen = pick_positions(logits, at)
        if targets.columns is not None:
            chosen = chosen[..., targets.columns]
        return metric.score(chosen, targets, torch.arange(len(at), device=logits.device))

    return score


def estimates_by_own_graph(
    model: HookedModel, pairs: PromptPairs, bucket: Bucket, kinds: Sequence[str], metric: Metric
) -> dict[str, np.ndarray]:
    """Estimates of every kind in a bucket, and the metric of both runs.

    Args:
        model: any adapter.
        pairs: the task; bucket: its prompts that are run.
        bucket: see ``pairs``.
        kinds: sites.
        metric: what is differentiated.
    """
    sites = {kind: sites_of(model, kind) for kind in kinds}
    flat = [s for group in sites.values() for s in group]
    with torch.no_grad():
        source = model.run(bucket.source, read=flat)
    targets = targets_of(
        pairs, bucket.rows.tolist(), metric, source.logits.shape[-1], source.logits.device
    )
    if metric.clean:
        chosen = pick_positions(source.logits, bucket.at_source).double()
        targets = dataclasses.replace(targets, clean=torch.log_softmax(chosen, -1))
    lent = scorer(metric, targets, bucket.at_source)(source.logits)
    scores, values, grads = own_graph(model, bucket.base, flat, scorer(metric, targets, bucket.at))
    match = torch.from_numpy(bucket.match)
    rows = torch.arange(len(bucket))[:, None]
    out = {"base": scores, "source": lent}
    for kind, group in sites.items():
        parts = []
        for site in group:
            step = source.reads[site][rows, match.clamp_min(0)] - values[site]
            step[match < 0] = torch.nan
            est = step * grads[site]
            parts.append(est if kind == "mlp_post" else est.sum(-1))
        out[kind] = torch.stack(parts, 1) if KINDS[kind].per_layer else parts[0]
    return {k: v.detach().double().cpu().numpy() for k, v in out.items()}


def own_estimates(
    model: HookedModel,
    pairs: PromptPairs,
    kind: str,
    *,
    metric: str,
    direction: str,
    at: int | str,
) -> np.ndarray:
    """Ordinary estimates of one kind, ``[prompt, layer, position, ...]``, NaN behind the end."""
    found = [
        (b, estimates_by_own_graph(model, pairs, b, [kind], metric_named(metric))[kind])
        for b in buckets_of(pairs, direction, at)
    ]
    axis = 2 if KINDS[kind].per_layer else 1
    longest = max(b.length for b, _ in found)
    shape = list(found[0][1].shape)
    shape[0], shape[axis] = len(pairs), longest
    out = np.full(shape, np.nan)
    for bucket, values in found:
        part = [bucket.rows] + [slice(None)] * (axis - 1) + [slice(0, bucket.length)]
        out[tuple(part)] = values
    return out
