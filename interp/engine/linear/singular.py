"""Singular vectors of F, each with a certificate: dense where F is small, else by products alone.

``certificate_i = max(‖F v_i - σ_i u_i‖, ‖Fᵀ u_i - σ_i v_i‖)``: a true singular value of F lies
within it of σ_i. It does not prove that none larger was missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from interp.engine.linear.frozen import Frozen

DENSE = 5_000_000
"""Entries of F up to which all its rows are made."""

Solver = Literal["auto", "dense", "lanczos"]


@dataclass(frozen=True)
class Singular:
    """Singular triples of one input's F, largest first.

    Args:
        values: σ ``[mode]``.
        inputs: right vectors, eigen-inputs ``[mode, *in]``.
        outputs: left vectors, eigen-outputs ``[mode, *out]``.
        certificate: see this file's head, ``[mode]``.
        rank: numerical rank, NaN where F was not made.
        spread: (Σσ)²/Σσ², how many directions share the work, NaN likewise.
        solver: ``dense`` or ``lanczos``.
        products: products with F and Fᵀ that it took, without the certificate's.
    """

    values: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray
    certificate: np.ndarray
    rank: float
    spread: float
    solver: str
    products: int


def singular(frozen: Frozen, k: int, solver: Solver = "auto", seed: int = 0) -> Singular:
    """The ``k`` largest singular triples of F at a single input.

    Args:
        frozen: a batch of one.
        k: how many; clipped to min(inputs, outputs).
        solver: ``auto`` makes F where it has at most ``DENSE`` entries.
        seed: of the first vector.
    """
    assert frozen.rows == 1, "one input at a time has an F"
    least = min(frozen.inputs, frozen.outputs)
    k = min(k, least)
    small = frozen.inputs * frozen.outputs <= DENSE
    # svds wants k below the smaller side
    if solver == "dense" and small or (solver == "auto" and small) or k >= least:
        found = _dense(frozen, k)
    else:
        found = _lanczos(frozen, k, seed)
    u, sigma, v, rank, spread, name, products = found
    x, y = frozen.x, frozen.y
    inputs = torch.as_tensor(v, dtype=x.dtype, device=x.device).reshape(k, *x.shape[1:])
    outputs = torch.as_tensor(u, dtype=y.dtype, device=y.device).reshape(k, *y.shape[1:])
    return Singular(
        sigma, inputs.cpu().numpy(), outputs.cpu().numpy(),
        certificate(frozen, sigma, inputs, outputs), rank, spread, name, products,
    )  # fmt: skip


def certificate(frozen: Frozen, sigma: np.ndarray, inputs: Tensor, outputs: Tensor) -> np.ndarray:
    """How far each triple is from being one of F, by its own two products; ``[mode]``."""
    back, _ = frozen.pulls(outputs[:, None])
    out = []
    for i, value in enumerate(sigma.tolist()):
        forward = frozen.push(inputs[i][None])[0] - value * outputs[i]
        backward = back[i, 0] - value * inputs[i]
        out.append(max(float(forward.norm()), float(backward.norm())))
    return np.array(out)


def _dense(frozen: Frozen, k: int) -> tuple:
    matrix = frozen.matrix()[0].double()
    u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    values = sigma.cpu().numpy()
    eps = torch.finfo(frozen.x.dtype).eps
    floor = max(matrix.shape) * eps * (values[0] if len(values) else 0.0)
    rank = float((values > floor).sum())
    total = float((values**2).sum())
    spread = float(values.sum() ** 2 / total) if total > 0 else float("nan")
    return (
        u[:, :k].T.cpu().numpy(), values[:k], vt[:k].cpu().numpy(), rank, spread, "dense",
        len(matrix),
    )  # fmt: skip


def _lanczos(frozen: Frozen, k: int, seed: int) -> tuple:
    from scipy.sparse.linalg import LinearOperator, svds

    x, y, count = frozen.x, frozen.y, [0]

    def forward(u: np.ndarray) -> np.ndarray:
        count[0] += 1
        given = torch.as_tensor(u.reshape(x.shape), dtype=x.dtype, device=x.device)
        return frozen.push(given).double().cpu().numpy().ravel()

    def backward(v: np.ndarray) -> np.ndarray:
        count[0] += 1
        given = torch.as_tensor(v.reshape(y.shape), dtype=y.dtype, device=y.device)
        return frozen.pull(given).double().cpu().numpy().ravel()

    made: Any = LinearOperator
    operator = made(
        (frozen.outputs, frozen.inputs), matvec=forward, rmatvec=backward, dtype=np.float64
    )
    start = np.random.default_rng(seed).normal(size=min(frozen.outputs, frozen.inputs))
    found: Any = svds(operator, k=k, v0=start)
    u, sigma, vt = found
    order = np.argsort(-sigma)
    return (
        u[:, order].T, sigma[order], vt[order], float("nan"), float("nan"), "lanczos", count[0]
    )  # fmt: skip
