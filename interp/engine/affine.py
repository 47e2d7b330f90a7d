"""A network's graph as float64 operators, batched: what bound propagation walks over.

``Affine`` is a linear map with a bias on tensors ``[batch, *shape]``: forwards, backwards (its
transpose, by vjp, so a convolution's coefficients travel by transposed convolution) and with
absolute weights. Weights of any dtype are read as float64.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Affine:
    """x -> W x + b on tensors ``[batch, *shape]``.

    Args:
        linear: x -> W x.
        absolute: x -> |W| x.
        bias: b, ``[*out]``.
        into: shape of x.
        out: shape of the result.
        module: where it came from, or None.
        matrix: W ``[out, in]`` where it is a dense layer.
    """

    linear: Map
    absolute: Map
    bias: Tensor
    into: Shape
    out: Shape
    module: nn.Module | None = None
    matrix: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """W x + b."""
        return self.linear(x) + self.bias

    def transpose(self, y: Tensor) -> Tensor:
        """Wᵀ y."""
        return self._back(self.linear, y)

    def absolute_transpose(self, y: Tensor) -> Tensor:
        """|W|ᵀ y."""
        return self._back(self.absolute, y)

    def _back(self, apply: Map, y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = torch.zeros(y.shape[0], *self.into, dtype=y.dtype, device=y.device)
            out = apply(x.requires_grad_(True))
            return torch.autograd.grad(out, x, y, create_graph=y.requires_grad)[0]

    def dense(self) -> Tensor:
        """W as a matrix ``[out, in]``."""
        if self.matrix is not None:
            return self.matrix
        size = math.prod(self.into)
        eye = torch.eye(size, dtype=self.bias.dtype, device=self.bias.device)
        return self.linear(eye.reshape(size, *self.into)).reshape(size, -1).T


@dataclass(frozen=True)
class Part:
    """One node with its operator.

    Args:
        name: the node's.
        kind: ``input``, ``linear``, ``add`` or ``gate``.
        inputs: names of the parts it reads.
        shape: of its value, without the batch.
        path: path of its module.
        gate: ``relu``, ``tanh`` or ``sigmoid``.
        map: of a linear part.
        group: see ``Node.group``.
        op: see ``Node.op``.
        module: the module, or None.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: Shape
    path: str = ""
    gate: str = ""
    map: Affine | None = None
    group: str = ""
    op: str = ""
    module: nn.Module | None = None

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Network:
    """Parts in the order of evaluation.

    Args:
        parts: by name, in order.
        input: name of the input.
        output: name of the output.
        device: where it computes.
        readers: name -> the parts that read it, once for every time they do.
    """

    parts: dict[str, Part]
    input: str
    output: str
    device: torch.device
    readers: dict[str, tuple[str, ...]] = field(repr=False)

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts.values())

    def __getitem__(self, name: str) -> Part:
        return self.parts[name]

    @property
    def gates(self) -> tuple[Part, ...]:
        """Its gates, in order."""
        return tuple(p for p in self if p.kind == "gate")

    def tensor(self, array: Any) -> Tensor:
        """Numbers as float64 where the network computes."""
        return torch.as_tensor(array, dtype=torch.float64, device=self.device)

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """Every part's value for inputs ``[batch, *shape]``."""
        with torch.no_grad():
            return self._values(x)

    def _values(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part in self:
            if part.kind == "input":
                found[part.name] = x
                continue
            read = [found[n] for n in part.inputs]
            if part.kind == "linear":
                assert part.map is not None
                found[part.name] = part.map(read[0])
            else:
                found[part.name] = (
                    read[0] + read[1] if part.kind == "add" else GATES[part.gate](read[0])
                )
        return found

    def gradients(self, x: Tensor, seeds: Tensor, blur: float = 0.0) -> Tensor:
        """Gradients ``[batch, row, *input]`` of rows of outputs.

        Args:
            x: inputs ``[batch, *shape]``.
            seeds: weights of the outputs in each row, ``[row, *out]`` or ``[batch, row, *out]``.
            blur: above 0 the step in a ReLU's slope is a sigmoid, as wide as this share of the
                mean |input| of its gate, so that the gradient can itself be differentiated in x.
        """
        values = self._values(x) if blur else self.values(x)
        n = len(x)
        seeds = seeds.expand(n, *seeds.shape[-1 - len(self[self.output].shape) :])
        rows = seeds.shape[1]
        back: dict[str, Tensor] = {self.output: seeds}
        for part in reversed(list(self)):
            g = back.pop(part.name, None)
            if g is None:
                continue
            if part.kind == "input":
                return g
            if part.kind == "gate":
                g = g * _slope(part.gate, values[part.inputs[0]], blur)[:, None]
            elif part.kind == "linear":
                assert part.map is not None
                g = part.map.transpose(g.reshape(n * rows, *part.shape))
                g = g.reshape(n, rows, *part.map.into)
            for name in part.inputs:
                back[name] = back[name] + g if name in back else g
        return torch.zeros(n, rows, *self[self.input].shape, dtype=x.dtype, device=x.device)


def _sigmoid_slope(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 - s)


GATES: dict[str, Map] = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
SLOPES: dict[str, Map] = {
    "relu": lambda z: (z > 0).to(z.dtype),
    "tanh": lambda z: 1 - torch.tanh(z) ** 2,
    "sigmoid": _sigmoid_slope,
}
STEEPEST = {"relu": 1.0, "tanh": 1.0, "sigmoid": 0.25}
"""Largest slope of each gate; the smallest is 0."""


def _slope(gate: str, z: Tensor, blur: float) -> Tensor:
    if blur and gate == "relu":
        width = blur * z.detach().abs().mean()
        return torch.sigmoid(z / width.clamp(min=torch.finfo(z.dtype).tiny))
    return SLOPES[gate](z)


def network_of(model: Any, example: Any) -> Network:
    """Read a model's graph as float64 operators.

    Args:
        model: a HookedModel with ``graph()``.
        example: inputs ``[batch, *shape]``.

    Raises:
        CapabilityError: the model has no such graph, with what stands in the way.
    """
    graph = model.graph()
    device = next((p.device for p in model.module().parameters()), torch.device("cpu"))
    value = torch.as_tensor(example)[:1].to(device, torch.float64)
    with torch.no_grad():
        parts: dict[str, Part] = {}
        seen: dict[str, Tensor] = {}
        for node in graph:
            made = None
            if node.kind == "input":
                out = value
            elif node.kind == "linear":
                read = seen[node.inputs[0]]
                made = _affine(node, tuple(read.shape[1:]), device)
                out = made(read)
            else:
                read = [seen[n] for n in node.inputs]
                out = GATES[node.op](read[0]) if node.kind == "gate" else read[0] + read[1]
            seen[node.name] = out
            parts[node.name] = Part(
                node.name, node.kind, node.inputs, tuple(out.shape[1:]), node.path,
                node.op if node.kind == "gate" else "", made, node.group, node.op, node.module,
            )  # fmt: skip
    readers: dict[str, list[str]] = {name: [] for name in parts}
    for part in parts.values():
        for name in part.inputs:
            readers[name].append(part.name)
    first = next(p.name for p in parts.values() if p.kind == "input")
    return Network(parts, first, graph.output, device, {k: tuple(v) for k, v in readers.items()})


def _affine(node: Any, shape: Shape, device: torch.device) -> Affine:
    """The operator of a linear node for inputs of this shape."""
    linear, absolute, bias = _maps(node, shape, device)
    zero = torch.zeros(1, *shape, dtype=torch.float64, device=device)
    out = tuple(linear(zero).shape[1:])
    shift = torch.zeros(out, dtype=torch.float64, device=device) if bias is None else bias
    part = node.module
    matrix = None
    if isinstance(part, nn.Linear) and len(shape) == 1:
        matrix = part.weight.detach().to(device, torch.float64)
    return Affine(linear, absolute, shift.expand(out), shape, out, part, matrix)


def _maps(node: Any, shape: Shape, device: torch.device) -> tuple[Map, Map, Tensor | None]:
    """(x -> W x, x -> |W| x, b or None)."""
    part = node.module
    if node.op == "select":
        pick = _selection(node.args, shape, device)
        return pick, pick, None
    if isinstance(part, nn.Linear):
        w, b = _weights(part, device)
        return (lambda x: x @ w.T), (lambda x: x @ w.abs().T), b
    if isinstance(part, (nn.Conv1d, nn.Conv2d)):
        return _conv_maps(part, device)
    if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return _norm_maps(part, len(shape), device)
    if part is not None:
        own = copy.deepcopy(part).eval()
        return own, own, None
    if node.op == "scale":
        (k,) = node.args
        return (lambda x: x * k), (lambda x: x * abs(k)), None
    if node.op == "shift":
        return _same, _same, torch.full((1,), node.args[0], dtype=torch.float64, device=device)
    if node.op == "mean":
        dims, keep = node.args
        mean = lambda x: x.mean(dims, keepdim=keep)  # noqa: E731
        return mean, mean, None
    return _reshaping(node, shape)


def _same(x: Tensor) -> Tensor:
    return x


def _weights(part: Any, device: torch.device) -> tuple[Tensor, Tensor | None]:
    w = part.weight.detach().to(device, torch.float64)
    return w, None if part.bias is None else part.bias.detach().to(device, torch.float64)


def _conv_maps(part: Any, device: torch.device) -> tuple[Map, Map, Tensor | None]:
    w, b = _weights(part, device)
    size = w.abs()
    bias = None if b is None else b.reshape(-1, *(1,) * (w.dim() - 2))
    return (
        lambda x: part._conv_forward(x, w, None),
        lambda x: part._conv_forward(x, size, None),
        bias,
    )


def _norm_maps(part: Any, dims: int, device: torch.device) -> tuple[Map, Map, Tensor]:
    """A BatchNorm in eval mode: k x + (b - k mean), k = gain/√(var + eps)."""
    mean, var = (
        t.detach().to(device, torch.float64) for t in (part.running_mean, part.running_var)
    )
    k = (var + part.eps).rsqrt()
    shift = torch.zeros_like(mean)
    if part.affine:
        w, b = _weights(part, device)
        k, shift = k * w, shift if b is None else b
    tail = (1,) * (dims - 1)
    k, shift = k.reshape(-1, *tail), (shift - k * mean).reshape(-1, *tail)
    return (lambda x: x * k), (lambda x: x * k.abs()), shift


def _reshaping(node: Any, shape: Shape) -> tuple[Map, Map, None]:
    """flatten, view and reshape, whatever the batch was when it was traced."""
    if "flatten" in node.op:
        start = node.args[0] if node.args else 0
        stop = node.args[1] if len(node.args) > 1 else -1
        flat = lambda x: torch.flatten(x, max(1, start), stop)  # noqa: E731
        return flat, flat, None
    given = node.args[0] if node.args and isinstance(node.args[0], (tuple, list)) else node.args
    tail = tuple(v for v in given[1:] if isinstance(v, int))
    if not given:
        return _same, _same, None
    view = lambda x: x.reshape(x.shape[0], *tail)  # noqa: E731
    return view, view, None


def _selection(args: tuple[Any, ...], shape: Shape, device: torch.device) -> Map:
    """One place of every window of a pool; places in the padding read the window's nearest entry.

    A repeated entry does not change a maximum, so padding, dilation and ceil_mode are exact.
    """
    kernel, stride, padding, dilation, ceil, place = args
    n = len(kernel)
    spatial = shape[-n:]
    offsets = list(itertools.product(*map(range, kernel)))[place]
    rows = []
    for i in range(n):
        reach = dilation[i] * (kernel[i] - 1)
        steps = (spatial[i] + 2 * padding[i] - reach - 1) / stride[i]
        count = (math.ceil(steps) if ceil else math.floor(steps)) + 1
        if ceil and (count - 1) * stride[i] >= spatial[i] + padding[i]:
            count -= 1
        rows.append(
            [
                _inside(o * stride[i] - padding[i], offsets[i], kernel[i], dilation[i], spatial[i])
                for o in range(count)
            ]
        )
    index = [torch.tensor(r, device=device) for r in rows]
    if n == 1:
        return lambda x: x[..., index[0]]
    return lambda x: x[..., index[0][:, None], index[1][None, :]]


def _inside(start: int, offset: int, kernel: int, dilation: int, size: int) -> int:
    """The place of an offset in a window, or the nearest place of that window that exists."""
    places = [start + k * dilation for k in range(kernel)]
    there = [p for p in places if 0 <= p < size]
    wanted = places[offset]
    return min(there, key=lambda p: (abs(p - wanted), p))


ARRAY = 2**25
"""Bytes of one array of coefficients, at most: larger ones leave the cache and are no faster."""


def rows_that_fit(memory: int, bytes_per_row: float) -> int:
    """How many rows are carried at once: within ``ARRAY``, and a quarter of the memory."""
    return max(1, int(min(memory / 4, ARRAY) / max(bytes_per_row, 1.0)))


def dense_if_small(part: Affine, limit: int = 4_000_000) -> Tensor | None:
    """W where it has at most ``limit`` entries."""
    size = math.prod(part.into) * math.prod(part.out)
    return part.dense() if size <= limit else None


__all__ = [
    "GATES", "SLOPES", "STEEPEST", "Affine", "Network", "Part", "dense_if_small",
    "network_of", "rows_that_fit",
]  # fmt: skip
