"""Nodes: first-order estimates of patching every node of chosen kinds at once.

``est(n) = Σ_channel (a_source - a_base) · ρ_base``, ρ the gradient of the metric at the node in
the base run, ordinary or under the rules that are in force (kramar2024atp, jafari2025relp). Two
forward passes and one backward serve all nodes of all kinds; gradients are held for one layer at a
time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.buckets import Bucket, buckets_of
from interp.engine.gradients.active import blocks_of
from interp.engine.gradients.own import estimates_by_own_graph
from interp.engine.gradients.passes import LayerPass
from interp.engine.gradients.softmax import fixed
from interp.engine.metrics import Metric, check_metric, metric_named, targets_of
from interp.terms import (
    KINDS,
    CapabilityError,
    Context,
    HookedModel,
    PromptPairs,
    UsageError,
)

TOKENS = 4096
"""Tokens of one batch at most, so that progress moves."""

PASSED = ("resid_pre", "resid_mid")
"""Kinds of a layer that a gradient still reaches when its sublayers are blocked."""


@dataclass(eq=False)
class Attribution:
    """Estimates of all nodes.

    Args:
        values: kind -> ``[prompt, layer, position]``, with ``head``, ``kv_head`` or ``neuron``
            last where the kind has it; without ``layer`` for ``embed``. NaN behind a prompt's end
            and where a position has no counterpart in the source run.
        base: metric of the base run ``[prompt]``; source: of the source run.
        passes: forward and backward passes of the whole model, per prompt.
        streamed: batches whose layers were computed anew on the way back.
    """

    values: dict[str, np.ndarray]
    base: np.ndarray
    source: np.ndarray
    passes: dict[str, int] = field(default_factory=dict)
    streamed: int = 0


@dataclass(frozen=True)
class Wish:
    """What is asked of a pass.

    Args:
        kinds: sites.
        metric: what is differentiated.
        direction: ``"denoising"`` or ``"noising"``.
        at: where the metric is read.
        qk_fix: queries and keys by the softmax's own change.
        grad_drop: mean over layers λ of the size of each estimate with its sublayers blocked.
        steps: points on the path of embeddings that gradients are averaged over, in (0, 1);
            empty for the base run alone.
    """

    kinds: tuple[str, ...]
    metric: Metric
    direction: str
    at: int | str = "last"
    qk_fix: bool = False
    grad_drop: bool = False
    steps: tuple[float, ...] = ()

    @property
    def taken(self) -> set[str]:
        """Kinds that the base run must take."""
        more = {"q", "k", "v", "z"} if self.qk_fix and set(self.kinds) & {"q", "k"} else set()
        return set(self.kinds) | more


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

    Raises:
        UsageError: prompts of unequal length; a metric without a gradient there.
        CapabilityError: a kind the model lacks.
    """
    chosen = metric_named(metric)
    check_gradient(chosen, pairs, direction)
    check_metric(chosen, pairs)
    wish = Wish(tuple(kinds), chosen, direction, at, qk_fix, grad_drop, tuple(steps))
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
    if "resid_mid" in wish.kinds and model.shape.parallel:
        raise CapabilityError(
            "This model has no resid_mid: attention and MLP read the same residual.",
            remedy="Use resid_pre, attn_out or mlp_out.",
        )
    driven = blocks_of(model) is not None
    if not driven and (wish.qk_fix or wish.grad_drop or wish.steps):
        raise CapabilityError(
            "The QK fix, GradDrop and paths of embeddings need layers that the engine can drive.",
            remedy="Use plain attribution on this model.",
        )
    if wish.grad_drop and model.shape.n_layers < 2:
        raise UsageError(
            "GradDrop blocks one layer after another; this model has one.",
            remedy="Use grad_drop=False.",
        )


def empty_arrays(model: HookedModel, pairs: PromptPairs, wish: Wish) -> Attribution:
    """Arrays of the right shape, NaN throughout."""
    shape = model.shape
    width = {"head": shape.n_heads, "kv_head": shape.n_kv_heads, "neuron": shape.d_mlp}
    tail = len(pairs.right[0]) - 1 if pairs.answer_form == "span" else 0
    values = {}
    for kind in wish.kinds:
        spec = KINDS[kind]
        dims = [len(pairs)] + [shape.n_layers] * spec.per_layer + [max(pairs.lengths) + tail]
        dims += [width[d] for d in spec.dims[:1] if d in width]
        values[kind] = np.full(dims, np.nan)
    nothing = np.full(len(pairs), np.nan)
    return Attribution(values, nothing, nothing.copy())


def _keep(out: Attribution, bucket: Bucket, found: dict[str, np.ndarray]) -> None:
    out.base[bucket.rows], out.source[bucket.rows] = found["base"], found["source"]
    for kind, array in out.values.items():
        if KINDS[kind].per_layer:
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
    return _Batch(blocks, model.shape.vocab, pairs, bucket, wish, keep).measured()


# -- one batch, layer by layer --------------------------------------------------------------------


class _Batch:
    """Source run, base run, backward; estimates as the layers come by."""

    def __init__(
        self, blocks: Any, vocab: int, pairs: PromptPairs, bucket: Bucket, wish: Wish, keep: bool
    ) -> None:
        self.blocks, self.bucket, self.wish, self.keep = blocks, bucket, wish, keep
        self.targets = targets_of(pairs, bucket.rows.tolist(), wish.metric, vocab, blocks.device)
        self.found: dict[tuple[str, int], Tensor] = {}
        self.aligned = bool((bucket.match == np.arange(bucket.length)).all())
        self.match = torch.from_numpy(bucket.match).to(blocks.device)
        # under a causal mask nothing differs before the first difference, but for rounding
        self.same = torch.from_numpy(np.arange(bucket.length) < bucket.first[:, None]).to(
            blocks.device
        )

    def measured(self) -> dict[str, np.ndarray]:
        """Estimates of every kind, and the metric of both runs."""
        bucket, wish = self.bucket, self.wish
        kinds = set(wish.kinds) | ({"embed"} if wish.steps else set())
        self.source = LayerPass(self.blocks, bucket.source, kinds).forward()
        if wish.metric.clean:
            logits = self.source.logits(bucket.at_source, None)
            self.targets = dataclasses.replace(
                self.targets, clean=torch.log_softmax(logits.detach(), -1)
            )
        source = self.source.score(wish.metric, self.targets, bucket.at_source)
        base = self._run(None) if not wish.steps else self._along()
        out = {"base": base, "source": source}
        arrays = {k: v.double().cpu().numpy() for k, v in out.items()}
        for kind in wish.kinds:
            layers = sorted(n for k, n in self.found if k == kind)
            parts = [self.found[kind, n] for n in layers]
            value = parts[0] if layers == [-1] else torch.stack(parts, 1)
            arrays[kind] = value.double().cpu().numpy()
        return arrays

    def _along(self) -> Tensor:
        """Gradients averaged over runs whose embeddings stand between base and source."""
        plain = LayerPass(self.blocks, self.bucket.base, {"embed", *self.wish.kinds}).forward()
        step = self._move(self.source.values(-1)["embed"], plain.values(-1)["embed"])
        with torch.no_grad():
            start = self.blocks.embed(plain.tokens_N, plain.position_N)
        self.fixed_base = plain
        for alpha in self.wish.steps:
            self._run(start + alpha * step.flatten(0, 1))
        return plain.score(self.wish.metric, self.targets, self.bucket.at)

    def _run(self, embed_ND: Tensor | None) -> Tensor:
        wish = self.wish
        base = LayerPass(
            self.blocks, self.bucket.base, wish.taken, grad=True, keep_graph=self.keep
        ).forward(embed_ND)
        scores, g_ND, _ = base.pull(wish.metric, self.targets, self.bucket.at)
        if not wish.grad_drop:
            base.backward(g_ND, self._visit)
            return scores
        self.plain: dict[tuple[str, int], Tensor] = {}
        self.into = self.plain
        passed = base.backward(g_ND, self._visit, again=True)
        self._drop(base, passed)
        return scores

    into: dict[tuple[str, int], Tensor] | None = None

    def _visit(self, layer: int, taken: dict[str, tuple[Tensor, Tensor]]) -> None:
        lent = self.source.values(layer)
        into = self.found if self.into is None else self.into
        share = 1 / (len(self.wish.steps) or 1)
        better = self._fixed(layer, taken, lent)
        for kind in self.wish.kinds:
            if kind not in taken:
                continue
            value, gradient = taken[kind]
            if self.wish.steps:
                value = self.fixed_base.values(layer)[kind]
            est = better.get(kind)
            if est is None:
                est = self._move(lent[kind], value) * gradient
                est = est if kind == "mlp_post" else est.sum(-1)
            est = self._still(est)
            key = (kind, layer)
            into[key] = into[key] + share * est if key in into else share * est

    def _still(self, est: Tensor) -> Tensor:
        """Zero where the two runs cannot differ."""
        return est.masked_fill(self.same.view(*self.same.shape, *[1] * (est.ndim - 2)), 0.0)

    def _fixed(
        self, layer: int, taken: dict[str, tuple[Tensor, Tensor]], lent: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if not self.wish.qk_fix or layer < 0 or not {"q", "k"} & set(self.wish.kinds):
            return {}
        base = {k: taken[k][0] for k in ("q", "k", "v")}
        moved = {k: self._at_base(lent[k]) for k in ("q", "k") if k in self.wish.kinds}
        position = torch.arange(self.bucket.length, device=self.blocks.device)
        found = fixed(self.blocks.layers[layer], base, moved, taken["z"][1], position)
        if self.aligned:
            return found
        lost = (self.match < 0)[..., None]
        return {k: v.masked_fill(lost, torch.nan) for k, v in found.items()}

    def _at_base(self, lent: Tensor) -> Tensor:
        """The source run's values at the base run's positions (anything where there is none)."""
        if self.aligned:
            return lent
        rows = torch.arange(len(lent), device=lent.device)[:, None]
        return lent[rows, self.match.clamp_min(0)]

    def _move(self, lent: Tensor, value: Tensor) -> Tensor:
        """``a_source - a_base``; NaN at positions without a counterpart."""
        step = self._at_base(lent) - value
        if self.aligned:
            return step
        lost = (self.match < 0).view(*self.match.shape, *[1] * (step.ndim - 2))
        return step.masked_fill(lost, torch.nan)

    def _drop(self, base: LayerPass, passed: list[Tensor]) -> None:
        """GradDrop: the mean over blocked layers of the size of each estimate."""
        count = len(passed)
        total: dict[tuple[str, int], Tensor] = {}
        for blocked in range(count):
            self.into = {}
            rows = passed[blocked].unflatten(0, (base.rows, base.length))
            lent, own = self.source.values(blocked), base.values(blocked) if self.keep else {}
            for kind in set(PASSED) & set(self.wish.kinds):
                value = own[kind] if kind in own else self._again(base, blocked)[kind]
                est = (self._move(lent[kind], value) * rows).sum(-1)
                self.into[kind, blocked] = self._still(est)
            if blocked:
                base.backward(passed[blocked], self._visit, start=blocked - 1, again=True)
            elif "embed" in self.wish.kinds:
                assert base.embedding is not None
                value = base.embedding.unflatten(0, (base.rows, base.length))
                moved = self._move(self.source.values(-1)["embed"], value)
                self.into["embed", -1] = self._still((moved * rows).sum(-1))
            for key, plain in self.plain.items():
                reached = key[1] > blocked or key == ("resid_post", blocked)
                est = plain if reached else self.into.get(key)
                if est is not None:
                    total[key] = total.get(key, torch.zeros_like(est)) + est.abs()
        self.found = {k: v / (count - 1) for k, v in total.items()}
        for key, plain in self.plain.items():
            self.found.setdefault(key, torch.zeros_like(plain))

    @staticmethod
    def _again(base: LayerPass, layer: int) -> dict[str, Tensor]:
        _, values, _ = base._recalled(layer)
        return {k: base._rows(v.detach()) for k, v in values.items()}
