"""Outliers: the share of a layer's weights that stand out (ZD), norms left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from interp.terms import HookedModel

LINEAR = ("w_q", "w_k", "w_v", "w_o", "w_in", "w_gate", "w_out")
ATTENTION = ("w_q", "w_k", "w_v", "w_o")


def weights_of(block: Any, names: tuple[str, ...] = LINEAR) -> list[torch.Tensor]:
    """The linear weights of a layer, each once (fused projections stand for several)."""
    found: dict[int, torch.Tensor] = {}
    for name in names:
        owner = getattr(block, name, None)
        if owner is not None:
            found.setdefault(id(owner.weight), owner.weight)
    return list(found.values())


def share_above(weights: list[torch.Tensor]) -> float:
    """Share of pooled weights with z > 1; NaN where all are equal."""
    with torch.no_grad():
        count = sum(w.numel() for w in weights)
        mean = sum(float(w.double().sum()) for w in weights) / count
        square = sum(float((w.double() - mean).square().sum()) for w in weights) / count
        if square <= 0:
            return float("nan")
        edge = mean + square**0.5
        return sum(int((w.double() > edge).sum()) for w in weights) / count


def outlier_share(model: HookedModel, part: str = "layer") -> np.ndarray:
    """ZD of every layer ``[layer]``, of its attention or of its MLP."""
    names = {
        "layer": LINEAR,
        "attention": ATTENTION,
        "MLP": tuple(n for n in LINEAR if n not in ATTENTION),
    }[part]
    return np.array([share_above(weights_of(b, names)) for b in model.blocks.layers])
