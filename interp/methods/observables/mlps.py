"""Mlps: the vectors that MLPs read of an observable, made linear between two classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.traces import Maps
from interp.methods.observables.inputs import Batch, Readout, array
from interp.methods.observables.reading import Standing, mlp_at, mlp_value
from interp.methods.observables.tangents import GRID, boundary
from interp.terms import Check, Context, PromptPairs

MOST_LINES = 64
"""Pairs whose own line is looked at, where the observable differs from prompt to prompt."""


KEPT = ("mlp_vector", "mlp_length", "mlp_norm", "g", "at", "same")


class Mlps:
    """Gathers what MLPs stood before at the last position, then makes them linear.

    Args:
        maps: the model.
        readout: the observable.
        sign: +1 where a pair's clean side is the observable's plus side ``[prompt]``.
        tangent: ``boundary``, ``own`` or ``mean``.
        treatment: of norms.
        below: so many layers have an MLP in front of the vector.
    """

    def __init__(
        self,
        maps: Maps,
        readout: Readout,
        sign: np.ndarray,
        tangent: str,
        treatment: str,
        below: int,
    ) -> None:
        self.maps, self.readout, self.sign = maps, readout, sign
        self.tangent, self.treatment, self.below = tangent, treatment, below
        self.rows: list[np.ndarray] = []
        self.y: list[Tensor] = []
        self.mid: list[Tensor] = []  # [2 (clean, corrupt), R, layer, D]

    def add(self, batch: Batch, at: Standing) -> None:
        """Keep one batch's vectors and MLP inputs at the last position."""
        self.rows.append(batch.rows)
        self.y.append(at.y[:, -1])
        self.mid.append(torch.stack([
            torch.stack([seen.mid[:, -1] for seen in run.layers], 1)
            for run in (batch.clean, batch.corrupt)
        ]))  # fmt: skip

    def _lines(self) -> tuple[Tensor, Tensor, Tensor]:
        """y ``[B, D]`` and the two ends ``[B, layer, D]``: one line, or one a pair."""
        order = np.argsort(np.concatenate(self.rows))
        y, mid = torch.cat(self.y)[order], torch.cat(self.mid, 1)[:, order]
        if self.readout.observable.each:
            few = slice(0, MOST_LINES)
            return y[few], mid[1][few], mid[0][few]
        sign = torch.from_numpy(self.sign).to(mid)
        plus, minus = (sign > 0)[:, None, None], (sign < 0)[:, None, None]
        count = (plus | minus).sum().clamp_min(1)
        high = torch.where(plus, mid[0], 0) + torch.where(minus, mid[1], 0)
        low = torch.where(plus, mid[1], 0) + torch.where(minus, mid[0], 0)
        if not (plus | minus).any():
            return y.mean(0)[None], mid[1].mean(0)[None], mid[0].mean(0)[None]
        return y.mean(0)[None], low.sum(0)[None] / count, high.sum(0)[None] / count

    def found(self) -> dict[str, np.ndarray]:
        """Lengths ``[layer]``, vectors ``[layer, D]``, and g along the line ``[layer, GRID]``."""
        y, low, high = self._lines()
        out: dict[str, list[Any]] = {k: [] for k in KEPT}
        for n in range(self.below):
            part = self.maps.layer(n)

            def g(x: Tensor, part: Any = part) -> Tensor:
                return mlp_value(part, y, x)

            seen = boundary(g, low[:, n], high[:, n])
            point = {
                "boundary": seen.point,
                "own": high[:, n],
                "mean": (low[:, n] + high[:, n]) / 2,
            }[self.tangent]
            vector, reach = mlp_at(part, y, point, self.treatment)
            out["mlp_vector"].append(array(vector.mean(0)))
            out["mlp_length"].append(float(vector.square().sum(-1).mean().sqrt()))
            out["mlp_norm"].append(float(reach.square().mean().sqrt()))
            out["g"].append(array(seen.curve.mean(0)))
            out["at"].append(float(seen.at.mean()))
            out["same"].append(float(seen.same_sign.double().mean()))
        return {k: np.array(v) for k, v in out.items()}

    @staticmethod
    def together(all_: list[Mlps], task: PromptPairs, context: Context) -> dict[str, Any]:
        """All observables' arrays, and the line of the panel."""
        found = [m.found() for m in all_]
        out: dict[str, Any] = {k: np.stack([f[k] for f in found]) for k in found[0]}
        if not out["same"].size:
            return {}
        out["mix"] = np.linspace(0, 1, GRID)
        if all_[0].tangent == "boundary":
            context.check(Check(
                "same_sign",
                "MLPs whose reading has one sign on both classes",
                float(out["same"].mean()),
                note="Their tangent stands half-way between the two readings, not on a boundary: "
                "their vectors say less.",
            ))  # fmt: skip
        return out
