"""Layouts: how a site's value stands in the tensor that flows through a module, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How a value stands in a raw tensor.

    Args:
        form: ``plain`` (as it is); ``heads`` (last axis splits into heads); ``thirds`` (last axis
            is all q, all k, all v); ``interleaved`` (last axis is q, k, v by head);
            ``heads_first`` (``[batch, head, query, key]``, a pattern).
        heads: how many heads, for the forms that have them.
        part: 0, 1, 2 for q, k, v of a fused projection.
    """

    form: Literal["plain", "heads", "thirds", "interleaved", "heads_first"] = "plain"
    heads: int = 1
    part: int = 0

    def decode(self, raw: Tensor) -> Tensor:
        """The site's value in ``raw``, a view where possible."""
        if self.form == "plain":
            return raw
        if self.form == "heads_first":
            return raw.transpose(1, 2)
        if self.form == "heads":
            return raw.unflatten(-1, (self.heads, -1)) if raw.dim() == 3 else raw
        if self.form == "thirds":
            return raw.chunk(3, dim=-1)[self.part].unflatten(-1, (self.heads, -1))
        return raw.unflatten(-1, (self.heads, 3, -1))[..., self.part, :]

    def encode(self, value: Tensor, raw: Tensor) -> Tensor:
        """``raw`` with the site's value replaced."""
        if self.form == "plain":
            return value
        if self.form == "heads_first":
            return value.transpose(1, 2)
        if self.form == "heads":
            return value.flatten(-2) if raw.dim() == 3 else value
        whole = raw.clone()
        if self.form == "thirds":
            width = raw.shape[-1] // 3
            whole[..., self.part * width : (self.part + 1) * width] = value.flatten(-2)
        else:
            whole.unflatten(-1, (self.heads, 3, -1))[..., self.part, :] = value
        return whole


@dataclass(frozen=True)
class Divisor:
    """A norm whose divisor is the site: ``norm(x) = gain · c(x) / σ + bias``.

    Args:
        centred: c takes the mean away (layer norm), else c is the identity (RMS norm).
        eps: added to the mean square.
        heads: for a q/k-norm, how many heads; 0 for a norm of the residual.
        shared: one σ for all heads together (the norm runs over the whole projection).
        heads_first: the norm sees ``[batch, head, position, d_head]``.
    """

    centred: bool
    eps: float
    heads: int = 0
    shared: bool = False
    heads_first: bool = False

    def measure(self, x: Tensor) -> Tensor:
        """σ ``[batch, position]`` or, for a q/k-norm, ``[batch, position, head]``; ≥ fp32."""
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        sigma = (x.square().mean(-1) + self.eps).sqrt()
        if self.shared:
            return sigma.unsqueeze(-1).expand(*sigma.shape, self.heads)
        return sigma.transpose(1, 2) if self.heads_first else sigma

    def apply(self, out: Tensor, bias: Tensor | None, old: Tensor, new: Tensor) -> Tensor:
        """The norm's output with σ exchanged; where ``new`` equals ``old`` not a bit changes."""
        gained = out if bias is None else out - bias
        growth = old / new - 1
        if self.shared:
            gained = gained.unflatten(-1, (self.heads, -1))
        elif self.heads_first:
            growth = growth.transpose(1, 2)
        delta = (gained * growth.unsqueeze(-1)).to(out.dtype)
        return out + (delta.flatten(-2) if self.shared else delta)
