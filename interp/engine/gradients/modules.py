"""Modules: integrated gradients along paths on which one module's whole output moves.

``EAP-IG-activations`` (hanna2024have): the output of each module in turn (the embedding, the heads
of a layer together, an MLP) goes from the base run's value to the source run's, everything behind
it follows, and the metric's gradient at that module is averaged over the points; m · (2L + 1)
passes. A module's nodes share its path, so their sum tends to the exact effect of patching the
module. The published code averages every node's gradient over all modules' paths (``repo``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.buckets import Bucket, buckets_of
from interp.engine.gradients.active import blocks_of
from interp.engine.gradients.nodes import check_gradient, empty_arrays, graph_bytes
from interp.engine.gradients.passes import LayerPass, layer_of
from interp.engine.gradients.paths import ROW_TOKENS
from interp.engine.gradients.wishes import Attribution, Wish
from interp.engine.metrics import Metric, Targets, check_metric, metric_named, targets_of
from interp.terms import CapabilityError, Context, HookedModel, PromptPairs, UsageError

MODULE = {"embed": "embed", "z": "z", "attn_out": "z", "mlp_out": "mlp_out"}
"""Kind of node -> the site of its module that moves."""


def integrate_modules(
    model: HookedModel,
    pairs: PromptPairs,
    kind: str,
    context: Context,
    *,
    metric: str = "logit_diff",
    direction: str = "denoising",
    at: int | str = "last",
    points: Sequence[float] = (0.5,),
    repo: bool = False,
) -> Attribution:
    """Estimates of every node of a kind along the modules' paths.

    Args:
        model: driven layer by layer.
        pairs: prompts of equal length on both sides.
        kind: embed, z, attn_out or mlp_out.
        context: progress, cancel, kept chunks, memory.
        metric: a key of ``METRICS`` with a gradient.
        direction: ``"denoising"`` or ``"noising"``.
        at: where the metric is read.
        points: values of α that gradients are averaged over.
        repo: average each node's gradient over all modules' paths, as the published code does.

    Raises:
        UsageError: a kind that is no module's output; positions that do not match.
        CapabilityError: a model whose layers cannot be driven.
    """
    chosen = metric_named(metric)
    check_gradient(chosen, pairs, direction)
    check_metric(chosen, pairs)
    blocks = blocks_of(model)
    if kind not in MODULE:
        raise UsageError(
            f"Paths of modules lead to what modules write, and {kind!r} is not written by one.",
            remedy="Use site embed, z, attn_out or mlp_out, or ig_path='inputs'.",
        )
    if blocks is None:
        raise CapabilityError(
            "Paths of modules need layers that the engine can drive.",
            remedy="Use plain attribution on this model.",
        )
    out = empty_arrays(model, pairs, Wish((kind,), chosen, direction, at))
    buckets = buckets_of(pairs, direction, at)
    for number, bucket in enumerate(buckets):
        if not (bucket.match == np.arange(bucket.length)).all():
            raise UsageError(
                "Paths of modules need prompts whose positions match one by one.",
                remedy="Use prompts without a span map.",
            )
        walk = _Walk(blocks, model, pairs, bucket, chosen, kind)
        out.base[bucket.rows], out.source[bucket.rows] = walk.base, walk.source
        todo = walk.modules(repo)
        for done, module in enumerate(todo):
            key = f"module-{number}-{done}"
            found = context.load_chunk(key)
            if found is None:
                found = walk.pulled(module, points, repo, context.memory)
                context.save_chunk(key, found)
            walk.add(found, 1 / len(todo) if repo else 1.0)
            context.advance(number + (done + 1) / len(todo), len(buckets))
        walk.write(out.values[kind])
    passes = len(points) * (2 * len(blocks.layers) + 1)
    out.passes = {"forwards": 2 + passes, "backwards": passes}
    return out


Module = tuple[str, int]


class _Walk:
    """One bucket: the base run's embedding, the steps of all nodes, and what was gathered."""

    def __init__(
        self,
        blocks: Any,
        model: HookedModel,
        pairs: PromptPairs,
        bucket: Bucket,
        metric: Metric,
        kind: str,
    ) -> None:
        self.blocks, self.bucket, self.metric, self.kind = blocks, bucket, metric, kind
        self.model = model
        kinds = {kind, "embed", "z", "mlp_out"}
        lent = LayerPass(blocks, bucket.source, kinds).forward()
        own = LayerPass(blocks, bucket.base, {*kinds, "resid_pre"}).forward()
        targets = targets_of(pairs, bucket.rows.tolist(), metric, model.shape.vocab, blocks.device)
        if metric.clean:
            logits = lent.logits(bucket.at_source, None)
            targets = dataclasses.replace(targets, clean=torch.log_softmax(logits, -1))
        self.targets: Targets = targets
        self.base = own.score(metric, targets, bucket.at).double().cpu().numpy()
        self.source = lent.score(metric, targets, bucket.at_source).double().cpu().numpy()
        self.resid = [own.values(n)["resid_pre"] for n in range(len(blocks.layers))]
        places: list[Module] = [(k, n) for n in range(len(blocks.layers)) for k in kinds]
        self.steps: dict[Module, Tensor] = {("embed", -1): lent.values(-1)["embed"]}
        self.steps["embed", -1] = self.steps["embed", -1] - own.values(-1)["embed"]
        self.values: dict[Module, Tensor] = {}
        for k, n in places:
            if k != "embed":
                self.values[k, n] = own.values(n)[k]
                self.steps[k, n] = lent.values(n)[k] - self.values[k, n]
        self.sums: dict[Module, np.ndarray] = {}

    def modules(self, repo: bool) -> list[Module]:
        """Whose outputs move: all 2L + 1, or those that hold nodes of this kind."""
        layers = range(len(self.blocks.layers))
        every: list[Module] = [("embed", -1)]
        every += [(k, n) for n in layers for k in ("z", "mlp_out")]
        return every if repo else [m for m in every if m[0] == MODULE[self.kind]]

    def nodes(self) -> list[Module]:
        """Where nodes of this kind stand."""
        if self.kind == "embed":
            return [("embed", -1)]
        return [(self.kind, n) for n in range(len(self.blocks.layers))]

    def pulled(
        self, module: Module, points: Sequence[float], repo: bool, memory: float
    ) -> dict[str, np.ndarray]:
        """Estimates ``[prompt, position, …]`` of the module's nodes (or all), named by layer."""
        item = torch.empty(0, dtype=self.blocks.dtype).element_size()
        _, whole = graph_bytes(self.model, self.bucket.length, item)
        rows = min(0.5 * memory / max(whole, 1), ROW_TOKENS / self.bucket.length)
        most = max(1, int(rows // len(self.bucket)))
        wanted = self.nodes() if repo else [(self.kind, module[1])]
        sums: dict[str, np.ndarray] = {}
        for i in range(0, len(points), most):
            for name, est in self._some(module, points[i : i + most], wanted).items():
                sums[name] = sums.get(name, 0) + est / len(points)
        return sums

    def _some(
        self, module: Module, points: Sequence[float], wanted: list[Module]
    ) -> dict[str, np.ndarray]:
        times, prompts = len(points), len(self.bucket)
        alpha = torch.tensor(points, dtype=self.blocks.dtype, device=self.blocks.device)
        seen: dict[Module, Tensor] = {}
        with torch.enable_grad():
            scores = self._scores(module, alpha.repeat_interleave(prompts), wanted, seen)
            grads = torch.autograd.grad(scores.sum(), list(seen.values()), allow_unused=True)
        found = {}
        for (place, leaf), grad in zip(seen.items(), grads, strict=True):
            grad = torch.zeros_like(leaf) if grad is None else grad
            mean = grad.unflatten(0, (times, prompts, -1)).double().sum(0)
            found[str(place[1])] = (mean * self.steps[place]).sum(-1).cpu().numpy()
        return found

    def _scores(
        self, module: Module, alpha: Tensor, wanted: list[Module], seen: dict[Module, Tensor]
    ) -> Tensor:
        """Metric of every (α, prompt), with the module's output a constant on its path."""
        prompts = len(self.bucket)
        which = torch.arange(prompts, device=alpha.device).repeat(len(alpha) // prompts)

        def moved(place: Module, value: Tensor) -> Tensor:
            step = self.steps[place][which]
            return value + alpha.view(-1, *[1] * (step.ndim - 1)) * step

        # other modules' paths change nothing before their layer, and gradients there serve repo
        first = module[1] if set(wanted) <= {(self.kind, module[1])} else 0
        first = max(first, 0)
        x = self.resid[first][which]
        x = moved(("embed", -1), x) if module[0] == "embed" else x
        x = x.flatten(0, 1).requires_grad_()
        if ("embed", -1) in wanted:
            seen["embed", -1] = x
        place = torch.arange(self.bucket.length, device=x.device)
        position = place.repeat(len(which))
        for n in range(first, len(self.blocks.layers)):
            block = self.blocks.layers[n]

            def take(kind: str, value: Tensor, n: int = n) -> Tensor:
                if (kind, n) == module:
                    held = moved(module, self.values[module][which]).flatten(0, 1)
                    value = held.detach().requires_grad_()
                if (kind, n) in wanted:
                    seen[kind, n] = value
                return value

            x = layer_of(block, x, position, place, len(which), take)
        run = LayerPass(self.blocks, np.tile(self.bucket.base, (len(which) // prompts, 1)), ())
        logits = run.logits(self.bucket.at[which.cpu().numpy()], self.targets.columns, x)
        return self.metric.score(logits, self.targets, which)

    def add(self, found: dict[str, np.ndarray], share: float) -> None:
        """Keep a module's estimates."""
        for name, est in found.items():
            key = (self.kind, int(name))
            self.sums[key] = self.sums.get(key, 0) + share * est

    def write(self, into: np.ndarray) -> None:
        """Put the sums into the array of all prompts."""
        length = self.bucket.length
        for (_, layer), est in self.sums.items():
            if layer < 0:
                into[self.bucket.rows, :length] = est
            else:
                into[self.bucket.rows, layer, :length] = est
