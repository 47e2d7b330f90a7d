"""Running: the sums of LayerStatistics, layer by layer, nothing stored but the last tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.depth import Step, wide
from interp.methods.depth.effective import Curves

VANISHING = 1e-6
"""A vector shorter than this share of the residual has no direction that means anything."""


def cosine(a: Tensor, b: Tensor, scale: Tensor | None = None) -> Tensor:
    """Cosine over the last axis; NaN where a vector is 0 or vanishes beside ``scale``."""
    sizes = a.norm(dim=-1), b.norm(dim=-1)
    found = (a * b).sum(-1) / (sizes[0] * sizes[1])
    if scale is None:
        return found
    floor = VANISHING * scale.norm(dim=-1)
    gone = (sizes[0] <= floor) | (sizes[1] <= floor)
    return found.masked_fill(gone, torch.nan)


def support_of(pattern: Tensor) -> Tensor:
    """exp(entropy) of each row ``[R, head, query]`` of ``[R, head, query, key]``."""
    p = wide(pattern)
    return (-(p * p.clamp_min(1e-38).log()).sum(-1)).exp()


def rank_of(pattern: Tensor, kind: str) -> Tensor:
    """Rank of the lower triangle without its diagonal, ``[R, head]``.

    With the diagonal a causal softmax has full rank, and only the tolerance would be measured.
    """
    below = wide(pattern).tril(-1)
    if kind == "numerical":
        return torch.linalg.matrix_rank(below.float()).to(below.dtype)
    top = torch.linalg.matrix_norm(below, ord=2)
    return torch.where(top > 0, below.square().sum((-1, -2)) / top.square(), torch.zeros_like(top))


class Running:
    """Sums over tokens, kept for each prompt so that prompts can be drawn again.

    Args:
        layers: how many; heads: how many a layer; prompts: how many.
        heads: see ``layers``.
        prompts: see ``layers``.
        max_gap: farthest boundaries whose angle is taken.
        rank: ``stable`` or ``numerical``.
    """

    def __init__(self, layers: int, heads: int, prompts: int, max_gap: int, rank: str) -> None:
        self.layers, self.gap, self.rank = layers, min(max_gap, layers), rank
        self.sums: dict[str, np.ndarray] = {
            **{k: np.full((3, layers, prompts), np.nan) for k in
               ("norm", "relative", "cosine", "similarity")},
            **{k: np.full((layers + 1, prompts), np.nan) for k in ("resid_norm", "variance")},
            "curvature": np.full((layers, prompts), np.nan),
            "support": np.full((layers, heads, prompts), np.nan),
            "attention_rank": np.full((layers, heads, prompts), np.nan),
        }  # fmt: skip
        self.count = np.zeros(prompts)
        self.angular = np.full((layers + 1, self.gap, prompts), np.nan)
        self._last: list[Tensor] = []
        self._before: Tensor | None = None

    def add(self, step: Step, rows: np.ndarray, counted: Tensor) -> None:
        """One layer of one batch; ``counted`` marks tokens ``[R, T]``."""
        h, u = wide(step.resid), wide(step.read)
        a, m, after = wide(step.attn), wide(step.mlp), wide(step.following)
        c = a + m
        layer, weight = step.layer, counted.to(h.dtype)
        n = weight.sum(-1).clamp_min(1)

        def mean(values: Tensor) -> np.ndarray:
            """Per prompt, over its counted tokens; NaN tokens are left out."""
            known = torch.isfinite(values) & counted
            total = torch.where(known, values, torch.zeros_like(values)).sum(-1)
            count = known.sum(-1)
            safe = torch.where(
                count > 0, total / count.clamp_min(1), torch.full_like(total, torch.nan)
            )
            return safe.double().cpu().numpy()

        for p, (own, into) in enumerate(((a, h), (m, u), (c, h))):
            size = own.norm(dim=-1)
            self.sums["norm"][p, layer, rows] = mean(size)
            self.sums["relative"][p, layer, rows] = mean(size / into.norm(dim=-1))
            self.sums["cosine"][p, layer, rows] = mean(cosine(own, into, into))
            joined = after if p == 2 else into + own
            self.sums["similarity"][p, layer, rows] = mean(cosine(into, joined))
        self._boundary(layer, h, rows, mean)
        if self._before is not None:
            self.sums["curvature"][layer - 1, rows] = mean(cosine(self._before, c, h))
        self._before = c
        pattern = step.pattern()
        found = support_of(pattern) * weight[:, None]
        self.sums["support"][layer, :, rows] = (found.sum(-1) / n[:, None]).double().cpu().numpy()
        self.sums["attention_rank"][layer, :, rows] = (
            rank_of(pattern, self.rank).double().cpu().numpy()
        )
        if layer == self.layers - 1:
            self._boundary(layer + 1, after, rows, mean)
            self._angles(rows)
            self.count[rows] = n.cpu().numpy()
            self._before = None

    def _boundary(self, boundary: int, h: Tensor, rows: np.ndarray, mean: Any) -> None:
        self.sums["resid_norm"][boundary, rows] = mean(h.norm(dim=-1))
        self.sums["variance"][boundary, rows] = mean(h.var(-1, correction=0))
        self._last.append(h[:, -1].clone())

    def _angles(self, rows: np.ndarray) -> None:
        """arccos(cos(H_l, H_{l+n}))/π at the last token."""
        last = torch.stack(self._last)
        self._last = []
        unit = last / last.norm(dim=-1, keepdim=True)
        for gap in range(1, self.gap + 1):
            turned = (unit[:-gap] * unit[gap:]).sum(-1).clamp(-1, 1)
            same = (last[:-gap] == last[gap:]).all(-1)
            angle = torch.where(same, torch.zeros_like(turned), torch.arccos(turned)) / torch.pi
            self.angular[: len(angle), gap - 1, rows] = angle.double().cpu().numpy()

    def means(self, weighting: str) -> dict[str, np.ndarray]:
        """Every quantity averaged over prompts, each weighing its tokens or one."""
        weights = self.count if weighting == "token" else np.ones_like(self.count)
        out = {k: _weighted(v, weights) for k, v in self.sums.items()}
        return {**out, "angular": _weighted(self.angular, np.ones_like(self.count))}

    def each(self) -> Curves:
        """The mean of the three cosines by prompt, ``[layer, prompt]``."""
        known = np.isfinite(self.sums["cosine"])
        total = np.where(known, self.sums["cosine"], 0.0).sum(0)
        with np.errstate(invalid="ignore"):
            return Curves((total / known.sum(0))[None], self.count)


def _weighted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    below = (known * weights).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values * weights, 0.0).sum(-1) / below
