"""Networks that the linear interpreter's tests freeze: written by hand, with functional calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNITS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "silu_inplace": lambda x: F.silu(x, inplace=True),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "elu": F.elu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "relu6": lambda x: F.relu6(8 * x),
    "clamp": lambda x: x.clamp(-0.2, 0.3),
}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda c: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "group": lambda c: nn.GroupNorm(2, c),
    "layer": lambda c: nn.LayerNorm((c, 6, 6)),
}


class Residual(nn.Module):
    """A small ResNet with functional activations and ``+``."""

    def __init__(self, unit: str = "relu", norm: str = "batch", bias: bool = True) -> None:
        super().__init__()
        self.unit, make = UNITS[unit], NORMS[norm]
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=bias)
        self.norm1 = make(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.norm2 = make(4)
        self.head = nn.Linear(36, 5, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.unit(self.norm1(self.conv1(x)))
        h = self.unit(h + self.norm2(self.conv2(h)))
        return self.head(F.max_pool2d(h, 2).flatten(1))


class Odds(nn.Module):
    """Constants and products of every kind: sums, joins, gates, a glu, a filled mask."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.gate = nn.Linear(6, 8), nn.Linear(6, 8)
        self.place = nn.Parameter(torch.randn(8))
        self.token = nn.Parameter(torch.randn(1, 4))
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.gate(x)) * self.into(x)
        h = 0.7 - (h + self.place)
        h += 0.3
        h = F.glu(torch.cat([h, h.flip(1)], 1), 1)
        h = torch.cat([self.token.expand(len(x), 4) * 1.5, h[:, :6]], 1)
        h = h.masked_fill(torch.arange(10) == 3, 0.4)
        return F.log_softmax(self.out(torch.maximum(h, torch.tensor(-0.3, dtype=x.dtype))), 1)


def hard(module: nn.Module, seed: int = 0) -> Any:
    """Float64, in eval mode, with biases, gains and running statistics that matter."""
    torch.manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, dtype=torch.float64) * (0.6 if p.dim() > 1 else 0.8))
            if p.dim() == 1:
                p.add_(0.3)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
                part.running_mean.normal_()  # type: ignore[union-attr]
                part.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return module.eval()


def pictures(n: int = 3, seed: int = 1) -> Tensor:
    return torch.rand(
        n, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
