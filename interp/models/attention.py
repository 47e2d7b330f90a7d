"""Attention whose pattern is a module's output, for back-ends that catch modules.

Hugging Face computes the pattern inside a function (and not at all under its fused kernels), where
no hook reaches. ``show_patterns`` gives every attention module an identity child through which
its pattern passes, by way of the library's own registry of attention functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from interp.models.families import Family

NAME = "interp_visible"
"""Key in the library's registry."""

CHILD = "interp_pattern"
"""Name of the identity child: ``[batch, head, query, key]``."""


def visible_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(cap(scaling · q kᵀ) + mask) v, the softmax in float32 or wider.

    Args:
        module: the attention module, with its child ``CHILD``.
        query: ``[batch, head, position, d_head]``.
        key: ``[batch, kv_head, position, d_head]``; likewise ``value``.
        value: see ``key``.
        attention_mask: added to the scores, or None.
        scaling: factor of the scores; None for 1/√d_head.
        dropout: not used (models are in eval mode).
        softcap: soft cap of the scores, or None.
        **kwargs: what the library passes besides.

    Returns:
        ``[batch, position, head, d_head]`` and the pattern.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    if module.interp_float32:
        wide = torch.float32
    pattern = torch.softmax(scores, dim=-1, dtype=wide).to(value.dtype)
    pattern = getattr(module, CHILD)(pattern)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def show_patterns(module: nn.Module, family: Family) -> None:
    """Let every layer's pattern pass through a child module; changes the module in place.

    Args:
        module: a Hugging Face module whose attention goes through the library's registry.
        family: its layout.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, visible_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    for layer in module.get_submodule(family.layers):  # type: ignore[union-attr]
        attention = layer.get_submodule(family.attention)
        attention.add_module(CHILD, nn.Identity())
        attention.interp_float32 = family.fp32_softmax
    module.set_attn_implementation(NAME)  # type: ignore[operator]
