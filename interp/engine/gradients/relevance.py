"""Relevance: ``Σ_channel a ⊙ ρ`` at every node of one run, ρ under the rules in force.

achtibat2024attnlrp, ali2022xai: what a node holds times the metric's modified gradient there, a
share of the metric passed back layer by layer. One forward pass and one backward for all nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from interp.engine.buckets import Bucket, buckets_of
from interp.engine.gradients.active import blocks_of
from interp.engine.gradients.nodes import empty_arrays, graph_bytes
from interp.engine.gradients.passes import LayerPass
from interp.engine.gradients.wishes import Attribution, Wish
from interp.engine.metrics import check_metric, metric_named, targets_of
from interp.terms import CapabilityError, Context, HookedModel, PromptPairs, UsageError


def relevance(
    model: HookedModel,
    pairs: PromptPairs,
    kinds: Sequence[str],
    context: Context,
    *,
    metric: str = "logit_diff",
    side: str = "clean",
    at: int | str = "last",
) -> Attribution:
    """Relevance of every node of these kinds; call it inside ``rules(...)``.

    Args:
        model: driven layer by layer.
        pairs: the prompts.
        kinds: sites.
        context: progress, cancel, memory.
        metric: a key of ``METRICS`` that needs one run alone.
        side: ``"clean"`` or ``"corrupt"``.
        at: where the metric is read.

    Raises:
        UsageError: a metric without a gradient, or one that compares with the clean run.
        CapabilityError: a model whose layers cannot be driven.
    """
    chosen = metric_named(metric)
    check_metric(chosen, pairs)
    if chosen.clean or not chosen.differentiable:
        raise UsageError(
            f"Metric {metric!r} is no function of one run with a gradient.",
            remedy="Use 'logit_diff' or 'logprob'.",
        )
    blocks = blocks_of(model)
    if blocks is None:
        raise CapabilityError(
            "Relevance needs layers that the engine can drive.",
            remedy="Use a model of a known family.",
        )
    direction = "noising" if side == "clean" else "denoising"
    out = empty_arrays(model, pairs, Wish(tuple(kinds), chosen, direction, at))
    done = 0
    for bucket in buckets_of(pairs, direction, at):
        layer, whole = graph_bytes(model, bucket.length, blocks.dtype.itemsize)
        keep = whole <= 0.5 * context.memory
        rows = int(max(1, min(0.5 * context.memory // (whole if keep else layer), 64)))
        for i in range(0, len(bucket), rows):
            part = Bucket(
                *(getattr(bucket, f.name)[i : i + rows] for f in dataclasses.fields(Bucket))
            )
            _one(out, blocks, model.shape.vocab, pairs, part, kinds, chosen.name, keep)
            done += len(part)
            context.advance(done, len(pairs))
    out.passes = {"forwards": 1, "backwards": 1}
    return out


def _one(
    out: Attribution,
    blocks: object,
    vocab: int,
    pairs: PromptPairs,
    bucket: Bucket,
    kinds: Sequence[str],
    metric: str,
    keep: bool,
) -> None:
    chosen = metric_named(metric)
    run = LayerPass(blocks, bucket.base, kinds, grad=True, keep_graph=keep).forward()
    targets = targets_of(pairs, bucket.rows.tolist(), chosen, vocab, run.tokens_N.device)
    scores, g_ND, _ = run.pull(chosen, targets, bucket.at)
    out.base[bucket.rows] = scores.double().cpu().numpy()

    def visit(layer: int, taken: dict[str, tuple[Tensor, Tensor]]) -> None:
        for kind, (value, gradient) in taken.items():
            held = value.double() * gradient.double()
            held = held if kind == "mlp_post" else held.sum(-1)
            into = out.values[kind]
            where = (bucket.rows,) if layer < 0 else (bucket.rows, layer)
            part = into[where]
            part[:, : bucket.length] = held.cpu().numpy()
            into[where] = part

    run.backward(g_ND, visit)
