"""CollapseTheory: the geometry that free features and a deep linear head reach, in closed form."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field

from interp.methods.collapse.unconstrained import Optimum, best_root, optimum
from interp.terms import Check, Context, Method, ResultRef, UsageError

SHARES = np.geomspace(0.005, 0.5, 31)
"""Shares of the samples on the threshold map."""


class CollapseTheory(Method):
    """Unconstrained features under squared loss: where a deep linear head and H end, exactly.

    min (1/2N)‖W_M⋯W_1 H + b1ᵀ − Y‖² + Σ λ_l/2 ‖W_l‖² + λ_H/2 ‖H‖². Features collapse to their class
    means; every direction of the targets has its own strength, and a direction whose class is too
    small for the decay is zero (minority collapse). The threshold is that of the *global* minimum,
    β ≥ (M−1)^((M−1)/M)/M; between it and the last stationary point a solution exists that is only
    local.
    """

    title: ClassVar[str] = "Neural collapse in closed form"
    question: ClassVar[str] = "Which geometry is optimal for these class sizes and decays?"
    citations: ClassVar[tuple[str, ...]] = (
        "dang2023neural", "dang2024neural", "tirer2023perturbation",
    )  # fmt: skip

    n_per_label: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(50, 25, 12, 13), min_length=2, max_length=200
    )
    """Samples of every class."""
    depth: Annotated[int, Field(ge=1, le=64)] = 1
    """Linear maps in the head (M)."""
    lambda_w: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(5e-4,), min_length=1)
    """Weight decay of the linear maps: one for all, or one each."""
    lambda_h: Annotated[float, Field(gt=0)] = 5e-4
    """Decay of the features."""
    bias: bool = False
    """A bias at the output, without decay."""
    width: Annotated[int, Field(ge=1)] | None = None
    """Width of the narrowest layer; wide enough if empty."""
    measured: ResultRef | None = None
    """A Collapse result whose lengths are set beside the theory's."""

    def measure(self, model: None, task: None, context: Context) -> xr.Dataset:
        """Gram matrices ``[label, label_b]``, lengths ``[label]``, ``length_map[share, decay]``."""
        decays = self.lambda_w if len(self.lambda_w) > 1 else self.lambda_w * self.depth
        if len(decays) != self.depth:
            raise UsageError(
                f"{len(self.lambda_w)} weight decays were given for {self.depth} linear maps.",
                remedy="Give one for all, or one each.",
            )
        best = optimum(self.n_per_label, decays, self.lambda_h, self.bias, self.width)
        found = {**self._beside(best, context), **self._map(best), **_lengths(best)}
        found |= {**_directions(best), **_gram(best)}
        labels = list(range(len(best.sizes)))
        data = xr.Dataset(
            {k: (d, v, {"units": u, "long_name": t, "signed": s, **more})
             for k, (d, v, u, t, s, more) in found.items()},
            attrs={
                "loss": best.loss, "threshold": best.threshold, "stationary": best.stationary,
                "depth": self.depth,
            },
        )  # fmt: skip
        coords: dict[str, Any] = {d: labels for d in ("label", "label_b")}
        coords["bound"] = ["theory", "measured"]
        coords |= {
            "component": labels, "share": [float(f"{s:.3g}") for s in SHARES],
            "decay": [float(f"{d:.3g}") for d in self._decays()],
        }  # fmt: skip
        self._check(best, context)
        context.advance(1, 1)
        return data.assign_coords({k: v for k, v in coords.items() if k in data.dims})

    def _decays(self) -> np.ndarray:
        """Decays on the map: about the geometric mean of the ones given."""
        middle = float(np.exp(np.mean(np.log([*self.lambda_w, self.lambda_h]))))
        return np.geomspace(middle / 100, middle * 100, 33)

    def _map(self, best: Optimum) -> dict[str, Any]:
        """Length of a class mean, over its share of N samples and one decay for all."""
        total, m = float(best.sizes.sum()), self.depth
        out = np.zeros((len(SHARES), len(self._decays())))
        for i, share in enumerate(SHARES):
            for j, decay in enumerate(self._decays()):
                scale = total * decay
                beta = m * total * (scale * decay**m) ** (1 / m) / (share * total)
                sigma = scale * best_root(beta, m) ** m
                out[i, j] = np.sqrt(sigma) / (sigma + scale)
        out[out == 0] = np.nan
        note = {"undefined": "zero: the class has collapsed into the origin"}
        title = f"length of a class mean, {int(total)} samples, no bias"
        return {"length_map": (("share", "decay"), out, "1", title, 0, note)}

    def _beside(self, best: Optimum, context: Context) -> dict[str, Any]:
        """Theory and measurement of the lengths, as shares of their own sum."""
        if self.measured is None:
            return {}
        data = context.result(str(self.measured)).data
        out: dict[str, Any] = {}
        for name, square in (("mean_length", best.gram_mean), ("weight_length", best.gram_weight)):
            if name not in data:
                continue
            seen = np.asarray(data[name].values, float)
            if len(seen) != len(square):
                raise UsageError(
                    f"The result has {len(seen)} classes and the theory {len(square)}.",
                    remedy="Give n_per_label with as many numbers.",
                )
            told = np.sqrt(np.diag(square).clip(0))
            both = np.stack([told / np.nanmean(told), seen / np.nanmean(seen)])
            title = data[name].attrs["long_name"] + ", over their mean"
            out[f"{name}_beside"] = (("bound", "label"), both, "1", title, 0, {})
        return out

    def _check(self, best: Optimum, context: Context) -> None:
        dead = int((best.strength[best.eigenvalues > 0] == 0).sum())
        context.check(Check(
            "directions_lost", "directions of the targets that are zero at the optimum", dead,
            note=f"A direction is lost where β ≥ {best.threshold:.4f}; up to {best.stationary:.4f} "
            "a solution with it exists that is only a local minimum.",
        ))  # fmt: skip
        gap = _stationarity(best, self)
        context.check(Check(
            "balance", "λ_H H̄ N Hᵀ against λ W Wᵀ: trace by trace", gap, 1e-8,
            note="At a minimum every map and the features carry the same decayed energy.",
        ))  # fmt: skip


def _stationarity(best: Optimum, spec: CollapseTheory) -> float:
    """|λ_H ‖H‖² − λ_l ‖W_l‖²| relative; ‖W_l‖² follows from the strengths."""
    m = spec.depth
    decays = spec.lambda_w if len(spec.lambda_w) > 1 else spec.lambda_w * m
    energy_h = spec.lambda_h * float((best.sizes * np.diag(best.gram_mean)).sum())
    # Equal energies e a direction: Π(e/λ_l) = σ, so e = (σ Π λ_l)^(1/M).
    energy_w = float(((best.strength * np.prod(decays)) ** (1 / m)).sum())
    return abs(energy_h - energy_w) / max(energy_h, energy_w, 1e-300)


def _gram(best: Optimum) -> dict[str, Any]:
    pair = ("label", "label_b")
    return {
        "gram": (pair, best.gram_mean, "1", "Gram matrix of the class means", 1, {}),
        "gram_weight": (
            pair,
            best.gram_weight,
            "1",
            "Gram matrix of the classifier W_M⋯W_1",
            1,
            {},
        ),
        "logits": (pair, best.logits, "1", "logits of the class means, without the bias", 1, {}),
    }


def _lengths(best: Optimum) -> dict[str, Any]:
    one = ("label",)
    return {
        "class_size": (one, best.sizes, "samples", "samples of the class", 0, {}),
        "mean_length": (one, np.sqrt(np.diag(best.gram_mean).clip(0)), "1",
                        "length of the class mean", 0, {}),
        "weight_length": (one, np.sqrt(np.diag(best.gram_weight).clip(0)), "1",
                          "length of the classifier row", 0, {}),
        **({"output_bias": (one, best.bias, "1", "bias of the output", 0, {})}
           if best.bias.any() else {}),
    }  # fmt: skip


def _directions(best: Optimum) -> dict[str, Any]:
    beta = np.where(np.isfinite(best.beta), best.beta, np.nan)
    why = {"undefined": "the targets do not have this direction"}
    return {
        "strength": (("component",), best.strength, "1", "strength σ of each direction", 0, {}),
        "beta": (("component",), beta, "1", f"β of each direction (lost from "
                 f"{best.threshold:.4f})", 0, why),
    }  # fmt: skip
