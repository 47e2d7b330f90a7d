"""Nodes: first-order estimates of patching every node of chosen kinds at once.

``est(n) = Σ_channel (a_source - a_base) · ρ_base``, ρ the gradient of the metric at the node in
the base run, ordinary or under the rules that are in force (kramar2024atp, jafari2025relp). Two
forward passes and one backward serve all nodes of all kinds; gradients are held for one layer at a
time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from interp.engine.buckets import Bucket, buckets_of
from interp.engine.gradients.active import blocks_of
from interp.engine.gradients.batch import Batch
from interp.engine.gradients.own import estimates_by_own_graph
from interp.engine.gradients.wishes import Attribution, Wish, layered
from interp.engine.metrics import Metric, check_metric, metric_named
from interp.terms import CapabilityError, Context, HookedModel, PromptPairs, UsageError

if TYPE_CHECKING:
    from interp.models.dictionaries import Dictionary

TOKENS = 4096
"""Tokens of one batch at most, so that progress moves."""


def attribute(
    model: HookedModel,
    pairs: PromptPairs,
    kinds: Sequence[str],
    context: Context,
    *,
    metric: str = "logit_diff",
    direction: str = "denoising",
    at: int | str = "last",
    qk_fix: bool = False,
    grad_drop: bool = False,
    steps: Sequence[float] = (),
    keys: bool = False,
    dictionary: Dictionary | None = None,
) -> Attribution:
    """Estimate the effect of patching every node of these kinds; see this file's head.

    Args:
        model: driven layer by layer, or by its own graph where it cannot be.
        pairs: prompts of equal length on both sides.
        kinds: sites, all served by the same passes.
        context: progress, cancel, memory, kept chunks.
        metric: a key of ``METRICS`` with a gradient.
        direction: ``"denoising"`` or ``"noising"``.
        at: where the metric is read.
        qk_fix: see ``Wish``; likewise ``grad_drop`` and ``steps``.
        grad_drop: see ``Wish``.
        steps: see ``Wish``.
        keys: see ``Wish``.
        dictionary: see ``Wish``.

    Raises:
        UsageError: prompts of unequal length; a metric without a gradient there.
        CapabilityError: a kind the model lacks.
    """
    chosen = metric_named(metric)
    check_gradient(chosen, pairs, direction)
    check_metric(chosen, pairs)
    wish = Wish(
        tuple(kinds), chosen, direction, at, qk_fix, grad_drop, tuple(steps), keys, dictionary
    )
    _check_kinds(model, wish)
    out = empty_arrays(model, pairs, wish)
    batches = list(_batches(model, pairs, wish, context.memory))
    done = 0
    for number, (bucket, keep) in enumerate(batches):
        found = context.load_chunk(f"attribution-{number}")
        if found is None:
            found = _measured(model, pairs, bucket, wish, keep)
            context.save_chunk(f"attribution-{number}", found)
        _keep(out, bucket, found)
        out.streamed += not keep
        done += len(bucket)
        context.advance(done, len(pairs))
    more = len(wish.steps) or 1
    out.passes = {
        "forwards": 1 + (more + 1 if wish.steps else 1),
        "backwards": more + (model.shape.n_layers if grad_drop else 0),
    }
    return out


def check_gradient(metric: Metric, pairs: PromptPairs, direction: str) -> None:
    """Refuse what has no gradient, or none that means anything.

    Raises:
        UsageError: with the remedy.
    """
    if not metric.differentiable:
        raise UsageError(
            f"Metric {metric.name!r} jumps, so it has no gradient.",
            remedy="Use 'logit_diff' or 'logprob'.",
        )
    if metric.clean and direction == "noising":
        raise UsageError(
            f"Metric {metric.name!r} is least at the clean run, so its gradient there is zero.",
            remedy="Use direction='denoising', or metric 'logit_diff'.",
        )
    odd = [
        i
        for i, (a, b) in enumerate(zip(pairs.clean, pairs.corrupt, strict=True))
        if len(a) != len(b)
    ]
    if odd:
        raise UsageError(
            f"Prompt {odd[0] + 1} has {len(pairs.clean[odd[0]])} clean and "
            f"{len(pairs.corrupt[odd[0]])} corrupt tokens; a gradient needs equal lengths.",
            remedy="Make them equally long, or use activation_patching, which takes span maps.",
        )


def _check_kinds(model: HookedModel, wish: Wish) -> None:
    if "resid_mid" in wish.lent and model.shape.parallel:
        raise CapabilityError(
            "This model has no resid_mid: attention and MLP read the same residual.",
            remedy="Use resid_pre, attn_out or mlp_out.",
        )
    driven = blocks_of(model) is not None
    parts = {"pattern", "feature"} & set(wish.kinds)
    if not driven and (wish.qk_fix or wish.grad_drop or wish.steps or parts):
        raise CapabilityError(
            "The QK fix, GradDrop, paths of embeddings, patterns and features need layers that the "
            "engine can drive.",
            remedy="Use plain attribution of other sites on this model.",
        )
    if wish.grad_drop and parts:
        raise UsageError(
            f"GradDrop ranks whole sites, not {' or '.join(sorted(parts))} entries.",
            remedy="Use grad_drop=False.",
        )
    if ("feature" in wish.kinds) != (wish.dictionary is not None):
        raise UsageError(
            "Features belong to a dictionary.", remedy="Give site 'feature' and a dictionary."
        )
    if wish.grad_drop and model.shape.n_layers < 2:
        raise UsageError(
            "GradDrop blocks one layer after another; this model has one.",
            remedy="Use grad_drop=False.",
        )


def empty_arrays(model: HookedModel, pairs: PromptPairs, wish: Wish) -> Attribution:
    """Arrays of the right shape, NaN throughout."""
    tail = len(pairs.right[0]) - 1 if pairs.answer_form == "span" else 0
    shapes = wish.shapes(model.shape, max(pairs.lengths) + tail)
    values = {kind: np.full((len(pairs), *dims), np.nan) for kind, dims in shapes.items()}
    nothing = np.full(len(pairs), np.nan)
    return Attribution(values, nothing, nothing.copy())


def _keep(out: Attribution, bucket: Bucket, found: dict[str, np.ndarray]) -> None:
    out.base[bucket.rows], out.source[bucket.rows] = found["base"], found["source"]
    for kind, array in out.values.items():
        if kind == "pattern" and array.ndim == 5:
            length = bucket.length
            array[bucket.rows, :, :length, :, :length] = found[kind]
        elif layered(kind):
            array[bucket.rows, :, : bucket.length] = found[kind]
        else:
            array[bucket.rows, : bucket.length] = found[kind]


# -- batches ------------------------------------------------------------------------------------


def graph_bytes(model: HookedModel, length: int, item: int) -> tuple[float, float]:
    """Bytes a prompt's graph takes: of one layer, and of all."""
    s = model.shape
    per_token = 16 * s.d_model + 6 * s.n_heads * s.d_head + 7 * s.d_mlp
    layer = item * length * (per_token + 3 * s.n_heads * length)
    return layer, layer * max(1, s.n_layers)


def _batches(
    model: HookedModel, pairs: PromptPairs, wish: Wish, limit: float
) -> Iterator[tuple[Bucket, bool]]:
    """Prompts in batches that fit, and whether the whole graph is kept."""
    blocks = blocks_of(model)
    dtype = blocks.dtype if blocks is not None else getattr(model, "dtype", torch.float32)
    item = torch.empty(0, dtype=dtype).element_size()
    for bucket in buckets_of(pairs, wish.direction, wish.at):
        layer, whole = graph_bytes(model, bucket.length, item)
        s = model.shape
        stored = item * bucket.length * s.n_layers * s.d_model * (2 + 2 * len(wish.taken))
        if "pattern" in wish.kinds:
            stored += 32 * s.n_heads * bucket.length**2 * (s.n_layers if wish.keys else 1)
        if wish.dictionary is not None:
            stored += 4 * item * bucket.length * wish.dictionary.n_features
        keep = whole + stored <= 0.5 * limit or blocks is None
        each = stored + (whole if keep else layer)
        rows = int(max(1, min(0.5 * limit // max(each, 1), TOKENS // bucket.length or 1)))
        for i in range(0, len(bucket), rows):
            part = slice(i, i + rows)
            yield Bucket(*(getattr(bucket, f.name)[part] for f in dataclasses.fields(Bucket))), keep


def _measured(
    model: HookedModel, pairs: PromptPairs, bucket: Bucket, wish: Wish, keep: bool
) -> dict[str, np.ndarray]:
    blocks = blocks_of(model)
    if blocks is None:
        return estimates_by_own_graph(model, pairs, bucket, wish.kinds, wish.metric)
    return Batch(blocks, model.shape.vocab, pairs, bucket, wish, keep).measured()
