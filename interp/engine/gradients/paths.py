"""Paths: single nodes moved by degrees from the base run's value to the source run's.

A row is (cell, prompt, α): the cell's value is ``a_base + α (a_source - a_base)``, everything
else is the base run's. ``dm/dα`` averaged over α in [0, 1] tends to the exact effect of patching
the cell (sundararajan2017axiomatic). Rows start at the cell's own layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.buckets import Bucket, buckets_of
from interp.engine.gradients.active import blocks_of
from interp.engine.gradients.nodes import check_gradient, graph_bytes
from interp.engine.gradients.passes import LayerPass, layer_of
from interp.engine.metrics import Metric, Targets, check_metric, metric_named, targets_of
from interp.engine.plans import Cell, positions_of
from interp.terms import CapabilityError, Context, HookedModel, PromptPairs

ROW_TOKENS = 8192
"""Tokens of one batch of rows at most."""


def quadrature(steps: int, rule: str) -> tuple[float, ...]:
    """Points in [0, 1]: ``midpoint`` (k - ½)/m, ``right`` k/m, ``left`` (k - 1)/m, k = 1…m."""
    shift = {"midpoint": 0.5, "right": 0.0, "left": 1.0}[rule]
    return tuple((k - shift) / steps for k in range(1, steps + 1))


def integrate(
    model: HookedModel,
    pairs: PromptPairs,
    cells: Sequence[Cell],
    context: Context,
    *,
    metric: str = "logit_diff",
    direction: str = "denoising",
    at: int | str = "last",
    points: Sequence[float] = (0.5,),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integrated gradients of each cell along its own path.

    Args:
        model: driven layer by layer.
        pairs: prompts of equal length on both sides.
        cells: one edit each, by the source run's value.
        context: progress, cancel, memory, kept chunks.
        metric: a key of ``METRICS`` with a gradient.
        direction: ``"denoising"`` or ``"noising"``.
        at: where the metric is read.
        points: values of α that gradients are averaged over.

    Returns:
        estimates ``[cell, prompt]`` (NaN without a counterpart), base and source metric.

    Raises:
        CapabilityError: a model whose layers cannot be driven.
    """
    chosen = metric_named(metric)
    check_gradient(chosen, pairs, direction)
    check_metric(chosen, pairs)
    blocks = blocks_of(model)
    if blocks is None:
        raise CapabilityError(
            "A node's own path needs layers that the engine can drive.",
            remedy="Use plain attribution on this model.",
        )
    out = np.full((len(cells), len(pairs)), np.nan)
    base, source = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
    buckets = buckets_of(pairs, direction, at)
    for number, bucket in enumerate(buckets):
        walk = Walk(blocks, model.shape.vocab, pairs, bucket, chosen, cells)
        base[bucket.rows], source[bucket.rows] = walk.base, walk.source
        for start, group in walk.groups(model, context.memory, len(points)):
            key = f"path-{number}-{start}"
            found = context.load_chunk(key)
            if found is None:
                found = {"slope": walk.slopes(group, points)}
                context.save_chunk(key, found)
            out[np.ix_(np.array(group), bucket.rows)] = found["slope"]
            context.advance(number + (start + len(group)) / len(cells), len(buckets))
    return out, base, source


class Walk:
    """Rows of one bucket.

    Args:
        blocks: the model.
        vocab: size of the vocabulary.
        pairs: the task.
        bucket: its prompts that are run.
        metric: what is differentiated.
        cells: what is moved, one edit each.
    """

    def __init__(
        self,
        blocks: Any,
        vocab: int,
        pairs: PromptPairs,
        bucket: Bucket,
        metric: Metric,
        cells: Sequence[Cell],
    ) -> None:
        self.blocks, self.pairs, self.bucket, self.metric = blocks, pairs, bucket, metric
        self.cells = list(cells)
        kinds = {c.edits[0].site.kind for c in cells}
        lent = LayerPass(blocks, bucket.source, kinds).forward()
        own = LayerPass(blocks, bucket.base, {*kinds, "resid_pre"}).forward()
        targets = targets_of(pairs, bucket.rows.tolist(), metric, vocab, blocks.device)
        if metric.clean:
            logits = lent.logits(bucket.at_source, None)
            targets = dataclasses.replace(targets, clean=torch.log_softmax(logits, -1))
        self.targets: Targets = targets
        self.base = own.score(metric, targets, bucket.at).double().cpu().numpy()
        self.source = lent.score(metric, targets, bucket.at_source).double().cpu().numpy()
        self.resid = [own.values(n)["resid_pre"] for n in range(len(blocks.layers))]
        self.step = {
            (kind, n): self._step(lent.values(n)[kind], own.values(n)[kind])
            for kind in kinds
            for n in ([-1] if kind == "embed" else range(len(blocks.layers)))
        }

    def _step(self, lent: Tensor, own: Tensor) -> Tensor:
        match = torch.from_numpy(self.bucket.match).to(own.device)
        rows = torch.arange(len(own), device=own.device)[:, None]
        return lent[rows, match.clamp_min(0)] - own

    def _layer(self, cell: int) -> int:
        layer = self.cells[cell].edits[0].site.layer
        return 0 if layer is None else layer

    def groups(
        self, model: HookedModel, limit: float, points: int
    ) -> Iterator[tuple[int, list[int]]]:
        """Cells of one layer and kind that fit in one batch, and the number of the first."""
        item = torch.empty(0, dtype=self.blocks.dtype).element_size()
        one, _ = graph_bytes(model, self.bucket.length, item)
        done = 0
        while done < len(self.cells):
            site = self.cells[done].edits[0].site
            depth = len(self.blocks.layers) - self._layer(done)
            rows = min(0.5 * limit / (one * depth), ROW_TOKENS / self.bucket.length)
            most = max(1, int(rows // (points * len(self.bucket))))
            group = [done]
            while len(group) < most and done + len(group) < len(self.cells):
                other = self.cells[done + len(group)].edits[0].site
                if (other.kind, other.layer) != (site.kind, site.layer):
                    break
                group.append(done + len(group))
            yield done, group
            done += len(group)

    def _mask(self, group: Sequence[int], width: int) -> Tensor:
        """Which entries each cell moves: ``[cell, prompt, position, width]``, NaN if undefined."""
        mask = np.zeros((len(group), len(self.bucket), self.bucket.length, width))
        for c, cell in enumerate(group):
            site = self.cells[cell].edits[0].site
            part = site.head if site.head is not None else site.neuron
            for i in range(len(self.bucket)):
                places = positions_of(site, self.bucket, i, self.pairs)
                lost = self.bucket.match[i, places] < 0
                if lost.any() and site.position is not None:
                    mask[c, i] = np.nan
                else:
                    places = places[~lost]
                    mask[c, i, places, slice(None) if part is None else part] = 1
        return torch.from_numpy(mask)

    def slopes(self, group: Sequence[int], points: Sequence[float]) -> np.ndarray:
        """Mean of dm/dα over the points, ``[cell, prompt]``."""
        count, prompts = len(group), len(self.bucket)
        alpha = torch.tensor(points, dtype=self.blocks.dtype, device=self.blocks.device)
        alpha = alpha[:, None, None].expand(-1, count, prompts).reshape(-1)
        mask = self._mask(group, self._width(group))
        lost = mask.isnan().flatten(2).any(-1).numpy()
        with torch.enable_grad():
            alpha = alpha.clone().requires_grad_()
            scores = self.moved(group, alpha, mask.nan_to_num())
            # under a stopped pattern nothing leads from q and k to the metric
            slope = torch.autograd.grad(scores.sum() + 0 * alpha.sum(), alpha, allow_unused=True)[0]
        out = slope.view(len(points), count, prompts).double().mean(0).cpu().numpy()
        out[lost] = np.nan
        return out

    def _width(self, group: Sequence[int]) -> int:
        site = self.cells[group[0]].edits[0].site
        step = self.step[site.kind, -1 if site.layer is None else site.layer]
        return step.shape[2] if step.ndim == 4 or site.kind == "mlp_post" else 1

    def moved(self, group: Sequence[int], alpha: Tensor, mask: Tensor | None = None) -> Tensor:
        """Metric ``[row]`` with each cell at its α; rows run over point, cell, prompt."""
        site, layer = self.cells[group[0]].edits[0].site, self._layer(group[0])
        step = self.step[site.kind, -1 if site.layer is None else site.layer]
        mask = self._mask(group, self._width(group)) if mask is None else mask
        mask = mask.to(step)
        if step.ndim == 4:
            mask = mask[..., None]
        prompts, times = len(self.bucket), len(alpha) // len(self.bucket) // len(group)
        way = (mask * step).flatten(0, 1)
        shift = way.repeat(times, *[1] * (way.ndim - 1)) * alpha.view(-1, *[1] * (way.ndim - 1))
        which = torch.arange(prompts, device=step.device).repeat(len(alpha) // prompts)
        kind = "resid_pre" if site.kind == "embed" else site.kind
        x = self.resid[layer][which].flatten(0, 1)
        place = torch.arange(self.bucket.length, device=x.device)
        position = place.repeat(len(which))
        for n in range(layer, len(self.blocks.layers)):

            def take(name: str, value: Tensor, here: bool = n == layer) -> Tensor:
                return value + shift.flatten(0, 1) if here and name == kind else value

            x = layer_of(self.blocks.layers[n], x, position, place, len(which), take)
        run = LayerPass(self.blocks, np.tile(self.bucket.base, (len(which) // prompts, 1)), ())
        logits = run.logits(self.bucket.at[which.cpu().numpy()], self.targets.columns, x)
        return self.metric.score(logits, self.targets, which)
