"""Closed forms: the best deep linear head over free features, squared loss, any class sizes.

Minimised is (1/2N)‖W_M⋯W_1 H + b1ᵀ − Y‖² + Σ_l λ_l/2 ‖W_l‖² + λ_H/2 ‖H‖² over W_l, b and the
features H of N samples in K classes (dang2023neural; dang2024neural for unequal classes). Every
direction of T Tᵀ (T the targets, centred where there is a bias) stands for itself; its strength is
the global minimum of one function, which for a deep head is not always its stationary point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.terms import UsageError


@dataclass(frozen=True)
class Optimum:
    """The global minimum.

    Args:
        sizes: n_k ``[K]``.
        eigenvalues: Λ of T Tᵀ ``[K]``, descending.
        beta: of every direction ``[K]``; infinite where Λ is 0.
        strength: σ, eigenvalues of W Wᵀ, W = W_M⋯W_1 ``[K]``.
        gram_weight: W Wᵀ ``[K, K]``.
        gram_mean: H̄ᵀH̄ of the class means ``[K, K]``.
        logits: W H̄ ``[K, K]``; without b.
        bias: b = n_k/N, zeros without a bias.
        loss: value of the objective.
        threshold: a direction with β at or above it is zero.
        stationary: up to this β there is a stationary point away from zero.
    """

    sizes: np.ndarray
    eigenvalues: np.ndarray
    beta: np.ndarray
    strength: np.ndarray
    gram_weight: np.ndarray
    gram_mean: np.ndarray
    logits: np.ndarray
    bias: np.ndarray
    loss: float
    threshold: float
    stationary: float


def threshold_of(depth: int) -> float:
    """The β at which a direction vanishes: (M−1)^((M−1)/M)/M, and 1 for M = 1."""
    return 1.0 if depth == 1 else (depth - 1) ** ((depth - 1) / depth) / depth


def stationary_of(depth: int) -> float:
    """The largest β with a stationary point: M((M−1)/(M+1))^((M−1)/M) ((M+1)/2M)²; 1 for M = 1.

    Between ``threshold_of`` and this the stationary point is only local, and zero is better.
    """
    if depth == 1:
        return 1.0
    m = depth
    return m * ((m - 1) / (m + 1)) ** ((m - 1) / m) * ((m + 1) / (2 * m)) ** 2


def psi(x: float, beta: float, depth: int) -> float:
    """ψ(x) = 1/(x^M + 1) + βx: a direction's loss over Λ/2N; ψ(0) = 1."""
    return 1 / (x**depth + 1) + beta * x


def best_root(beta: float, depth: int) -> float:
    """x ≥ 0 at the global minimum of ψ.

    M = 1: max(√(1/β) − 1, 0). M ≥ 2: the larger root of M x^(M−1)/(x^M+1)² = β, or 0 where
    β reaches the threshold.
    """
    if not beta < threshold_of(depth):
        return 0.0
    if depth == 1:
        return math.sqrt(1 / beta) - 1
    return stationary_root(beta, depth)


def stationary_root(beta: float, depth: int) -> float:
    """The larger stationary point of ψ, for M ≥ 2 and β up to ``stationary_of``; else NaN.

    Solved for u = log x, so that a tiny β overflows nothing.
    """
    from scipy.optimize import brentq

    m = depth
    if m < 2 or beta > stationary_of(m):
        return math.nan

    def slope(u: float) -> float:
        # log of M x^(M−1)/(x^M+1)², less log β
        return math.log(m) + (m - 1) * u - 2 * np.logaddexp(m * u, 0.0) - math.log(beta)

    low = math.log((m - 1) / (m + 1)) / m
    high = (math.log(m) - math.log(beta)) / (m + 1) + 1.0
    if slope(low) <= 0:
        return math.exp(low)
    top = max(high, low + 1.0)
    root: Any = brentq(slope, low, top, xtol=1e-15, rtol=np.float64(1e-15))
    return math.exp(root)


def optimum(
    sizes: Sequence[int],
    lambda_w: Sequence[float],
    lambda_h: float,
    bias: bool = False,
    width: int | None = None,
) -> Optimum:
    """The global minimum for these classes.

    Args:
        sizes: n_k, samples of every class.
        lambda_w: weight decay of each of the M linear maps.
        lambda_h: of the features.
        bias: an undecayed bias at the output.
        width: the narrowest layer; None for wide enough.

    Raises:
        UsageError: fewer than two classes, decays that are not positive, or a width below the
            rank of the targets.
    """
    n = np.asarray(sizes, float)
    k, total, m = len(n), float(n.sum()), len(lambda_w)
    if k < 2 or (n < 1).any():
        raise UsageError(
            f"Class sizes were given as {list(sizes)}; wanted at least two, each 1 or more."
        )
    if m < 1 or min(*lambda_w, lambda_h) <= 0:
        raise UsageError("Weight decays are positive, one for every linear map and one for H.")
    rank = k - 1 if bias else k
    if width is not None and width < rank:
        raise UsageError(
            f"A width of {width} is below the rank {rank} of the targets, where this form does "
            "not hold.",
            remedy=f"Give a width of {rank} or more.",
        )
    t = np.eye(k) - (n / total)[:, None] if bias else np.eye(k)
    square = np.diag(n) - np.outer(n, n) / total if bias else np.diag(n)
    values, q = np.linalg.eigh(square)
    values, q = values[::-1], q[:, ::-1]
    values = np.where(values > 1e-12 * values[0], values, 0.0)
    scale = total * lambda_h
    beta = np.full(k, np.inf)
    decay = math.exp((math.log(scale) + math.fsum(math.log(v) for v in lambda_w)) / m)
    np.divide(m * total * decay, values, out=beta, where=values > 0)
    x = np.array([best_root(b, m) for b in beta])
    sigma = scale * x**m
    share = sigma / (sigma + scale)
    loss = sum(v * psi(a, b, m) for v, a, b in zip(values, x, beta, strict=True) if v > 0) / (
        2 * total
    )
    return Optimum(
        n, values, beta, sigma,
        (q * sigma) @ q.T,
        t.T @ (q * (sigma / (sigma + scale) ** 2)) @ q.T @ t,
        (q * share) @ q.T @ t,
        n / total if bias else np.zeros(k),
        float(loss), threshold_of(m), stationary_of(m),
    )  # fmt: skip
