"""Angles: how far a norm turns a vector that is passed back through it, exactly.

For ``n = γ*y``, x what the norm reads, c what it makes of x, and eps left out, the angle θ between
n and the gradient of ``n · norm(x)`` obeys

    cos θ = √(1 - (n·1)²/(d|n|²) - (n·c)²/(|n|²|c|²)),

an RMS norm dropping the first term; with x and n independent standard normal, E cos²θ = 1 - 2/d.
This is exact where Theorem 1 of dunefsky2024observable bounds the mean, ``E θ < 2 arccos √(1 -
1/(d-1))`` from d = 8 on. A vector that depends on x (n along c) is turned far more.
"""

from __future__ import annotations

import math

from torch import Tensor

from interp.engine.traces import NormMap


def cosine(norm: NormMap, y: Tensor, x: Tensor) -> Tensor:
    """cos θ of one norm for y ``[…, D]`` at its output and x ``[…, D]`` at its input."""
    n, c = norm.gain * y, norm.centred(x)
    length = n.square().sum(-1)
    left = 1 - (n * c).sum(-1).square() / (length * c.square().sum(-1))
    if norm.centres:
        left = left - n.sum(-1).square() / (n.shape[-1] * length)
    return left.clamp_min(0).sqrt()


def bound(d: int) -> float:
    """Theorem 1's bound of the mean angle, in radians."""
    return 2 * math.acos(math.sqrt(1 - 1 / (d - 1)))


def gain_cosine(norm: NormMap | None, y: Tensor) -> Tensor:
    """cos of the angle between γ*y and y ``[…]``: 1 where the gain is the same everywhere."""
    if norm is None:
        return y.new_ones(y.shape[:-1])
    turned = norm.gain * y
    return (turned * y).sum(-1) / (turned.norm(dim=-1) * y.norm(dim=-1))
