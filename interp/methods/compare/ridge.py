"""Ridge: linear maps from one source to all targets at once, in closed form, from streaming sums.

Legend: N rows, A source width, M targets' columns side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LAMBDAS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Strengths that are tried on validation prompts, relative to the mean variance of the source."""


class Moments:
    """n, Σx, Σy, Σxxᵀ, Σxyᵀ and Σy² of rows, chunk by chunk, about a fixed shift.

    Sums are float64; what is subtracted first (the first chunk's mean) keeps them well scaled and
    drops out of every result.
    """

    def __init__(self, a: int, m: int) -> None:
        self.n = 0
        self.x, self.y = torch.zeros(a, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)
        self.xx = torch.zeros(a, a, dtype=torch.float64)
        self.xy = torch.zeros(a, m, dtype=torch.float64)
        self.yy = torch.zeros(m, dtype=torch.float64)
        self._shift: tuple[Tensor, Tensor] | None = None

    def add(self, x_NA: Tensor, y_NM: Tensor) -> None:
        """Rows more."""
        x, y = x_NA.double(), y_NM.double()
        if self._shift is None:
            self._shift = x.mean(0), y.mean(0)
        x, y = x - self._shift[0], y - self._shift[1]
        self.n += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.square().sum(0)

    def means(self) -> tuple[Tensor, Tensor]:
        """x̄ and ȳ."""
        assert self._shift is not None
        return self.x / self.n + self._shift[0], self.y / self.n + self._shift[1]

    def about(self, x0: Tensor, y0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Σ(x-x₀)(x-x₀)ᵀ, Σ(x-x₀)(y-y₀)ᵀ, Σ(y-y₀)² divided by n."""
        assert self._shift is not None
        dx, dy = x0 - self._shift[0], y0 - self._shift[1]
        n, x, y = self.n, self.x / self.n, self.y / self.n
        xx = self.xx / n - torch.outer(x, dx) - torch.outer(dx, x) + torch.outer(dx, dx)
        xy = self.xy / n - torch.outer(x, dy) - torch.outer(dx, y) + torch.outer(dx, dy)
        yy = self.yy / n - 2 * y * dy + dy.square()
        return xx, xy, yy


@dataclass(frozen=True, eq=False)
class Fit:
    """Maps of one source.

    Args:
        weight: W ``[A, M]``; x, y: means, so that ŷ = y + Wᵀ(x - x̄).
        x: see ``weight``.
        y: see ``weight``.
        strength: chosen λ of each target ``[target]``.
        r2: on test rows, ``[target]``.
    """

    weight: Tensor
    x: Tensor
    y: Tensor
    strength: np.ndarray
    r2: np.ndarray


def fitted(train: Moments, validation: Moments, test: Moments, targets: int,
           strengths: tuple[float, ...] = LAMBDAS) -> Fit:  # fmt: skip
    """Ridge with λ chosen on validation rows; R² = 1 - Σ‖y - ŷ‖²/Σ‖y - ȳ_train‖² on test rows.

    W = (C_xx + λ (tr C_xx / A) I)⁻¹ C_xy; one factorisation of C_xx serves every λ and target.
    """
    x0, y0 = train.means()
    cxx, cxy, _ = train.about(x0, y0)
    scale = cxx.trace() / len(cxx)
    values, vectors = torch.linalg.eigh(cxx)
    turned = vectors.T @ cxy
    best = torch.full((targets,), torch.inf, dtype=torch.float64)
    chosen = np.zeros(targets)
    weight = torch.zeros_like(cxy)
    columns = cxy.shape[1] // targets
    for strength in strengths:
        below = (values.clamp_min(0) + strength * scale).clamp_min(1e-300)
        w = vectors @ (turned / below[:, None])
        error = _left(validation.about(x0, y0), w, targets)[0]
        better = error < best
        best = torch.where(better, error, best)
        chosen[better.numpy()] = strength
        mask = better.repeat_interleave(columns)
        weight[:, mask] = w[:, mask]
    left, spread = _left(test.about(x0, y0), weight, targets)
    r2 = torch.where(spread > 0, 1 - left / spread, torch.nan)
    return Fit(weight, x0, y0, chosen, r2.numpy())


def _left(moments: tuple[Tensor, Tensor, Tensor], w: Tensor, targets: int) -> tuple[Tensor, Tensor]:
    """Mean ‖y - ŷ‖² and ‖y - ȳ_train‖² of each target, from second moments."""
    xx, xy, yy = moments
    each = yy - 2 * (w * xy).sum(0) + (w * (xx @ w)).sum(0)
    return each.unflatten(0, (targets, -1)).sum(1), yy.unflatten(0, (targets, -1)).sum(1)
