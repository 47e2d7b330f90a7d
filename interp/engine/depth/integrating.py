"""Integrating: gradients of the answer's probability along a straight path of one layer's values.

Legend: B prompts of one length, T positions, D width, n steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.depth.corpus import Batch
from interp.engine.depth.walking import layer_step, mlp_of, walk, wide


class Path:
    """What a clean run hands on, and the rest of the model behind any layer.

    Args:
        blocks: the model.
        batch: prompts with answers.
        limit: tokens that may run at once with their graph.
    """

    def __init__(self, blocks: Any, batch: Batch, limit: int) -> None:
        self.blocks, self.batch, self.limit = blocks, batch, limit
        self.resid: list[Tensor] = []
        self.attn: list[Tensor] = []
        self.mlp: list[Tensor] = []
        with torch.no_grad():
            for step in walk(blocks, batch.tokens):
                self.resid.append(step.resid)
                self.attn.append(step.attn)
                self.mlp.append(step.mlp)
            self.last = step.following
        row, at = np.nonzero(batch.answers)
        device = self.last.device
        self.row, self.at = (torch.from_numpy(i).to(device) for i in (row, at))
        self.right = torch.from_numpy(batch.targets[row, at]).to(device)

    def value(self, target: str, layer: int) -> Tensor:
        """X ``[B, T, D]``."""
        if target == "residual":
            return self.resid[layer + 1] if layer + 1 < len(self.resid) else self.last
        return (self.attn if target == "attention" else self.mlp)[layer]

    def answer(self, target: str, layer: int, x: Tensor) -> Tensor:
        """f ``[n, B]``: summed probability of the answers when X is ``x [n, B, T, D]``."""
        n, B, T, D = x.shape
        block = self.blocks.layers[layer]
        if target == "residual":
            out = x
        elif target == "MLP":
            read = self.resid[layer] + self.attn[layer]
            out = read + x
        else:
            mid = self.resid[layer] + x
            if block.parallel:
                out = mid + self.mlp[layer]
            else:
                out = mid + mlp_of(block, mid.reshape(n * B * T, D)).view_as(mid)
        out = out.reshape(n * B, T, D)
        for later in self.blocks.layers[layer + 1 :]:
            out = layer_step(later, out)[2]
        chosen = out.view(n, B, T, D)[:, self.row, self.at]
        logits = wide(self.blocks.unembed(chosen.flatten(0, 1)))
        p = torch.softmax(logits, -1).unflatten(0, (n, -1))
        right = self.right.expand(n, *self.right.shape)
        picked = p.gather(2, right.clamp_min(0)).masked_fill(right < 0, 0.0).sum(-1)
        return picked.new_zeros(n, B).index_add(1, self.row, picked)


def integrated(
    path: Path, target: str, layer: int, steps: int, baseline: str, start: Tensor | None
) -> dict[str, np.ndarray]:
    """``ig [B, T]`` by the midpoint rule, its completeness residual and f(X) - f(b), ``[B]``."""
    x = path.value(target, layer)
    b = _baseline(x, baseline, start)
    away = x - b
    B, T, _ = x.shape
    total = torch.zeros_like(x)
    at_once = max(1, path.limit // (B * T))
    marks = (torch.arange(steps, device=x.device, dtype=x.dtype) + 0.5) / steps
    for part in marks.split(at_once):
        with torch.enable_grad():
            point = (b + part[:, None, None, None] * away).detach().requires_grad_()
            f = path.answer(target, layer, point).sum()
            total += torch.autograd.grad(f, point)[0].sum(0)
    ig = wide(away * total).sum(-1) / steps
    with torch.no_grad():
        ends = path.answer(target, layer, torch.stack([x, b.expand_as(x)]))
    moved = ends[0] - ends[1]
    return {
        "ig": ig.double().cpu().numpy(),
        "left": (ig.sum(-1) - moved).double().cpu().numpy(),
        "moved": moved.double().cpu().numpy(),
    }


def _baseline(x: Tensor, kind: str, start: Tensor | None) -> Tensor:
    if kind == "zero":
        return torch.zeros_like(x)
    if kind == "corpus":
        assert start is not None
        return start.to(x).expand_as(x)
    return x.mean(1, keepdim=True).expand_as(x)
