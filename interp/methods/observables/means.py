"""Means over prompts, gathered batch by batch in the task's order."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from interp.methods.observables.inputs import array


class Means(dict[str, np.ndarray]):
    """Arrays by name: means (or root mean squares) over prompts, and values of each.

    Args:
        n: prompts of the task.
        sign: +1 or -1 a prompt: signed quantities are turned to the observable's plus side.
    """

    def __init__(self, n: int, sign: np.ndarray) -> None:
        super().__init__()
        self.n, self.sign = n, np.where(sign == 0, 1.0, sign)
        self._kept: dict[str, np.ndarray] = {}
        self._squares: set[str] = set()

    def add(
        self,
        rows: np.ndarray,
        name: str,
        value: Tensor,
        *,
        signed: bool = False,
        square: bool = False,
    ) -> None:
        """Values ``[row, …]`` of some prompts, whose mean is wanted.

        Args:
            rows: which prompts.
            name: of the array.
            value: the values.
            signed: turn each prompt's to the plus side (only where the task turns o's sign).
            square: the root of the mean square is wanted.
        """
        values = array(value)
        if square:
            values, self._squares = values**2, self._squares | {name}
        if signed and name != "vector":
            values = values * self.sign[rows].reshape(-1, *[1] * (values.ndim - 1))
        total = values.sum(0) / self.n
        self._kept[name] = self._kept[name] + total if name in self._kept else total
        self[name] = self._kept[name] ** 0.5 if name in self._squares else self._kept[name]

    def each(self, rows: np.ndarray, name: str, value: Tensor) -> None:
        """Values ``[row, …]`` that are kept prompt by prompt."""
        values = array(value)
        if name not in self:
            self[name] = np.full((self.n, *values.shape[1:]), np.nan)
        self[name][rows] = values

    def worst(self, name: str, apart: Tensor, of: Tensor) -> None:
        """The largest of ``apart`` over the spread of ``of``, so far."""
        here = float(apart.max() / of.std().clamp_min(1e-300))
        self[name] = np.maximum(self.get(name, np.zeros(())), here)


def spread(values: Any) -> float:
    """Standard deviation, never zero."""
    return max(float(np.std(values)), 1e-300)
