"""Quantities: the metrics of neural collapse, each from accumulated class statistics.

0 is collapsed unless a quantity says otherwise. Symbols: M class means, C = M − μ_G, W and b the
head, K the classes that have rows, E the simplex frame, both of Frobenius norm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from interp.methods.collapse.accumulators import Moments
from interp.methods.collapse.pairs import (
    Kernel,
    PairStatistics,
    distance_to_target,
    pair_statistics,
    unit,
)

Needs = Literal["features", "head", "ood"]


@dataclass(frozen=True)
class Quantity:
    """One metric.

    Args:
        title: words for a figure.
        needs: ``features`` alone (any layer), the ``head`` too, or ``ood`` inputs.
        citation: where it was published, a key of docs/bibliography.bib.
        signed: whether its sign means something.
        log: whether it is drawn on a logarithmic axis.
    """

    title: str
    needs: Needs
    citation: str
    signed: bool = False
    log: bool = True


def _q(title: str, citation: str, needs: Needs = "features", **more: bool) -> Quantity:
    return Quantity(title, needs, citation, **more)


QUANTITIES: dict[str, Quantity] = {
    "nc1": _q("NC1: tr(Σ_W Σ_B†)/K", "papyan2020prevalence"),
    "nc1_svd": _q("NC1, pseudo-inverse cut at K−1 directions", "han2022neural"),
    "nc1_quotient": _q("NC1: tr Σ_W / tr Σ_B", "tirer2023perturbation"),
    "cdnv": _q("class-distance normalised variance", "galanti2022role"),
    "nc2_h": _q("NC2: class means against a simplex frame", "zhu2021geometric"),
    "nc2_w": _q("NC2: classifier against a simplex frame", "zhu2021geometric", "head"),
    "nc2_h_of": _q("NC2: class means against an orthogonal frame", "dang2023neural"),
    "nc2_w_of": _q("NC2: classifier against an orthogonal frame", "dang2023neural", "head"),
    "nc2_norms": _q("NC2: spread of the class means' lengths", "papyan2020prevalence"),
    "nc2_angles": _q("NC2: deviation of the class means' angles", "papyan2020prevalence"),
    "gnc2_mean": _q("GNC2: mean kernel of pairs of class means", "wu2024linguistic",
                    signed=True, log=False),
    "gnc2_variance": _q("GNC2: variance of that kernel", "wu2024linguistic"),
    "nc3": _q("NC3: W Cᵀ against a simplex frame", "zhu2021geometric", "head"),
    "nc3_of": _q("NC3: W Mᵀ against an orthogonal frame", "dang2023neural", "head"),
    "nc3_dual": _q("NC3: classifier against class means", "papyan2020prevalence", "head"),
    "nc3_bias": _q("NC3: ‖W μ_G + b‖", "zhu2021geometric", "head"),
    "nc4": _q("NC4: nearest class mean agrees with the head (1 is collapsed)",
              "papyan2020prevalence", "head", log=False),
    "ncc_accuracy": _q("nearest class mean is right (1 is collapsed)", "galanti2022role",
                       log=False),
    "nc5": _q("NC5: |cos| of class means and the mean of other inputs", "ammar2024neco", "ood"),
}  # fmt: skip
"""Key -> what it is. ``Collapse.quantities`` takes these names."""


@dataclass(frozen=True)
class Options:
    """How quantities are taken.

    Args:
        kernel: of GNC2.
        riesz_s: its power.
        max_pairs: above so many pairs of classes a random part is looked at.
        seed: of that draw.
    """

    kernel: Kernel = "log"
    riesz_s: float = 1.0
    max_pairs: int = 10_000_000
    seed: int = 0


@dataclass
class Measured:
    """What one layer gave; ``value(name)`` is one quantity.

    Args:
        moments: class statistics of its features.
        weight: the head's weight ``[K, D]`` where these features feed the head, or None.
        bias: the head's bias ``[K]``, or None.
        ood: mean of other inputs' features ``[D]``, or None.
        options: how.
    """

    moments: Moments
    weight: Tensor | None = None
    bias: Tensor | None = None
    ood: Tensor | None = None
    options: Options = Options()

    def __post_init__(self) -> None:
        self._pairs: PairStatistics | None = None
        for name in ("weight", "bias"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.detach().double())

    @property
    def pairs(self) -> PairStatistics:
        """Pair statistics, taken once."""
        if self._pairs is None:
            o, m = self.options, self.moments
            self._pairs = pair_statistics(
                m.means.centred, m.variance, o.kernel, o.riesz_s, o.max_pairs, o.seed
            )
        return self._pairs

    def value(self, name: str) -> float:
        """One quantity; NaN where it is undefined or its needs are not met."""
        needs = QUANTITIES[name].needs
        if (needs == "head" and self.weight is None) or (needs == "ood" and self.ood is None):
            return math.nan
        if self.moments.means.rank == 0 and name != "nc3_bias":
            return math.nan
        return _TAKE[name](self)

    def values(self, names: Sequence[str]) -> dict[str, float]:
        """Several quantities."""
        return {name: self.value(name) for name in names}

    @property
    def lone(self) -> bool:
        """Whether every class has a single row, so that nothing varies within classes."""
        return bool((self.moments.means.counts <= 1).all())

    def rows(self) -> Tensor:
        """Rows of W of the classes that have samples."""
        assert self.weight is not None
        return self.weight[self.moments.means.present]


def _nc1(m: Measured, most: int | None = None) -> float:
    """(1/P) Σ_i (P/S_i²) within_i: the definition, no D×D matrix, never negative."""
    if m.lone:
        return math.nan
    sizes, within = m.moments.means.sizes[:most], m.moments.within[:most]
    return float((within / sizes.square()).sum())


def _nc1_svd(m: Measured) -> float:
    return _nc1(m, len(m.moments.means.present) - 1)


def _quotient(m: Measured) -> float:
    if m.lone:
        return math.nan
    between = float(m.moments.means.centred.square().sum()) / len(m.moments.means.present)
    return m.moments.within_trace / between


def _cdnv(m: Measured) -> float:
    return math.nan if m.lone else m.pairs.cdnv


def _norms(m: Measured) -> float:
    lengths = m.moments.means.centred.norm(dim=1)
    return float(lengths.std(correction=0) / lengths.mean())


def _nc3_dual(m: Measured) -> float:
    return float((unit(m.rows()) - unit(m.moments.means.centred)).norm())


def _nc3_bias(m: Measured) -> float:
    assert m.weight is not None
    shift = m.weight @ m.moments.means.centre
    return float((shift if m.bias is None else shift + m.bias).norm())


def _nc5(m: Measured) -> float:
    assert m.ood is not None
    here, ood = m.moments.means.here, m.ood.to(m.moments.means.centre)
    return float((here @ ood / (here.norm(dim=1) * ood.norm())).abs().mean())


def _share(hits: int, m: Measured) -> float:
    return math.nan if hits < 0 else hits / m.moments.means.n


def _w(m: Measured) -> Tensor:
    assert m.weight is not None
    return m.weight


_TAKE: dict[str, Callable[[Measured], float]] = {
    "nc1": _nc1,
    "nc1_svd": _nc1_svd,
    "nc1_quotient": _quotient,
    "cdnv": _cdnv,
    "nc2_h": lambda m: distance_to_target(m.moments.means.centred, m.moments.means.centred, "etf"),
    "nc2_w": lambda m: distance_to_target(_w(m), _w(m), "etf"),
    "nc2_h_of": lambda m: distance_to_target(m.moments.means.here, m.moments.means.here, "of"),
    "nc2_w_of": lambda m: distance_to_target(_w(m), _w(m), "of"),
    "nc2_norms": _norms,
    "nc2_angles": lambda m: m.pairs.angles,
    "gnc2_mean": lambda m: m.pairs.kernel_mean,
    "gnc2_variance": lambda m: m.pairs.kernel_variance,
    "nc3": lambda m: distance_to_target(m.rows(), m.moments.means.centred, "etf"),
    "nc3_of": lambda m: distance_to_target(m.rows(), m.moments.means.here, "of"),
    "nc3_dual": _nc3_dual,
    "nc3_bias": _nc3_bias,
    "nc4": lambda m: _share(m.moments.nearest_is_head, m),
    "ncc_accuracy": lambda m: _share(m.moments.nearest_is_label, m),
    "nc5": _nc5,
}


def default_quantities() -> tuple[str, ...]:
    """Every name."""
    return tuple(QUANTITIES)


def labels_nan(values: Tensor, present: Tensor, k: int) -> Tensor:
    """``values [P]`` at the places of the present classes, NaN elsewhere ``[K]``."""
    out = torch.full((k,), torch.nan, dtype=torch.float64)
    out[present.cpu()] = values.double().cpu()
    return out
