"""Batch: estimates of one batch of prompts, gathered as the layers come by on the way back."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.buckets import Bucket
from interp.engine.gradients.passes import ENDING, WHOLE, LayerPass, Reach
from interp.engine.gradients.softmax import fixed, pattern_estimates
from interp.engine.gradients.wishes import PARTS, Wish, layered
from interp.engine.metrics import targets_of
from interp.terms import PromptPairs, UsageError

PASSED = ("resid_pre", "resid_mid")
"""Kinds of a layer that a gradient still reaches when its sublayers are blocked."""


def has_lent(blocks: Any) -> bool:
    """Whether a reference run lends scales, factors or patterns to whole prompts."""
    owners = (blocks, *blocks.layers)
    return any(getattr(v, "lent", None) is not None for o in owners for v in vars(o).values())


class Batch:
    """Source run, base run, backward; estimates as the layers come by.

    Args:
        blocks: the model.
        vocab: size of the vocabulary.
        pairs: the task.
        bucket: its prompts that are run.
        wish: what is asked.
        keep: keep the whole graph; else each layer is computed anew on the way back.
    """

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
        self.reach = self._reach()
        if "pattern" in wish.kinds and not self.aligned:
            raise UsageError(
                "Entries of a pattern need prompts whose positions match one by one.",
                remedy="Use prompts without a span map, or site 'z'.",
            )

    def _reach(self) -> Reach:
        """Where both runs are alike the base run takes the source run's keys and values."""
        bucket, wish = self.bucket, self.wish
        whole = wish.qk_fix or wish.grad_drop or "pattern" in wish.kinds
        if whole or not self.aligned or has_lent(self.blocks):
            return WHOLE
        return Reach(int(min(bucket.first.min(), bucket.at.min())), ends=bucket.at)

    def measured(self) -> dict[str, np.ndarray]:
        """Estimates of every kind, and the metric of both runs."""
        bucket, wish = self.bucket, self.wish
        kinds = wish.lent | ({"embed"} if wish.steps else set())
        reach = Reach(ends=self.reach.ends, lend=self.reach.first)
        self.source = LayerPass(self.blocks, bucket.source, kinds, reach=reach).forward()
        self.reach = dataclasses.replace(self.reach, lent=self.source.kept or None)
        if wish.metric.clean:
            logits = self.source.logits(bucket.at_source, None)
            self.targets = dataclasses.replace(
                self.targets, clean=torch.log_softmax(logits.detach(), -1)
            )
        source = self.source.score(wish.metric, self.targets, bucket.at_source)
        base = self._run(None) if not wish.steps else self._along()
        out = {"base": base, "source": source}
        arrays = {k: v.double().cpu().numpy() for k, v in out.items()}
        for kind in [*wish.kinds, *(PARTS[1:] if "feature" in wish.kinds else ())]:
            layers = sorted(n for k, n in self.found if k == kind)
            parts = [self.found[kind, n] for n in layers]
            value = torch.stack(parts, 1) if layered(kind) else parts[0]
            arrays[kind] = value.double().cpu().numpy()
        return arrays

    def _along(self) -> Tensor:
        """Gradients averaged over runs whose embeddings stand between base and source."""
        kinds = {"embed", *self.wish.lent}
        plain = LayerPass(self.blocks, self.bucket.base, kinds, reach=self.reach).forward()
        step = self._move(self._lent(-1)["embed"], plain.values(-1)["embed"])
        with torch.no_grad():
            start = self.blocks.embed(plain.tokens_N, plain.position_N)
        self.fixed_base = plain
        for alpha in self.wish.steps:
            self._run(start + alpha * step.flatten(0, 1))
        return plain.score(self.wish.metric, self.targets, self.bucket.at)

    def _run(self, embed_ND: Tensor | None) -> Tensor:
        wish = self.wish
        base = LayerPass(
            self.blocks,
            self.bucket.base,
            wish.taken,
            grad=True,
            keep_graph=self.keep,
            reach=self.reach,
        ).forward(embed_ND)
        self.base = base
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
        lent = self._lent(layer)
        into = self.found if self.into is None else self.into
        share = 1 / (len(self.wish.steps) or 1)
        still = self.fixed_base.values(layer) if self.wish.steps else {}
        base = {k: still.get(k, value) for k, (value, _) in taken.items()}
        found = self._fixed(layer, taken, lent)
        if "pattern" in self.wish.kinds and layer >= 0:
            found["pattern"] = self._patterns(layer, taken, base, lent)
        for kind in self.wish.kinds:
            if kind in taken and kind not in found:
                est = self._move(lent[kind], base[kind]) * taken[kind][1]
                found[kind] = est if kind == "mlp_post" else est.sum(-1)
        found |= self._features(layer, taken, base, lent)
        for kind, est in found.items():
            behind = kind if layered(kind) or kind == "embed" else self._site_kind()
            est = self._still(self.base.whole(behind, layer, est))
            key = (kind, layer)
            into[key] = into[key] + share * est if key in into else share * est

    def _site_kind(self) -> str:
        assert self.wish.dictionary is not None
        return self.wish.dictionary.site.kind

    def _patterns(
        self,
        layer: int,
        taken: dict[str, tuple[Tensor, Tensor]],
        base: dict[str, Tensor],
        lent: dict[str, Tensor],
    ) -> Tensor:
        """Every entry of the layer's pattern, or its sum over keys."""
        block = self.blocks.layers[layer]
        position = torch.arange(self.bucket.length, device=self.blocks.device)
        est = pattern_estimates(block, base, lent, taken["z"][1], taken["v"][0], position)
        # the uniform rule leaves each factor of pattern times values half
        est = est * (0.5 if getattr(block.attend, "rule", "") == "uniform" else 1.0)
        return est if self.wish.keys else est.sum(-1)

    def _features(
        self,
        layer: int,
        taken: dict[str, tuple[Tensor, Tensor]],
        base: dict[str, Tensor],
        lent: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """A dictionary's features, its error and its site: the first two add up to the third."""
        book = self.wish.dictionary
        if book is None or layer != book.site.layer:
            return {}
        kind = book.site.kind
        value, source, gradient = base[kind], self._at_base(lent[kind]), taken[kind][1]
        moved = book.encode(source) - book.encode(value)
        features = moved * (gradient @ book.W_dec.to(gradient).T)
        error = ((source - value - moved @ book.W_dec.to(moved)) * gradient).sum(-1)
        whole = ((source - value) * gradient).sum(-1)
        lost = None if self.aligned else self.match < 0
        found: dict[str, Tensor] = dict(zip(PARTS, (features, error, whole), strict=True))
        if lost is None:
            return found
        return {
            k: v.masked_fill(lost.view(*lost.shape, *[1] * (v.ndim - 2)), torch.nan)
            for k, v in found.items()
        }

    def _lent(self, layer: int) -> dict[str, Tensor]:
        """The source run's values where the base run has some of its own."""
        found, first = self.source.values(layer), self.reach.first
        ended = self.reach.ends is not None and layer == len(self.blocks.layers) - 1
        return {k: v if ended and k in ENDING else v[:, first:] for k, v in found.items()}

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
