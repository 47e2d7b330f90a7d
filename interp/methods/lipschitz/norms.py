"""Operator norms of layers, their products, and ECLipsE-Fast: global bounds.

A convolution with zero padding has its norm exactly from its matrix where that is small, else the
least of three bounds: the Fourier transform on a torus wide enough that zero padding is its
restriction (sedghi2019singular), √(k_h k_w) times the norm of the kernel as a matrix, and the root
of row sum times column sum. The norm of the reshaped kernel by itself is no bound. Large dense
layers are bounded by Gram iteration (delattre2023efficient).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.engine.affine import STEEPEST, Affine, Network, Part, dense_if_small
from interp.terms import CapabilityError

Kind = Literal["2", "inf"]
GRAM_STEPS = 6
MOST_DENSE = 4_000_000
"""Entries of a matrix whose norm is computed outright."""


@dataclass(frozen=True)
class LayerNorm:
    """The norm of one linear part.

    Args:
        name: the part's path, or its name.
        value: the norm, or a bound of it.
        exact: whether it is the norm itself.
        how: how it was found.
    """

    name: str
    value: float
    exact: bool
    how: str


@dataclass(frozen=True)
class Product:
    """A bound of the whole network and the layers' norms it is made of."""

    value: float
    layers: tuple[LayerNorm, ...]

    @property
    def exact(self) -> bool:
        """Whether it is the constant itself: one layer, and its norm is exact."""
        return len(self.layers) == 1 and self.layers[0].exact


def spectral(matrix: Tensor) -> float:
    """The largest singular value."""
    return float(torch.linalg.matrix_norm(matrix.detach().double(), ord=2))


def conv_fourier(weight: Tensor, size: tuple[int, ...], dilation: tuple[int, ...] = ()) -> float:
    """A bound for zero padding and any stride: the largest σ over a torus of n + k - 1.

    Args:
        weight: ``[out, in, *kernel]``.
        size: spatial size of the input; on a torus wider by the kernel nothing wraps round, so
            the layer is a restriction of the one there.
        dilation: of the kernel (1 by default).
    """
    dims = tuple(range(2, weight.dim()))
    weight = weight.detach().double()
    for axis, step in zip(dims, dilation, strict=False):
        weight = _spread(weight, axis, step)
    wide = [n + k - 1 for n, k in zip(size, weight.shape[2:], strict=True)]
    transfer = torch.fft.fftn(weight, s=wide, dim=dims)
    blocks = transfer.flatten(2).permute(2, 0, 1)
    return float(torch.linalg.matrix_norm(blocks, ord=2).max())


def _spread(weight: Tensor, axis: int, step: int) -> Tensor:
    """Zeros between the entries of one axis, as a dilated kernel has them."""
    shape = list(weight.shape)
    shape[axis] = (shape[axis] - 1) * step + 1
    out = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    index = torch.arange(weight.shape[axis], device=weight.device) * step
    return out.index_copy(axis, index, weight)


def gram(matrix: Tensor, steps: int = GRAM_STEPS) -> float:
    """‖A‖ ≤ ‖(AᵀA)^(2^(t-1))‖_F^(2^-t), rescaled on the way so that nothing overflows."""
    a = matrix.detach().double()
    a = a if a.shape[0] <= a.shape[1] else a.T
    size = float(a.norm())
    if size == 0:
        return 0.0
    g, log = (a / size) @ (a / size).T, 2 * math.log(size)
    power = 1
    for _ in range(steps):
        norm = float(g.norm())
        g, log = g / norm, log + math.log(norm)
        g, log, power = g @ g, 2 * log, 2 * power
    return math.exp((math.log(float(g.norm())) + log) / (2 * power))


def conv_reshaped(weight: Tensor) -> float:
    """√(places of the kernel) · σ of the kernel as an ``[out, in·places]`` matrix: a bound."""
    places = math.prod(weight.shape[2:])
    return math.sqrt(places) * spectral(weight.flatten(1))


def layer_norm(part: Part, kind: Kind, most_dense: int = MOST_DENSE) -> LayerNorm:
    """The norm of a linear part, exactly where it can be.

    Args:
        part: a linear part.
        kind: ``2`` (spectral) or ``inf`` (largest absolute row sum).
        most_dense: entries of a matrix that is made for it.
    """
    name, a = part.path or part.name, part.map
    assert a is not None
    if kind == "inf":
        ones = torch.ones(1, *a.into, dtype=torch.float64, device=a.bias.device)
        return LayerNorm(name, float(a.absolute(ones).max()), True, "largest absolute row sum")
    if part.op == "scale" and part.module is None:
        one = torch.ones(1, *a.into, dtype=torch.float64, device=a.bias.device)
        return LayerNorm(name, float(a.absolute(one).max()), True, "a factor")
    if isinstance(a.module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        ones = torch.ones(1, *a.into, dtype=torch.float64, device=a.bias.device)
        return LayerNorm(name, float(a.absolute(ones).max()), True, "largest gain")
    if a.module is None or isinstance(a.module, (nn.Flatten, nn.Identity, nn.Dropout)):
        if part.op != "mean" and math.prod(a.into) == math.prod(a.out):
            return LayerNorm(name, 1.0, True, "an isometry")
    dense = dense_if_small(a, most_dense)
    if dense is not None:
        return LayerNorm(name, spectral(dense), True, "singular values")
    if a.matrix is not None:
        return LayerNorm(name, gram(a.matrix), False, "Gram iteration")
    return _conv_bound(name, a)


def _conv_bound(name: str, a: Affine) -> LayerNorm:
    """The least bound of a convolution, or √(row sum · column sum) of any other large map."""
    part: Any = a.module
    found = {"row and column sums": _holder(a)}
    if isinstance(part, (nn.Conv1d, nn.Conv2d)) and part.padding_mode == "zeros":
        weight = _ungrouped(part)
        found["Fourier on a torus"] = conv_fourier(weight, a.into[1:], part.dilation)
        found["reshaped kernel"] = conv_reshaped(weight)
    how = min(found, key=lambda k: found[k])
    return LayerNorm(name, found[how], False, how)


def _ungrouped(part: Any) -> Tensor:
    """The kernel ``[out, in, *kernel]`` with zeros between groups."""
    w = part.weight.detach().double()
    if part.groups == 1:
        return w
    out, into = w.shape[0] // part.groups, w.shape[1]
    whole = torch.zeros(w.shape[0], into * part.groups, *w.shape[2:], dtype=w.dtype)
    for g in range(part.groups):
        rows = slice(g * out, (g + 1) * out)
        whole[rows, g * into : (g + 1) * into] = w[rows]
    return whole


def _holder(a: Affine) -> float:
    """‖A‖₂ ≤ √(‖A‖_∞ ‖A‖₁)."""
    x = torch.ones(1, *a.into, dtype=torch.float64, device=a.bias.device)
    y = torch.ones(1, *a.out, dtype=torch.float64, device=a.bias.device)
    return math.sqrt(float(a.absolute(x).max()) * float(a.absolute_transpose(y).max()))


def product(network: Network, kind: Kind) -> Product:
    """The norms multiplied along the network, summed where parts are added.

    A leaky ReLU counts 1, a maximum over a pool 1 in L∞ and √(windows that share a place) in L2.
    """
    bound: dict[str, float] = {}
    layers: list[LayerNorm] = []
    for part in network:
        if part.kind == "input":
            bound[part.name] = 1.0
        elif part.group:
            if part.name == part.group:
                bound[part.name] = _group_bound(network, part, bound, kind)
        elif part.kind == "linear":
            found = layer_norm(part, kind)
            bound[part.name] = found.value * bound[part.inputs[0]]
            if found.how not in ("an isometry",) and part.op != "shift":
                layers.append(found)
        elif part.kind == "add":
            bound[part.name] = sum(bound[n] for n in part.inputs)
        else:
            bound[part.name] = STEEPEST[part.gate] * bound[part.inputs[0]]
    return Product(bound[network.output], tuple(layers))


def _group_bound(network: Network, last: Part, bound: dict[str, float], kind: Kind) -> float:
    """A rewritten leaky ReLU, maximum of two, or pool, taken as the one function it is."""
    inside = {p.name for p in network if p.group == last.group}
    reads = {n for p in network if p.group == last.group for n in p.inputs} - inside
    if last.op == "leaky_relu":
        return bound[next(iter(reads))]
    if len(reads) == 2:
        parts = [bound[n] for n in reads]
        return max(parts) if kind == "inf" else math.hypot(*parts)
    (read,) = reads
    if kind == "inf":
        return bound[read]
    picks = [p for p in network if p.group == last.group and p.op == "select"]
    shares = torch.zeros(1, *network[read].shape, dtype=torch.float64, device=network.device)
    for pick in picks:
        assert pick.map is not None
        ones = torch.ones(1, *pick.map.out, dtype=torch.float64, device=network.device)
        shares += (pick.map.transpose(ones) > 0).to(shares.dtype)
    return math.sqrt(max(1.0, float(shares.max()))) * bound[read]


def chain(network: Network) -> list[Tensor]:
    """The matrices between gates of a plain chain, where linear parts in a row are multiplied.

    Raises:
        CapabilityError: it is no chain, or a matrix is too large.
    """
    matrices: list[Tensor] = []
    current: Tensor | None = None
    before = network.input
    for part in network:
        if part.kind == "input":
            continue
        if part.inputs != (before,):
            raise CapabilityError(
                "ECLipsE-Fast is for chains of layers, and this network adds branches "
                f"({part.path or part.name}).",
                remedy="Use variant='product'.",
            )
        before = part.name
        if part.kind == "gate":
            if current is not None:
                matrices.append(current)
            else:  # two gates in a row: the identity stands between
                size = part.size
                matrices.append(torch.eye(size, dtype=torch.float64, device=network.device))
            current = None
            continue
        assert part.map is not None
        dense = dense_if_small(part.map, MOST_DENSE)
        if dense is None:
            raise CapabilityError(
                f"The matrix of {part.path or part.name} has more than {MOST_DENSE:,} entries, "
                "and ECLipsE-Fast needs it whole.",
                remedy="Use variant='product'.",
            )
        current = dense if current is None else dense @ current
    size = network[network.output].size
    last = torch.eye(size, dtype=torch.float64, device=network.device)
    matrices.append(last if current is None else current)
    return matrices


def eclipse_fast(matrices: list[Tensor]) -> float:
    """ECLipsE-Fast (xu2024eclipse), slopes in [0, 1].

    ``M₀ = I; S_i = W_i M_{i-1}⁻¹ W_iᵀ; λ_i = 2/σ_max(S_i); M_i = λ_i I - (λ_i²/4) S_i;
    L = √σ_max(W_L M_{L-1}⁻¹ W_Lᵀ)``: LipSDP's Schur complement at Λ_i = λ_i I.
    """
    inverse: Tensor | None = None
    for w in matrices[:-1]:
        s = w @ w.T if inverse is None else w @ inverse @ w.T
        top = spectral(s)
        if top == 0:
            return 0.0
        k = 2 / top
        m = k * torch.eye(len(s), dtype=s.dtype, device=s.device) - (k * k / 4) * s
        inverse = torch.linalg.inv(m)
    w = matrices[-1]
    return math.sqrt(spectral(w @ w.T if inverse is None else w @ inverse @ w.T))
