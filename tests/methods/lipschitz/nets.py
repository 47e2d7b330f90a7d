"""Networks of the tests: random ones that are not near linear, and trained ones, once a session."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from interp.engine.affine import Network, network_of
from interp.methods.lipschitz.jacobians import JacobianBounds
from interp.methods.lipschitz.preactivations import box_around, gate_ranges, slope_ranges
from interp.models import load_model
from interp.training.plain import digits_network, leaders_network, stack

VARIANTS = ("lbp", "recurjac", "interval")


def random_stack(dims, gate=nn.ReLU, seed=0, bias=0.3):
    """Weights of spectral size about 1, biases that put many gates near 0."""
    generator = torch.Generator().manual_seed(seed)
    module = stack(dims, gate).double()
    for layer in module:
        if isinstance(layer, nn.Linear):
            width = layer.in_features
            draw = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
            layer.weight.data = draw * 1.5 / width**0.5
            layer.bias.data = bias * torch.randn(
                layer.bias.shape, generator=generator, dtype=torch.float64
            )
    return module


def wrap(module, shape):
    return load_model(module.double(), example=np.full((1, *shape), 0.5), verify=False)


def network(module, shape) -> Network:
    return network_of(wrap(module, shape), np.full((1, *shape), 0.5))


def layers_of(module):
    return [(m.weight.tolist(), m.bias.tolist()) for m in module if isinstance(m, nn.Linear)]


def eye(net: Network):
    size = net[net.output].size
    return torch.eye(size, dtype=torch.float64)[None]


def bounds(net, x, radius, *, variant="lbp", pre="crown", domain=None, seeds=None):
    """The bound of every row over a box about each x."""
    box = box_around(net.tensor(x), radius, domain)
    slopes = slope_ranges(net, gate_ranges(net, box, pre=pre))
    return JacobianBounds(net, slopes, eye(net) if seeds is None else seeds, variant)


def found(net, x, radius, n=400, seed=0):
    """Jacobians at random points and corners of a box about one x, ``[point, row, *input]``."""
    draw = np.random.default_rng(seed)
    share = draw.uniform(-1, 1, size=(n, *np.shape(x)))
    share[::4] = np.sign(share[::4])
    points = net.tensor(x + radius * share)
    points.requires_grad_(True)
    out = run(net, points)
    rows = [
        torch.autograd.grad(out[:, j].sum(), points, retain_graph=True)[0]
        for j in range(out.shape[1])
    ]
    return torch.stack(rows, 1).detach()


def run(net, x):
    """The module itself, by torch's own autograd."""
    return net_modules[id(net)](x)


net_modules: dict[int, nn.Module] = {}


def paired(module, shape):
    """The network of a module, which ``found`` differentiates by torch."""
    net = network(module, shape)
    net_modules[id(net)] = module.double().eval()
    keep.append(net)
    return net


keep: list[Network] = []


class ResNet(nn.Module):
    """Convolutions, batch norm with running statistics, functional calls, a sum at the input."""

    def __init__(self, seed=0, gate="relu"):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.kernel = nn.Parameter(torch.randn(4, 2, 1, 1))
        self.last = nn.Linear(4 * 3 * 3, 3)
        self.gate = gate
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.5, 0.5)
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.weight.uniform_(-1.5, 1.5)
            self.norm.bias.uniform_(-0.5, 0.5)
        self.double().eval()

    def forward(self, x):
        h = self.norm(self.first(x))
        h = F.leaky_relu(h, 0.1) if self.gate == "leaky" else getattr(torch, self.gate)(h)
        h = self.inner(h) + F.conv2d(x, self.kernel)
        h = F.relu(h)
        h = F.max_pool2d(h, 2) if self.gate != "tanh" else F.avg_pool2d(h, 2)
        h = torch.flatten(F.dropout(h, 0.5, self.training), 1)
        return self.last(h)


class Residual(nn.Module):
    """x + g(x), twice: the sum stands at the input."""

    def __init__(self, width=6, seed=0, blocks=1):
        super().__init__()
        self.blocks = nn.ModuleList(
            random_stack((width, 12, width), seed=seed + k) for k in range(blocks)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


@cache
def leaders(*dims):
    return leaders_network(dims)


@cache
def digits():
    return digits_network()
