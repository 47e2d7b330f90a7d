"""Heads: the value path of ``F.multi_head_attention_forward``, which hides its softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from interp.engine.gradients import forms
from interp.terms import CapabilityError

if TYPE_CHECKING:
    from interp.engine.linear.freezing import Freezing


def value_path(mode: Freezing, func: Any, known: dict[str, Any]) -> tuple[Tensor, Any]:
    """Attention with its pattern held: output ``[T, N, E]`` and the pattern it returns.

    Legend: N batch, H heads, T queries, S keys (with what is appended), E width.

    Raises:
        CapabilityError: static keys or values.
    """
    if known.get("static_v") is not None or known.get("static_k") is not None:
        raise CapabilityError(
            "Attention with static keys or values is not frozen.", remedy="Use attn_rule='grad'."
        )
    out, shown = func(**known)
    with torch.no_grad():
        pattern = func(**{**known, "need_weights": True, "average_attn_weights": False})[1]
    value = known["value"]
    batched = value.dim() == 3
    value = value if batched else value[:, None]
    weight, bias = _projection(known, value.shape[-1])
    heads = int(known["num_heads"])
    v = F.linear(value, weight)
    if bias is not None:
        v = mode._add(v, bias.expand_as(v), "value bias", "bias")
    if known.get("bias_v") is not None:
        row = known["bias_v"].expand(1, v.shape[1], -1)
        v = torch.cat([v, mode._add(torch.zeros_like(row), row, "bias_v", "bias")])
    if known.get("add_zero_attn"):
        v = torch.cat([v, torch.zeros_like(v[:1])])
    v = v.reshape(v.shape[0], v.shape[1], heads, -1).permute(1, 2, 0, 3)
    pattern = pattern if batched else pattern[None]
    z = (pattern.to(v.dtype) @ v).permute(2, 0, 1, 3).flatten(2)
    form = F.linear(z, known["out_proj_weight"])
    form = form if batched else form[:, 0]
    made = forms.stopped(out, form)
    bias = known.get("out_proj_bias")
    if bias is not None:
        made = mode._add(made, bias.expand_as(made), "out bias", "bias")
    return made, None if shown is None else shown.detach()


def _projection(known: dict[str, Any], width: int) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the values."""
    bias = known.get("in_proj_bias")
    bias = None if bias is None else bias.chunk(3)[2]
    if known.get("use_separate_proj_weight"):
        return known["v_proj_weight"], bias
    return known["in_proj_weight"].chunk(3)[2], bias
