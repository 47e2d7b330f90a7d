"""Features and networks that the tests of neural collapse share."""

from __future__ import annotations

import torch
from torch import nn

from interp.methods.collapse.accumulators import MeanCounter, OnePass, SpreadCounter
from interp.methods.collapse.quantities import Measured


def frame(k: int, width: int, target: str, seed: int = 0) -> torch.Tensor:
    """Class means that are a perfect frame ``[K, D]``, in a random rotation."""
    torch.manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0][:k]
    middle = 1 / k if target == "etf" else 0.0
    return (torch.eye(k, dtype=torch.float64) - middle) @ turn


def blobs(means, n, spread, offset=0.0, seed=1, shares=None):
    """Rows about class means: features ``[N, D]`` and labels."""
    torch.manual_seed(seed)
    k = len(means)
    y = torch.arange(n) % k if shares is None else torch.multinomial(shares, n, replacement=True)
    return means[y] + spread * torch.randn(n, means.shape[1], dtype=torch.float64) + offset, y


def measured(h, y, k, weight=None, bias=None, center="class", batch=64, one_pass=False, **more):
    """The fast metrics of features given whole, fed in batches."""
    parts = list(zip(h.split(batch), y.split(batch), strict=True))
    if one_pass:
        once = OnePass(k, h.shape[1])
        for part in parts:
            once.add(*part)
        return Measured(once.moments(center), weight, bias, **more)
    means = MeanCounter(k, h.shape[1])
    for part in parts:
        means.add(*part)
    spread = SpreadCounter(means.means(center), weight, bias)
    for part in parts:
        spread.add(*part)
    return Measured(spread.moments(), weight, bias, **more)


def small_net(seed: int = 0, bias: bool = True, depth: int = 1) -> nn.Sequential:
    """A net of 64 inputs and 10 outputs with dropout and batch norm, head of some linear maps."""
    torch.manual_seed(seed)
    head = [nn.Linear(16, 16, bias=False) for _ in range(depth - 1)]
    return nn.Sequential(
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.BatchNorm1d(32),
        nn.Dropout(0.5),
        nn.Linear(32, 16),
        nn.Tanh(),
        *head,
        nn.Linear(16, 10, bias=bias),
    )
