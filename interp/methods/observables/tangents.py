"""Tangents: where an MLP is made linear, so that a vector can pass it.

``boundary`` takes the point of the line between two classes' inputs where the MLP's own reading
``g(t) = y · MLP(x⁻ + t (x⁺ - x⁻))`` is 0: there its neurons are not saturated. Where g keeps its
sign, the middle of its two ends is taken instead and flagged; of several roots the steepest counts.
``own`` is the run itself, ``mean`` the mean input (dunefsky2024observable).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GRID = 257
"""Points of the line that are looked at."""

CLOSE = 1e-8
"""The root is found to this part of the line."""


@dataclass(frozen=True, eq=False)
class Boundary:
    """Where lines cross the boundary; B lines.

    Args:
        point: ``[B, D]``.
        at: t of the crossing ``[B]``.
        same_sign: g has one sign at both ends, so a middle level was taken ``[B]``.
        roots: crossings of that level seen on the grid ``[B]``.
        curve: g on the grid ``[B, GRID]``.
    """

    point: Tensor
    at: Tensor
    same_sign: Tensor
    roots: Tensor
    curve: Tensor


def boundary(g: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Boundary:
    """Find ``g = 0`` on the lines from ``low`` to ``high`` ``[B, D]``.

    Args:
        g: ``[B, n, D] -> [B, n]``.
        low: inputs of the class against.
        high: inputs of the class for.
    """
    t = torch.linspace(0, 1, GRID, dtype=low.dtype, device=low.device)
    step = high - low

    def along(t_Bn: Tensor) -> Tensor:
        return g(low[:, None] + t_Bn[..., None] * step[:, None])

    curve = along(t.expand(len(low), -1))
    ends = curve[:, [0, -1]]
    same = (ends[:, 0] * ends[:, 1]) > 0
    level = torch.where(same, ends.mean(1), torch.zeros_like(ends[:, 0]))
    above = curve > level[:, None]
    crossed = above[:, 1:] != above[:, :-1]
    steep = (curve[:, 1:] - curve[:, :-1]).abs().masked_fill(~crossed, -1)
    cell = steep.argmax(1)
    a, b = t[cell], t[cell + 1]
    rises = above.gather(1, cell[:, None] + 1)[:, 0]
    while float((b - a).max()) > CLOSE:
        middle = (a + b) / 2
        beyond = (along(middle[:, None])[:, 0] > level) == rises
        a, b = torch.where(beyond, a, middle), torch.where(beyond, middle, b)
        if float((b - a).max()) <= 4 * torch.finfo(low.dtype).eps:
            break
    at = torch.where(crossed.any(1), (a + b) / 2, torch.full_like(a, 0.5))
    return Boundary(low + at[:, None] * step, at, same, crossed.sum(1), curve)
