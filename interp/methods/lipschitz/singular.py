"""The largest singular value of a Jacobian at data, by Lanczos on products with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-30


@dataclass(frozen=True)
class Top:
    """What Lanczos found, one entry a row of the batch.

    Args:
        value: the largest singular value, from below.
        vector: its right singular vector, ``[row, *shape]``.
        residual: ‖JᵀJ v - σ² v‖ / σ²: how far from converged.
    """

    value: Tensor
    vector: Tensor
    residual: Tensor


def products(y: Tensor, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """v -> J v and u -> Jᵀ u for J = ∂y/∂x, both already computed with a graph between them.

    J v comes from the graph of Jᵀ u, which is linear in u, so that no forward-mode rule is needed.
    """
    u = torch.zeros_like(y, requires_grad=True)
    (back,) = torch.autograd.grad(y, x, u, create_graph=True, retain_graph=True)

    def forward(v: Tensor) -> Tensor:
        return torch.autograd.grad(back, u, v, retain_graph=True)[0]

    def backward(w: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, w, retain_graph=True)[0]

    return forward, backward


def top_singular(y: Tensor, x: Tensor, steps: int, generator: torch.Generator) -> Top:
    """σ_max of ∂y/∂x, row by row of the batch (rows must not mix).

    Lanczos on JᵀJ with full reorthogonalisation; it converges from below.

    Args:
        y: ``[row, …]``.
        x: ``[row, …]``, in the graph of y.
        steps: products with JᵀJ.
        generator: of the first vector.
    """
    forward, backward = products(y, x)
    n = len(x)
    steps = min(steps, x[0].numel())
    start = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    basis = [_unit(start.reshape(n, -1))]
    alphas, betas = [], []
    for k in range(steps):
        w = backward(forward(basis[-1].reshape(x.shape))).reshape(n, -1)
        alphas.append((w * basis[-1]).sum(-1))
        for _ in range(2):
            for q in basis:
                w = w - (w * q).sum(-1, keepdim=True) * q
        betas.append(w.norm(dim=-1))
        if k + 1 < steps:
            basis.append(_unit(w))
    return _ritz(torch.stack(alphas, -1), torch.stack(betas, -1), torch.stack(basis, -1), x.shape)


def _unit(w: Tensor) -> Tensor:
    return w / w.norm(dim=-1, keepdim=True).clamp(min=TINY)


def _ritz(alphas: Tensor, betas: Tensor, basis: Tensor, shape: torch.Size) -> Top:
    """The largest eigenpair of the tridiagonal matrix and what it says of the operator."""
    alphas, betas = alphas.double(), betas.double()
    scale = alphas.abs().amax(-1, keepdim=True).clamp(min=TINY)
    betas = torch.where(betas > 1e-12 * scale, betas, torch.zeros_like(betas))
    t = torch.diag_embed(alphas)
    t = t + torch.diag_embed(betas[:, :-1], 1) + torch.diag_embed(betas[:, :-1], -1)
    values, vectors = torch.linalg.eigh(t)
    top, weights = values[:, -1].clamp(min=0), vectors[:, :, -1]
    vector = (basis * weights[:, None].to(basis)).sum(-1).reshape(shape)
    residual = (betas[:, -1] * weights[:, -1].abs()) / top.clamp(min=TINY)
    return Top(top.sqrt(), vector, residual)
