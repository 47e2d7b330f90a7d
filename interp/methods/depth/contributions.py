"""Contributions: means over a task of what layers add, and of the residual at every boundary."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.engine.depth import Corpus, walk, wide
from interp.terms import HookedModel


def means_of(model: HookedModel, corpus: Corpus, limit: int) -> tuple[Tensor, Tensor]:
    """Means over counted tokens of what attention and MLP add, ``[layer, D]`` each."""
    L, d = model.shape.n_layers, model.shape.d_model
    sums = torch.zeros(2, L, d, dtype=torch.float64, device=model.blocks.device)
    for batch in corpus.pieces(limit):
        first = int(batch.counted.argmax())
        with torch.no_grad():
            for step in walk(model.blocks, batch.tokens):
                sums[0, step.layer] += wide(step.attn)[:, first:].double().sum((0, 1))
                sums[1, step.layer] += wide(step.mlp)[:, first:].double().sum((0, 1))
    return tuple(sums / corpus.n_tokens)  # type: ignore[return-value]


def residual_means(model: HookedModel, corpus: Corpus, limit: int) -> Tensor:
    """μ_l: mean over counted tokens of the residual at every boundary, ``[boundary, D]``."""
    L, d = model.shape.n_layers, model.shape.d_model
    sums = torch.zeros(L + 1, d, dtype=torch.float64, device=model.blocks.device)
    for batch in corpus.pieces(limit):
        first = int(batch.counted.argmax())
        with torch.no_grad():
            for step in walk(model.blocks, batch.tokens):
                sums[step.layer] += wide(step.resid)[:, first:].double().sum((0, 1))
            sums[L] += wide(step.following)[:, first:].double().sum((0, 1))
    return sums / corpus.n_tokens
