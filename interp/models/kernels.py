"""Kernels: norms, activations, rotary positions and attention, rounding as the modules do.

Each function gives the Hugging Face module's value in every dtype, including the float32 islands
that those modules keep when the rest is float64. Where no graph is wanted, fresh tensors are
worked on in place: at d_model 768 a new buffer of neurons costs as much as its activation.

Legend: N packed tokens, R rows, T query positions, S key positions, H heads, K key/value heads,
G = H / K, E head width, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal
from weakref import ref

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1 << 16
"""Elements that an activation works on at a time, so that they stay in the core's cache."""

_A = math.sqrt(2 / math.pi)
_B = _A * 0.044715


def fresh(x: Tensor) -> bool:
    """Whether ``x``, just made by us, may be changed in place (no graph hangs on it)."""
    return not (torch.is_grad_enabled() and x.requires_grad)


def gelu_tanh(x: Tensor) -> Tensor:
    """x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³))); ``x`` is overwritten where no graph is wanted.

    torch's fused kernel is slow on a CPU (its tanh is not vectorised), so there it is written
    out over pieces that fit in the cache.
    """
    if not (x.device.type == "cpu" and fresh(x) and x.is_contiguous()):
        return F.gelu(x, approximate="tanh")
    for piece in x.view(-1).split(CHUNK):
        wide = piece if x.dtype.itemsize >= 4 else piece.float()
        inner = torch.addcmul(wide.new_tensor(_A), wide, wide, value=_B).mul_(wide).tanh_()
        wide.mul_(0.5).addcmul_(wide, inner)
        if wide is not piece:
            piece.copy_(wide)
    return x


def gelu(x: Tensor) -> Tensor:
    """x · Φ(x), in place where no graph is wanted."""
    return torch.ops.aten.gelu_(x) if fresh(x) else F.gelu(x)


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), in place where no graph is wanted."""
    return F.silu(x, inplace=fresh(x))


def relu(x: Tensor) -> Tensor:
    """max(x, 0), in place where no graph is wanted."""
    return F.relu(x, inplace=fresh(x))


FUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_python_tanh": gelu_tanh,
    "gelu": gelu,
    "gelu_python": gelu,
    "silu": silu,
    "swish": silu,
    "relu": relu,
}
"""Activation's name in a config -> fused function. Any other runs as the module's own."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, cast_first: bool = True) -> Tensor:
    """x / √(mean x² + eps) · weight over the last axis, in float32 inside.

    torch has no fused kernel for a CPU; there, without a graph, it is written out over pieces
    that fit in the cache (the same operations, hence the same bits).

    Args:
        x: what is normalised ``[…, width]``.
        weight: gain ``[width]``.
        eps: added to the mean square.
        cast_first: round the normalised value to ``x``'s dtype before the gain, not after.
    """
    half = x.dtype.itemsize < 4
    graph = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if graph or x.device.type != "cpu" or not x.is_contiguous():
        if half and cast_first:
            return weight * F.rms_norm(x, x.shape[-1:], None, eps)
        return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(x.dtype)
    out = torch.empty_like(x)
    width = x.shape[-1]
    rows = max(1, CHUNK // width)
    gain = weight if cast_first else weight.to(torch.float32)
    pairs = zip(x.view(-1, width).split(rows), out.view(-1, width).split(rows), strict=True)
    for piece, target in pairs:
        piece = piece.float()
        scale = (piece * piece).mean(-1, keepdim=True).add_(eps).rsqrt_()
        if not half:
            torch.mul(piece, scale, out=target).mul_(gain)
        elif cast_first:
            target.copy_(piece.mul_(scale)).mul_(gain)
        else:
            target.copy_(piece.mul_(scale).mul_(gain))
    return out


class Norm:
    """A layer norm or RMS norm over its last axis, by reference to its parameters.

    Args:
        weight: gain ``[width]``, or None.
        bias: shift ``[width]``, or None.
        eps: added to the variance or mean square.
        kind: ``layer`` or ``rms``.
        order: rounding of an RMS norm: ``llama`` (cast, then gain), ``olmo`` (gain, then cast),
            ``gemma`` (gain ``1 + weight``, then cast).
    """

    def __init__(
        self,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        kind: Literal["layer", "rms"] = "rms",
        order: Literal["llama", "olmo", "gemma"] = "llama",
    ) -> None:
        self.weight, self.bias, self.eps, self.kind, self.order = weight, bias, eps, kind, order

    def __call__(self, x: Tensor) -> Tensor:
        """The normalised ``x``."""
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        if x.dtype == torch.float64:
            return self._double(x)
        width, weight = x.shape[-1:], self.weight
        if weight is None:
            return F.rms_norm(x, width, None, self.eps)
        if self.order == "gemma":
            return rms_norm(x, 1.0 + weight.float(), self.eps, cast_first=False)
        return rms_norm(x, weight, self.eps, cast_first=self.order == "llama")

    def _double(self, x: Tensor) -> Tensor:
        """The modules' own float32 arithmetic, operation by operation."""
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.weight is None:
            return y.to(x.dtype)
        if self.order == "gemma":
            return (y * (1.0 + self.weight.float())).to(x.dtype)
        if self.order == "olmo":
            return (self.weight * y).to(x.dtype)
        return self.weight * y.to(x.dtype)

    def gain(self) -> Tensor | None:
        """What the normalised vector is multiplied by (``1 + w`` where stored so)."""
        if self.weight is not None and self.order == "gemma":
            return 1.0 + self.weight
        return self.weight

    def scale(self, x: Tensor) -> Tensor:
        """The divisor ``[…]``: standard deviation (layer) or root mean square (rms), with eps."""
        if self.kind == "layer":
            return (x.var(-1, unbiased=False) + self.eps).sqrt()
        return (x.float().pow(2).mean(-1) + self.eps).sqrt().to(x.dtype)


class Rotary:
    """Rotary positions: angles from a module's ``inv_freq``, applied to heads.

    Args:
        inv_freq: angle per position of each pair ``[pairs]``.
        factor: attention scaling that some context extensions put on cosine and sine.
        float32: angles stay float32 whatever the model's dtype (OLMo 2).
        limit: position from which the angles would no longer hold, or None.
    """

    def __init__(
        self,
        inv_freq: Tensor,
        factor: float = 1.0,
        float32: bool = False,
        limit: int | None = None,
    ) -> None:
        self.inv_freq, self.factor, self.float32, self.limit = inv_freq, factor, float32, limit
        self._last: tuple[object, ...] | None = None

    def angles(self, position_N: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine ``[N, 1, pairs]``; the last position tensor's are kept."""
        kept = self._last
        if kept is not None:
            owner, version, kind, cos, sin = kept
            if owner() is position_N and version == position_N._version and kind == dtype:  # type: ignore[operator]
                return cos, sin  # type: ignore[return-value]
        if self.limit is not None and int(position_N.max()) >= self.limit:
            raise ValueError(f"rotary angles are fixed below position {self.limit} only")
        angle = position_N[:, None].float() * self.inv_freq.float()
        target = torch.float32 if self.float32 else dtype
        cos = (angle.cos() * self.factor).to(target)[:, None]
        sin = (angle.sin() * self.factor).to(target)[:, None]
        self._last = (ref(position_N), position_N._version, dtype, cos, sin)
        return cos, sin

    def __call__(self, x_NHE: Tensor, position_N: Tensor) -> Tensor:
        """Heads turned by their positions' angles (in place where no graph is wanted)."""
        cos, sin = self.angles(position_N, x_NHE.dtype)
        half = cos.shape[-1]
        a, b = x_NHE[..., :half], x_NHE[..., half : 2 * half]
        if fresh(x_NHE) and cos.dtype == x_NHE.dtype:
            up, down = a * sin, b * sin
            a.mul_(cos).sub_(down)
            b.mul_(cos).add_(up)
            return x_NHE
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x_NHE.dtype)
        if 2 * half < x_NHE.shape[-1]:
            turned = torch.cat((turned, x_NHE[..., 2 * half :]), -1)
        return turned


def allowed(position: Tensor, n_keys: int, window: int | None, causal: bool) -> Tensor | None:
    """Which keys a query may see: ``[T, S]``, or ``[R, T, S]`` for positions ``[R, T]``."""
    key = torch.arange(n_keys, device=position.device)
    ahead = position[..., None] - key
    mask = ahead >= 0 if causal else None
    if window is not None:
        near = ahead < window
        mask = near if mask is None else mask & near
    return mask


def _fold(x_RTHE: Tensor, n_kv: int) -> Tensor:
    """``[R, K, G·T, E]``: the queries of a group stacked, so that keys need no copies."""
    R, T, H, E = x_RTHE.shape
    if n_kv == H:
        return x_RTHE.transpose(1, 2)
    x = x_RTHE.reshape(R, T, n_kv, H // n_kv, E).permute(0, 2, 3, 1, 4)
    return x.reshape(R, n_kv, H // n_kv * T, E)


def _unfold(z: Tensor, T: int) -> Tensor:
    """The inverse of ``_fold``: ``[R, T, H, E]``."""
    R, K, GT, E = z.shape
    if GT == T:
        return z.transpose(1, 2)
    z = z.view(R, K, GT // T, T, E).permute(0, 3, 1, 2, 4)
    return z.reshape(R, T, K * (GT // T), E)


def sdpa(
    q_RTHE: Tensor,
    k_RSKE: Tensor,
    v_RSKE: Tensor,
    mask: Tensor | None,
    scale: float,
    is_causal: bool = False,
) -> Tensor:
    """Fused attention, z ``[R, T, H, E]``; grouped keys are never repeated in memory."""
    grouped = q_RTHE.shape[2] != k_RSKE.shape[2]
    if mask is not None and mask.ndim == 3:
        mask = mask[:, None]
    if grouped and mask is not None and q_RTHE.device.type != "cpu":
        return folded_sdpa(q_RTHE, k_RSKE, v_RSKE, mask, scale)
    z = F.scaled_dot_product_attention(
        q_RTHE.transpose(1, 2),
        k_RSKE.transpose(1, 2),
        v_RSKE.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
        is_causal=is_causal,
        enable_gqa=grouped,
    )
    return z.transpose(1, 2)


def folded_sdpa(
    q_RTHE: Tensor, k_RSKE: Tensor, v_RSKE: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """As ``sdpa`` where a device has no fused kernel for grouped keys under a mask."""
    T, H, K = q_RTHE.shape[1], q_RTHE.shape[2], k_RSKE.shape[2]
    stacked = mask.repeat(*(1,) * (mask.ndim - 2), H // K, 1)
    z = F.scaled_dot_product_attention(
        _fold(q_RTHE, K),
        k_RSKE.transpose(1, 2),
        v_RSKE.transpose(1, 2),
        attn_mask=stacked,
        scale=scale,
    )
    return _unfold(z, T)


def float32_products(q_RTHE: Tensor, k_RSKE: Tensor, position: Tensor) -> Tensor:
    """Dot products ``[R, H, T, S]`` of queries and keys that a module casts to float32 first.

    In a float64 model the rounding of that product is part of the value, and it depends on the
    shape of the multiplication; so every query is put in its place among S, as in a whole forward.
    """
    q, k = q_RTHE.float(), k_RSKE.float().permute(0, 2, 3, 1)
    if q_RTHE.dtype != torch.float64 or q.shape[1] == k.shape[-1]:
        return torch.matmul(q.transpose(1, 2), k)
    R, S = len(q), k.shape[-1]
    at = position if position.ndim == 2 else position.expand(R, -1)
    rows = torch.arange(R, device=at.device)[:, None]
    whole = q.new_zeros(R, S, *q.shape[2:]).index_put((rows, at), q)
    return torch.matmul(whole.transpose(1, 2), k).transpose(1, 2)[rows, at].transpose(1, 2)


def scores(
    q_RTHE: Tensor,
    k_RSKE: Tensor,
    position: Tensor,
    mask: Tensor | None,
    scale: float,
    cap: float | None,
    float32: bool = False,
) -> Tensor:
    """Masked attention scores ``[R, K, G, T, S]``, soft cap applied before the mask."""
    R, T, H, E = q_RTHE.shape
    K = k_RSKE.shape[2]
    if float32:
        s = float32_products(q_RTHE, k_RSKE, position)
    else:
        s = torch.matmul(_fold(q_RTHE, K), k_RSKE.permute(0, 2, 3, 1))
    s = s * scale
    if cap is not None:
        s = torch.tanh(s / cap) * cap
    s = s.reshape(R, K, H // K, T, k_RSKE.shape[1])
    if mask is None:
        return s
    gap = mask[:, None, None] if mask.ndim == 3 else mask
    return s.masked_fill(~gap, -math.inf)


def softmax(s: Tensor, dtype: torch.dtype, float32: bool) -> Tensor:
    """Softmax over keys, in float32 where the module does so, in ``dtype`` at the end."""
    wide = torch.promote_types(torch.promote_types(s.dtype, dtype), torch.float32)
    return torch.softmax(s, -1, dtype=torch.float32 if float32 else wide).to(dtype)


def mix(p_RKGTS: Tensor, v_RSKE: Tensor) -> Tensor:
    """Values averaged by a pattern: z ``[R, T, H, E]``."""
    R, K, G, T, S = p_RKGTS.shape
    z = torch.matmul(p_RKGTS.reshape(R, K, G * T, S), v_RSKE.transpose(1, 2))
    return _unfold(z, T)
