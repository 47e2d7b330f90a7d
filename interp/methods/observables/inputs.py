"""Inputs: prompts in batches of one length, what an observable reads of each, and their classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.engine.traces import Maps, Trace, trace, trace_bytes
from interp.terms import Observable, PromptPairs, UsageError


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of one length.

    Args:
        rows: their numbers in the task ``[prompt]``.
        clean: the run of their clean sides.
        corrupt: the run of their corrupt sides.
    """

    rows: np.ndarray
    clean: Trace
    corrupt: Trace


def batches(maps: Maps, pairs: PromptPairs, memory: int) -> Iterator[Batch]:
    """The task in runs that fit in memory, prompts of one length together."""
    found: dict[tuple[int, int], list[int]] = {}
    for i, (a, b) in enumerate(zip(pairs.clean, pairs.corrupt, strict=True)):
        found.setdefault((len(a), len(b)), []).append(i)
    for lengths, rows in sorted(found.items()):
        most = max(1, int(memory // (2 * trace_bytes(maps, max(lengths)))))
        for i in range(0, len(rows), most):
            some = rows[i : i + most]
            yield Batch(
                np.array(some),
                trace(maps, np.array([pairs.clean[r] for r in some])),
                trace(maps, np.array([pairs.corrupt[r] for r in some])),
            )


def check_pairs(pairs: PromptPairs, what: str, *, aligned: bool) -> None:
    """Refuse tasks whose positions do not compare.

    Raises:
        UsageError: spans; prompts of several lengths, or a corrupt prompt of another length.
    """
    if pairs.answer_form != "set":
        raise UsageError(
            f"{what} reads the last position, and this task's answers are spans.",
            remedy="Take a task whose answers are single tokens.",
        )
    lengths = {len(p) for side in (pairs.clean, pairs.corrupt) for p in side}
    if aligned and len(lengths) > 1:
        raise UsageError(
            f"{what} compares positions, and these prompts have {min(lengths)} to {max(lengths)} "
            "tokens.",
            remedy="Take pairs of one template and one length.",
        )


@dataclass(frozen=True, eq=False)
class Readout:
    """An observable on a model.

    Args:
        observable: the tokens and weights.
        columns: W_U's columns ``[D, token]``.
        bias: the logits' bias on them ``[token]``.
        cap: the soft cap of the logits, or None; o is measured before it.
    """

    observable: Observable
    columns: Tensor
    bias: Tensor
    cap: float | None

    @classmethod
    def of(cls, maps: Maps, observable: Observable) -> Readout:
        """The columns of a model's unembedding."""
        return cls(observable, *maps.unembedding(observable.tokens), maps.cap)

    def weights(self, rows: Any) -> Tensor:
        """n of these prompts ``[R, token]``."""
        return torch.from_numpy(np.array(self.observable.rows(rows))).to(self.columns)

    def vector(self, rows: Any) -> Tensor:
        """u = W_U n of these prompts ``[R, D]``."""
        return self.weights(rows) @ self.columns.T

    def constant(self, rows: Any) -> Tensor:
        """b_U · n ``[R]``."""
        return self.weights(rows) @ self.bias

    def slope(self, maps: Maps, run: Trace, rows: Any) -> Tensor:
        """u behind the soft cap ``[R, D]``: each token's weight times ``1 - tanh²(z/c)``."""
        n = self.weights(rows)
        if self.cap is None:
            return n @ self.columns.T
        z = last_normed(maps, run.last[:, -1]) @ self.columns + self.bias
        return (n * (1 - torch.tanh(z / self.cap) ** 2)) @ self.columns.T

    def value(self, maps: Maps, last: Tensor, rows: Any) -> Tensor:
        """o of last residuals ``[R, …, D]`` -> ``[R, …]``, before any soft cap."""
        u, const = self.vector(rows), self.constant(rows)
        normed = last_normed(maps, last)
        shape = (len(u), *([1] * (last.ndim - 2)), u.shape[-1])
        return (normed * u.view(shape)).sum(-1) + const.view(shape[:-1])


def last_normed(maps: Maps, last: Tensor) -> Tensor:
    """What the unembedding reads of last residuals ``[…, D]``."""
    return last if maps.final is None else maps.final.affine(last, maps.final.scale(last))


def signs(observable: Observable, pairs: PromptPairs) -> np.ndarray:
    """+1 where the clean prompt is the one whose answers the observable counts for ``[prompt]``.

    Raises:
        UsageError: an observable that tells the answers of no prompt apart.
    """
    if observable.each:
        return np.ones(len(pairs))
    weight = dict(zip(observable.tokens, observable.weights, strict=True))
    out = np.zeros(len(pairs))
    for i, sides in enumerate(zip(pairs.right, pairs.wrong, strict=True)):
        for sign, side in zip((1, -1), sides, strict=True):
            out[i] += sign * sum(weight.get(t, 0.0) for t in side)
    return np.sign(out)


Rows = dict[str, tuple[tuple[str, ...], Any, str, str, int]]


def dataset(arrays: Rows, coords: dict[str, Any], **facts: Any) -> xr.Dataset:
    """``name -> (dims, values, units, long name, signed)`` as a dataset."""
    variables = {
        k: (d, v, {"units": u, "long_name": t, "signed": s})
        for k, (d, v, u, t, s) in arrays.items()
    }
    used = {d for dims, *_ in arrays.values() for d in dims}
    kept = {
        k: v
        for k, v in coords.items()
        if (v[0] if isinstance(v, tuple) and isinstance(v[0], str) else k) in used
    }
    return xr.Dataset(variables, coords=kept, attrs=facts)


def array(value: Tensor) -> np.ndarray:
    """As float64 numpy."""
    return value.detach().double().cpu().numpy()
