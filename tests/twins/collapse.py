"""The slow references of neural collapse: loops, float64, explicit pseudo-inverse. No interp.

Formulas of papyan2020prevalence, zhu2021geometric, galanti2022role, tirer2023perturbation,
wu2024linguistic, dang2023neural; the unconstrained objective is minimised by L-BFGS.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor


def class_rows(h: np.ndarray, y: np.ndarray) -> dict[int, np.ndarray]:
    return {k: h[y == k] for k in sorted(set(y.tolist()))}


def frame(k: int, target: str) -> np.ndarray:
    if target == "of":
        return np.eye(k) / math.sqrt(k)
    return (np.eye(k) - np.ones((k, k)) / k) / math.sqrt(k - 1)


def against(gram: np.ndarray, target: str) -> float:
    return float(np.linalg.norm(gram / np.linalg.norm(gram) - frame(len(gram), target)))


def metrics(h, y, weight=None, bias=None, center="class", ood=None):
    """Every metric from its definition; classes without rows are left out."""
    h, y = np.asarray(h, float), np.asarray(y)
    rows = class_rows(h, y)
    labels = list(rows)
    k, n = len(labels), len(h)
    means = np.array(
        [np.array([sum(c) for c in zip(*rows[c], strict=True)]) / len(rows[c]) for c in labels]
    )
    centre = means.mean(0) if center == "class" else h.mean(0)
    c = means - centre
    within = np.zeros((h.shape[1], h.shape[1]))
    for i in range(n):
        d = h[i] - means[labels.index(y[i])]
        within += np.outer(d, d) / n
    between = c.T @ c / k
    out = {
        "nc1": float(np.trace(within @ np.linalg.pinv(between, rcond=1e-12)) / k),
        "nc1_quotient": float(np.trace(within) / np.trace(between)),
        "nc2_h": against(c @ c.T, "etf"),
        "nc2_h_of": against(means @ means.T, "of"),
    }
    out["nc1_svd"] = out["nc1"]
    spread = {
        a: float(np.mean([np.sum((x - means[i]) ** 2) for x in rows[a]]))
        for i, a in enumerate(labels)
    }
    ratio, angle, logs = [], [], []
    for i, j in itertools.combinations(range(k), 2):
        far = float(np.sum((means[i] - means[j]) ** 2))
        ratio.append((spread[labels[i]] + spread[labels[j]]) / (2 * far))
        cosine = float(c[i] @ c[j] / np.linalg.norm(c[i]) / np.linalg.norm(c[j]))
        angle.append(abs(cosine + 1 / (k - 1)))
        u, v = c[i] / np.linalg.norm(c[i]), c[j] / np.linalg.norm(c[j])
        logs.append(math.log(np.linalg.norm(u - v)))
    lengths = [float(np.linalg.norm(r)) for r in c]
    out |= {
        "cdnv": sum(ratio) / len(ratio),
        "nc2_angles": sum(angle) / len(angle),
        "nc2_norms": float(np.std(lengths) / np.mean(lengths)),
        "gnc2_mean": float(np.mean(logs)),
        "gnc2_variance": float(np.var(logs)),
    }
    nearest = [labels[int(np.argmin([np.sum((x - m) ** 2) for m in means]))] for x in h]
    out["ncc_accuracy"] = float(np.mean([a == b for a, b in zip(nearest, y, strict=True)]))
    if weight is not None:
        w = np.asarray(weight, float)
        b = np.zeros(len(w)) if bias is None else np.asarray(bias, float)
        own = w[labels]
        said = [int(np.argmax(w @ x + b)) for x in h]
        out |= {
            "nc2_w": against(w @ w.T, "etf"),
            "nc2_w_of": against(w @ w.T, "of"),
            "nc3": against(own @ c.T, "etf"),
            "nc3_of": against(own @ means.T, "of"),
            "nc3_dual": float(np.linalg.norm(own / np.linalg.norm(own) - c / np.linalg.norm(c))),
            "nc3_bias": float(np.linalg.norm(w @ centre + b)),
            "nc4": float(np.mean([a == b for a, b in zip(nearest, said, strict=True)])),
        }
    if ood is not None:
        out["nc5"] = float(
            np.mean([abs(m @ ood) / np.linalg.norm(m) / np.linalg.norm(ood) for m in means])
        )
    return out


def free_features(sizes, lambda_w, lambda_h, bias, width=8, seed=0, steps=4000):
    """Minimise the objective itself over W_l, H and b: W Wᵀ, H̄ᵀH̄, W H̄, b and the loss."""
    torch.manual_seed(seed)
    n, k = sum(sizes), len(sizes)
    y = torch.repeat_interleave(torch.arange(k), torch.tensor(sizes))
    target = torch.eye(k, dtype=torch.float64)[y].T
    widths = [width] * len(lambda_w) + [k]
    maps = [
        torch.randn(widths[i + 1], widths[i], dtype=torch.float64).mul_(0.6).requires_grad_()
        for i in range(len(lambda_w))
    ]
    h = torch.randn(width, n, dtype=torch.float64).mul_(0.6).requires_grad_()
    b = torch.zeros(k, dtype=torch.float64, requires_grad=bias)

    def product() -> Tensor:
        out = maps[0]
        for m in maps[1:]:
            out = m @ out
        return out

    def loss() -> Tensor:
        fit = (product() @ h + b[:, None] - target).square().sum() / (2 * n)
        decay = sum(a / 2 * m.square().sum() for a, m in zip(lambda_w, maps, strict=True))
        return fit + decay + lambda_h / 2 * h.square().sum()

    parts = [*maps, h, *([b] if bias else [])]
    best = torch.optim.LBFGS(
        parts,
        max_iter=steps,
        history_size=60,
        tolerance_grad=1e-13,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        best.zero_grad()
        value = loss()
        value.backward()
        return value

    best.step(closure)
    with torch.no_grad():
        w = product()
        means = torch.stack([h[:, y == c].mean(1) for c in range(k)], 1)
        spread = max(float((h[:, y == c] - means[:, [c]]).abs().max()) for c in range(k))
        return {
            "gram_weight": w @ w.T,
            "gram_mean": means.T @ means,
            "logits": w @ means,
            "bias": b.detach(),
            "weight": w,
            "features": h.T,
            "labels": y,
            "loss": float(loss()),
            "spread": spread,
        }


def mixed_feature(k, s, lambda_h, i, j, mix, steps=2000):
    """Minimise CE(W h, y) + λ_H/2 ‖h‖² for one feature on a centred simplex; α, β of the result."""
    w = math.sqrt(s * k / (k - 1)) * (torch.eye(k, dtype=torch.float64) - 1 / k)
    target = torch.zeros(k, dtype=torch.float64)
    target[i] += mix
    target[j] += 1 - mix
    h = torch.zeros(k, dtype=torch.float64, requires_grad=True)
    best = torch.optim.LBFGS(
        [h],
        max_iter=steps,
        tolerance_grad=1e-14,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        best.zero_grad()
        value = -(target * (w @ h).log_softmax(0)).sum() + lambda_h / 2 * h.square().sum()
        value.backward()
        return value

    best.step(closure)
    found = h.detach()
    if i == j:
        return float(found @ w[i] / s), 0.0
    pair = torch.stack([w[i], w[j]], 1)
    alpha, beta = torch.linalg.lstsq(pair, found[:, None]).solution[:, 0].tolist()
    return alpha, beta
