"""Orders: the frozen network's output split by how many sublayers a path goes through.

With patterns, norm scales and activation factors of a run held constant, every sublayer is affine:
u(x) = J_u x + b_u. Then E_k, the part of the residual that went through k sublayers, obeys
E_k ← E_k + J_u E_{k-1}, E_0 ← E_0 + b_u, and Σ_k E_k is the forward pass.

Legend: R prompts, T positions, N = R·T packed tokens, K orders, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.depth.walking import embedded, layer_step
from interp.engine.gradients import rules
from interp.terms import HookedModel


def order_spectrum(
    model: HookedModel,
    tokens: np.ndarray,
    most: int,
    on_layer: Callable[[float], None] = lambda share: None,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Split one batch of prompts of one length.

    Args:
        model: whose layers are driven.
        tokens: prompts ``[R, T]``.
        most: the last order, which gathers all higher ones.
        on_layer: told the share that is done.

    Returns:
        E ``[K, R, T, D]``; the size of what each order writes into the logits ``[K, R, T]``; the
        ordinary last residual; the largest difference of Σ E and it, relative to its spread.
    """
    blocks: Any = model.blocks
    with torch.no_grad():
        x = embedded(blocks, tokens)
        parts = x.new_zeros(most + 1, *x.shape)
        parts[0] = x
        for block in blocks.layers:
            x = layer_step(block, x)[2]
        caps: dict[str, Any] = {"cap": "identity"} if getattr(blocks, "cap", None) else {}
        with rules(model, "linear", reference=tokens, **caps):
            zero = torch.zeros_like(x)
            for number, block in enumerate(blocks.layers):
                attn = _attention(block)
                mlp = _mlp(block)
                if block.parallel:
                    _through(parts, (attn, mlp), zero)
                else:
                    _through(parts, (attn,), zero)
                    _through(parts, (mlp,), zero)
                on_layer((number + 1) / len(blocks.layers))
            sizes = torch.stack([_logit_size(blocks, e, zero) for e in parts])
    apart = float((parts.sum(0) - x).abs().max() / x.std())
    return parts, sizes, x, apart


def _attention(block: Any) -> Callable[[Tensor], Tensor]:
    def run(x_RTD: Tensor) -> Tensor:
        R, T, _ = x_RTD.shape
        position = torch.arange(T, device=x_RTD.device)
        q, k, v = (
            s.unflatten(0, (R, T)) for s in block.qkv(x_RTD.flatten(0, 1), position.repeat(R))
        )
        z = block.attend(q, k, v, position).flatten(0, 1)
        return block.add_attn(block.attn_sum(z)).view_as(x_RTD)

    return run


def _mlp(block: Any) -> Callable[[Tensor], Tensor]:
    def run(x_RTD: Tensor) -> Tensor:
        flat = x_RTD.flatten(0, 1)
        return block.add_mlp(block.mlp_sum(block.neurons(flat))).view_as(x_RTD)

    return run


def _through(
    parts: Tensor, sublayers: tuple[Callable[[Tensor], Tensor], ...], zero: Tensor
) -> None:
    """Every order moves on by one sublayer (in place); the last gathers what goes beyond it."""
    bias = [u(zero) for u in sublayers]
    moved = []
    for e in parts:
        moved.append(sum((u(e) - b for u, b in zip(sublayers, bias, strict=True)), zero))
    for k in range(len(parts) - 1, 0, -1):
        parts[k] += moved[k - 1]
    parts[-1] += moved[-1]
    for b in bias:
        parts[0] += b


def _logit_size(blocks: Any, e_RTD: Tensor, zero: Tensor) -> Tensor:
    """‖what a part of the last residual writes into the logits‖ ``[R, T]``, final norm frozen."""
    flat = e_RTD.flatten(0, 1)
    out = blocks.unembed(flat) - blocks.unembed(zero.flatten(0, 1))
    return out.norm(dim=-1).view(e_RTD.shape[:2])
