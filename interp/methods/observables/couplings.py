"""Couplings: how much one feature moves when another does.

``C(y1, y2) = y1·y2 / |y1|²``: for x uniform on the sphere ``|x| = s`` with ``x·y1 = k`` the mean of
``x·y2`` is ``kC``, its extremes ``(|y2|/|y1|)(k cos θ ± sin θ √(s²|y1|² - k²))`` and its variance
``(s² - k²/|y1|²) |y2|² sin²θ / (d - 1)`` (dunefsky2024observable; ``C12·C21 = cos²θ``). Behind a
layer norm x is orthogonal to 1 and ``s = √d``: vectors are projected, and ``d - 1`` stands for d. A
slope fitted to data is ``y1Σy2 / y1Σy1``, Σ the covariance of x: what it adds to C is anisotropy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Coupling:
    """Two vectors against each other.

    Args:
        first: y1 ``[d]``; second: y2 ``[d]``; both projected where x is orthogonal to 1.
        second: see ``first``.
        d: dimensions that x has.
    """

    first: np.ndarray
    second: np.ndarray
    d: int

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray, *, centred: bool = False) -> Coupling:
        """Of two vectors; ``centred`` where x is orthogonal to 1 (behind a layer norm)."""
        d = len(first)
        if centred:
            first, second, d = first - first.mean(), second - second.mean(), d - 1
        return cls(first, second, d)

    @property
    def coefficient(self) -> float:
        """C(y1, y2); NaN where y1 is zero."""
        square = self.first @ self.first
        return float(self.first @ self.second / square) if square else float("nan")

    @property
    def cosine(self) -> float:
        """cos θ; NaN where one is zero."""
        size = np.linalg.norm(self.first) * np.linalg.norm(self.second)
        return float(np.clip(self.first @ self.second / size, -1, 1)) if size else float("nan")

    def mean(self, k: np.ndarray) -> np.ndarray:
        """Mean of x·y2 at x·y1 = k."""
        return np.asarray(k) * self.coefficient

    def _room(self, k: np.ndarray, s: np.ndarray | float) -> np.ndarray:
        """``s²|y1|² - k²``; NaN where no x of that length gives k."""
        room = np.square(s) * (self.first @ self.first) - np.square(k)
        return np.where(room >= 0, room, np.nan)

    def extremes(self, k: np.ndarray, s: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest x·y2 at x·y1 = k, ``|x| = s``; NaN where there is no such x."""
        ratio = np.linalg.norm(self.second) / np.linalg.norm(self.first)
        cos = self.cosine
        swing = np.sqrt(max(0.0, 1 - cos**2)) * np.sqrt(self._room(k, s))
        return ratio * (k * cos - swing), ratio * (k * cos + swing)

    def variance(self, k: np.ndarray, s: np.ndarray | float) -> np.ndarray:
        """Variance of x·y2 at x·y1 = k, ``|x| = s``; NaN where there is no such x."""
        square = self.first @ self.first
        left = self._room(k, s) / square * (self.second @ self.second)
        return left * (1 - self.cosine**2) / (self.d - 1)


@dataclass(frozen=True)
class Fitted:
    """What data say: slope through the mean, its r², and the slope at a round covariance (C)."""

    slope: float
    r2: float


def fitted(covariance: np.ndarray, first: np.ndarray, second: np.ndarray) -> Fitted:
    """``y1Σy2 / y1Σy1`` and ``(y1Σy2)² / (y1Σy1 · y2Σy2)``; NaN where a variance is zero."""
    cross = float(first @ covariance @ second)
    a, b = float(first @ covariance @ first), float(second @ covariance @ second)
    if a <= 0 or b <= 0:
        return Fitted(float("nan"), float("nan"))
    return Fitted(cross / a, cross**2 / (a * b))
