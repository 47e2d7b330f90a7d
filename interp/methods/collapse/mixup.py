"""Closed forms: where features of mixed inputs end, cross-entropy on a centred simplex frame.

Classifier rows w_k are a centred simplex with ‖w_k‖² = s; a feature h of its own minimises
CE(W h, y) + λ_H/2 ‖h‖² for the mixed target y (the setting of fisher2024pushing; constants are
derived here). Under squared loss h is linear in y, so nothing deviates.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from interp.terms import UsageError


def same_class(k: int, s: float, lambda_h: float) -> float:
    """a of h = a·w_i for two inputs of one class: a λ_H (K−1)/K = 1 − p_i. Does not know the mix.

    Raises:
        UsageError: fewer than two classes, or sizes that are not positive.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    _sizes(k, s, lambda_h, 2)

    def slope(a: float) -> float:
        # 1 − p_i = (K−1)/(K−1+e^z), as a logistic, so that e^z overflows nothing
        wrong = expit(math.log(k - 1) - a * s * k / (k - 1))
        return a * lambda_h * (k - 1) / k - wrong

    root: Any = brentq(slope, 0.0, k / ((k - 1) * lambda_h), xtol=1e-15, rtol=np.float64(1e-14))
    return float(root)


def different_classes(k: int, s: float, lambda_h: float, mix: float) -> tuple[float, float]:
    """α, β of h = α w_i + β w_j for the target mix·e_i + (1 − mix)·e_j, K ≥ 3.

    α λ_H = mix − p_i + q and β λ_H = 1 − mix − p_j + q, q the probability of each other class.
    Newton's method on the convex loss in the plane of w_i and w_j.

    Raises:
        UsageError: fewer than three classes, or sizes that are not positive.
    """
    _sizes(k, s, lambda_h, 3)
    gram = s * np.array([[1.0, -1 / (k - 1)], [-1 / (k - 1), 1.0]])
    # Logits of i, j and of each of the k − 2 others, linear in (α, β).
    logits = np.vstack([gram, -s / (k - 1) * np.ones((1, 2))])
    target = np.array([mix, 1 - mix, 0.0])
    count = np.array([1.0, 1.0, k - 2.0])

    def loss(x: np.ndarray) -> float:
        z = logits @ x
        top = z.max()
        total = top + math.log(float(count @ np.exp(z - top)))
        return total - float(target @ z) + lambda_h / 2 * float(x @ gram @ x)

    a = same_class(k, s, lambda_h)
    x = np.array([mix * a, (1 - mix) * a])
    for _ in range(200):
        z = logits @ x
        p = np.exp(z - z.max())
        p = p / (count @ p)
        slope = logits.T @ (count * p - target) + lambda_h * gram @ x
        mean = logits.T @ (count * p)
        curve = logits.T @ ((count * p)[:, None] * logits) - np.outer(mean, mean)
        step = np.linalg.solve(curve + lambda_h * gram, slope)
        size, now = 1.0, loss(x)
        while loss(x - size * step) > now + 1e-15 and size > 1e-8:
            size /= 2
        x = x - size * step
        if np.abs(step).max() < 1e-14 * max(1.0, np.abs(x).max()):
            break
    return float(x[0]), float(x[1])


def length(k: int, s: float, alpha: float, beta: float) -> float:
    """‖α w_i + β w_j‖ on the simplex."""
    return math.sqrt(max(0.0, s * (alpha**2 + beta**2 - 2 * alpha * beta / (k - 1))))


def deviation(k: int, s: float, lambda_h: float, mix: float) -> float:
    """‖h − (mix·a w_i + (1−mix)·a w_j)‖ over the length of the latter."""
    a = same_class(k, s, lambda_h)
    alpha, beta = different_classes(k, s, lambda_h, mix)
    straight = length(k, s, mix * a, (1 - mix) * a)
    return length(k, s, alpha - mix * a, beta - (1 - mix) * a) / straight


def decay_of(k: int, s: float, a: float) -> float:
    """λ_H at which a feature of one class has amplitude ``a``; the inverse of ``same_class``."""
    from scipy.special import expit

    return float(expit(math.log(k - 1) - a * s * k / (k - 1)) * k / ((k - 1) * a))


def _sizes(k: int, s: float, lambda_h: float, least: int) -> None:
    if k < least:
        raise UsageError(f"{k} classes were given; this form wants {least} or more.")
    if not (s > 0 and lambda_h > 0):
        raise UsageError(f"s = {s} and λ_H = {lambda_h} were given; wanted positive numbers.")
