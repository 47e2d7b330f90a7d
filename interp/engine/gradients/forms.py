"""Closed forms of the backward rules: what a part is replaced by when a gradient passes through.

A rule names a form s that equals the part's output f and has another derivative. It is applied as
``sg(f) + (s - sg(s))``, sg a stop-gradient: the value is f to the bit, the derivative that of s.
sg stops forward tangents too, so jvp and vjp agree. Written from the formulas of jafari2025relp,
achtibat2024attnlrp and ali2022xai.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interp.models import kernels

STAB = 1e-6
"""Added to |x| where a rule divides by x."""


def stopped(value: Tensor, form: Tensor) -> Tensor:
    """``sg(f) + (s - sg(s))``: f to the bit, the derivative of s."""
    return value.detach() + (form - form.detach())


def damped(x: Tensor, share: float) -> Tensor:
    """x to the bit; its gradient times ``share``."""
    return stopped(x, share * x)


def away_from_zero(x: Tensor) -> Tensor:
    """``x + 1e-6 sign(x)`` with sign(0) = 1: safe to divide by."""
    return x + torch.where(x < 0, -STAB, STAB).to(x.dtype)


def _phi(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _phi_tanh(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FACTORS: dict[Any, Callable[[Tensor], Tensor]] = {
    kernels.gelu: _phi,
    kernels.gelu_tanh: _phi_tanh,
    kernels.silu: torch.sigmoid,
    kernels.relu: lambda x: (x > 0).to(x.dtype),
}
"""Activation -> the factor f(x)/x in closed form, finite at 0. Any other is divided."""


def factor(act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f(x)/x of an activation with f(0) = 0, detached; finite at 0."""
    x = x.detach()
    known = FACTORS.get(act)
    if known is not None:
        return known(x)
    return act(x.clone()) / away_from_zero(x)


def vanishes_at_zero(act: Callable[[Tensor], Tensor], like: Tensor) -> bool:
    """Whether f(0) = 0, which the identity rule needs."""
    return float(act(like.new_zeros(1)).abs()) == 0.0


def straight_norm(
    x: Tensor,
    scale: Tensor,
    gain: Tensor | None,
    bias: Tensor | None,
    *,
    centred: bool,
    mean: str = "linear",
    tap: Tensor | None = None,
) -> Tensor:
    """A norm whose divisor does not answer: ``(x - mean x) / scale · gain + bias``.

    Args:
        x: ``[…, width]``.
        scale: the divisor ``[…]``, a constant.
        gain: ``[width]`` or None; bias likewise.
        bias: see ``gain``.
        centred: whether the mean is taken off (layer norm).
        mean: ``"linear"`` (the mean follows x) or ``"frozen"`` (a constant).
        tap: t, zero, where a frozen mean stands as mean·(1 + t), to be differentiated by.
    """
    if centred:
        centre = x.mean(-1, keepdim=True)
        if mean == "frozen":
            centre = centre.detach() if tap is None else centre.detach() * (1 + tap)
        x = x - centre
    y = x / scale.detach()[..., None].to(x.dtype)
    y = y if gain is None else y * gain
    return y if bias is None else y + bias


def product(a: Tensor, u: Tensor, rule: str) -> Tensor:
    """The gate's product a·u: ``half`` gives each factor half, ``value`` all of it to u."""
    if rule == "value":
        return a.detach() * u
    p = a * u
    return stopped(p, p / 2)
