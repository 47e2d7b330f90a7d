"""Pairs of classes: distances, angles and Gram matrices in tiles, never a whole K×K table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TILE = 1024
"""Classes a side of a tile."""

EXACT = 4096
"""Up to so many classes a target is compared entry by entry; above, by inner products alone."""

Kernel = Literal["distance", "log", "riesz"]
Target = Literal["etf", "of"]


def unit(a: Tensor) -> Tensor:
    """A / ‖A‖_F; NaN for a zero matrix."""
    return a / a.norm()


def target_matrix(k: int, target: Target, like: Tensor | None = None) -> Tensor:
    """(I − 11ᵀ/K)/√(K−1), the simplex frame, or I/√K, the orthogonal one: norm 1 ``[K, K]``."""
    eye = torch.eye(k, dtype=torch.float64, device=None if like is None else like.device)
    return eye / math.sqrt(k) if target == "of" else (eye - 1 / k) / math.sqrt(k - 1)


def distance_to_target(a: Tensor, b: Tensor, target: Target) -> float:
    """‖unit(A Bᵀ) − T‖_F for A, B ``[K, D]``.

    Up to 4,096 classes entry by entry in tiles. Above, √(2 − 2⟨unit, T⟩), which resolves 1e-7.
    NaN where the product is zero.
    """
    k = len(a)
    if k > EXACT:
        norm = (a.T @ a * (b.T @ b)).sum().clamp(min=0).sqrt()
        inner = (a * b).sum()
        if target == "etf":
            inner = (inner - a.sum(0) @ b.sum(0) / k) / math.sqrt(k - 1)
        else:
            inner = inner / math.sqrt(k)
        return float((2 - 2 * inner / norm).clamp(min=0).sqrt())
    norm = sum((a[i : i + TILE] @ b.T).square().sum() for i in range(0, k, TILE))
    norm = torch.as_tensor(norm).sqrt()
    diagonal, off = (
        (math.sqrt(k - 1) / k, -1 / (k * math.sqrt(k - 1)))
        if target == "etf"
        else (1 / math.sqrt(k), 0.0)
    )
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for i in range(0, k, TILE):
        tile = a[i : i + TILE] @ b.T / norm - off
        rows = torch.arange(len(tile), device=a.device)
        tile[rows, rows + i] -= diagonal - off
        total += tile.square().sum()
    return float(total.sqrt())


@dataclass(frozen=True)
class PairStatistics:
    """Statistics over pairs of classes i < j.

    Args:
        cdnv: mean of (v_i + v_j) / (2‖μ_i − μ_j‖²).
        cdnv_label: for every class the mean over its pairs ``[P]``; NaN where it was in none.
        angles: mean of |cos(C_i, C_j) + 1/(K−1)|.
        kernel_mean: mean of the kernel of the normalised means' distances.
        kernel_variance: its variance.
        pairs: how many were looked at.
        sampled: whether these are a random part of all.
    """

    cdnv: float
    cdnv_label: Tensor
    angles: float
    kernel_mean: float
    kernel_variance: float
    pairs: int
    sampled: bool


def pair_statistics(
    centred: Tensor,
    variance: Tensor,
    kernel: Kernel = "log",
    riesz_s: float = 1.0,
    max_pairs: int = 10_000_000,
    seed: int = 0,
) -> PairStatistics:
    """Look at every pair of classes, or at about ``max_pairs`` if there are more.

    Args:
        centred: C ``[P, D]``, float64.
        variance: mean squared distance from the mean, by class ``[P]``.
        kernel: of the distance d of two normalised means: d, log d, or d^-s.
        riesz_s: s.
        max_pairs: above so many, random classes are drawn and held against all others.
        seed: of the draw.
    """
    p = len(centred)
    lengths = centred.norm(dim=1)
    directions = centred / lengths[:, None]
    total = p * (p - 1) // 2
    sampled = total > max_pairs
    parts = (_drawn if sampled else _bands)(centred, directions, max_pairs, seed)
    per_label = torch.zeros(p, dtype=torch.float64, device=centred.device)
    seen = torch.zeros_like(per_label)
    sums = torch.zeros(2, dtype=torch.float64, device=centred.device)
    n, mean, m2 = 0, 0.0, 0.0
    for i, j, square, cosine in parts:
        ratio = (variance[i] + variance[j]) / (2 * square)
        sums += torch.stack([ratio.sum(), (cosine + 1 / (p - 1)).abs().sum()])
        for side in (i, j):
            per_label.index_add_(0, side, ratio)
            seen.index_add_(0, side, torch.ones_like(ratio))
        values = _kernel((2 - 2 * cosine).clamp(min=0).sqrt(), kernel, riesz_s)
        n, mean, m2 = _merge(n, mean, m2, values)
    return PairStatistics(
        float(sums[0] / n), per_label / seen, float(sums[1] / n), mean, m2 / n, n, sampled
    )


def _kernel(distance: Tensor, kernel: Kernel, s: float) -> Tensor:
    if kernel == "log":
        return distance.log()
    return distance if kernel == "distance" else distance.pow(-s)


def _merge(n: int, mean: float, m2: float, values: Tensor) -> tuple[int, float, float]:
    """Chan's merge of a running mean and second moment with more values."""
    k, new = len(values), float(values.mean())
    more = float((values - new).square().sum())
    step = new - mean
    both = n + k
    return both, mean + step * k / both, m2 + more + step * step * n * k / both


Part = tuple[Tensor, Tensor, Tensor, Tensor]
"""Classes i and j, ‖C_i − C_j‖², cos(C_i, C_j) of some pairs."""


def _bands(c: Tensor, u: Tensor, most: int, seed: int) -> Iterator[Part]:
    """All pairs i < j by the Gram form, a band of rows at a time."""
    p, square = len(c), c.square().sum(1)
    rows = max(1, 2**20 // p)
    for start in range(0, p - 1, rows):
        i = torch.arange(start, min(start + rows, p), device=c.device)
        j = torch.arange(start + 1, p, device=c.device)
        a, b = (t.flatten() for t in torch.meshgrid(i, j, indexing="ij"))
        keep = b > a
        far = square[i, None] + square[j] - 2 * c[i] @ c[j].T
        yield a[keep], b[keep], far.flatten()[keep], (u[i] @ u[j].T).flatten()[keep]


def _drawn(c: Tensor, u: Tensor, most: int, seed: int) -> Iterator[Part]:
    """Some random classes, each with every other: about ``most`` pairs, one at least a class."""
    p, square = len(c), c.square().sum(1)
    dice = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(p, generator=dice)[: max(1, most // (p - 1))].to(c.device)
    everyone = torch.arange(p, device=c.device)
    for i in chosen.split(max(1, 2**20 // p)):
        keep = (i[:, None] != everyone).flatten()
        a, b = (t.flatten()[keep] for t in torch.meshgrid(i, everyone, indexing="ij"))
        far = square[i, None] + square - 2 * c[i] @ c.T
        yield a, b, far.flatten()[keep], (u[i] @ u.T).flatten()[keep]
