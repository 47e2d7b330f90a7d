"""One step of a traced forward pass as linear, add and gate nodes, exactly.

Functional calls with weights become modules; ``leaky_relu(z) = αz + (1-α) relu(z)`` and
``max(y, z) = y + relu(z-y)`` become gates and sums, a pool a tree of maxima.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from interp.models.graph import Node

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POOLS = (nn.MaxPool1d, nn.MaxPool2d)
LINEAR = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.Flatten, *NORMS, nn.Identity, nn.Dropout, nn.Dropout2d,
    nn.Unflatten, nn.ZeroPad2d,
)  # fmt: skip
"""Modules that are affine maps in eval mode."""

GATES: dict[Any, str] = {
    nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid",
    torch.relu: "relu", F.relu: "relu", "relu": "relu", "relu_": "relu", torch.relu_: "relu",
    torch.tanh: "tanh", F.tanh: "tanh", "tanh": "tanh",
    torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", "sigmoid": "sigmoid",
}  # fmt: skip
"""What is applied to each number by itself, by module class, function or method."""

ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
SUBS = (operator.sub, operator.isub, torch.sub, "sub", "sub_")
MULS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
DIVS = (operator.truediv, operator.itruediv, torch.div, "div", "div_")
SHAPES = (torch.flatten, "flatten", "view", "reshape", "contiguous", torch.reshape)
MEANS = (torch.mean, "mean")
MAXIMA = (torch.maximum, torch.max, "maximum", "max")


def nodes_of(step: fx.Node, root: nn.Module) -> list[Node] | str:
    """The nodes that one step becomes (the last one has its name), or why there are none."""
    reads = _reads(step)
    if step.op == "placeholder":
        return [Node(step.name, "input")]
    if step.op == "call_module":
        path = str(step.target)
        return _of_module(step.name, reads, path, root.get_submodule(path))
    target, label = step.target, _label(step.target)
    if target in GATES and len(reads) == 1:
        return [Node(step.name, "gate", reads, op=GATES[target])]
    if target in SHAPES and len(reads) == 1:
        return [Node(step.name, "linear", reads, op=label, args=tuple(step.args[1:]))]
    if target in MEANS and len(reads) == 1 and _dims(step):
        return [Node(step.name, "linear", reads, op="mean", args=_dims(step))]
    if target in MAXIMA and len(reads) == 2:
        return _maximum(step.name, *reads, group=step.name)
    found = _arithmetic(step, reads)
    if found is not None:
        return found
    part = _as_module(step, root)
    if part is not None:
        return _of_module(step.name, reads[:1], "", part)
    return f"it uses {label}, which is neither linear nor a sum nor a gate."


def _label(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _reads(step: fx.Node) -> tuple[str, ...]:
    """The tensors it reads, as often as it reads them; parameters are no nodes."""
    given = [*step.args, *step.kwargs.values()]
    return tuple(a.name for a in given if isinstance(a, fx.Node) and a.op != "get_attr")


def _dims(step: fx.Node) -> tuple[Any, ...]:
    """(dims, keepdim) of a mean that leaves the batch alone, or empty."""
    names = ("dim", "keepdim")
    given: dict[str, Any] = dict(zip(names, step.args[1:], strict=False)) | {
        k: v for k, v in step.kwargs.items() if k in names
    }
    dims: Any = given.get("dim")
    dims = (dims,) if isinstance(dims, int) else tuple(dims) if dims else ()
    if not dims or 0 in dims:
        return ()
    return (dims, bool(given.get("keepdim", False)))


def _of_module(name: str, reads: tuple[str, ...], path: str, part: nn.Module) -> list[Node] | str:
    said = f"{path or name} is a {type(part).__name__}"
    if isinstance(part, NORMS) and part.running_mean is None:
        return f"{said} without running statistics, which is not affine."
    if isinstance(part, LINEAR):
        return [Node(name, "linear", reads, path, module=part)]
    if type(part) in GATES:
        return [Node(name, "gate", reads, path, GATES[type(part)], module=part)]
    if isinstance(part, nn.LeakyReLU):
        return _leaky(name, reads[0], path, float(part.negative_slope))
    if isinstance(part, POOLS):
        return _pool(name, reads[0], path, part)
    return f"{said}, neither linear nor a sum nor a gate."


def _arithmetic(step: fx.Node, reads: tuple[str, ...]) -> list[Node] | None:
    """Sums, differences, and products with a number."""
    name, target = step.name, step.target
    if step.kwargs or len(step.args) != 2:
        return None
    if len(reads) == 2 and target in ADDS:
        return [Node(name, "add", reads, op="add")]
    if len(reads) == 2 and target in SUBS:
        minus = Node(f"{name}_minus", "linear", reads[1:], op="scale", args=(-1.0,))
        return [minus, Node(name, "add", (reads[0], minus.name), op="sub")]
    numbers = [a for a in step.args if isinstance(a, (int, float))]
    if len(reads) != 1 or len(numbers) != 1:
        return None
    value, first = float(numbers[0]), isinstance(step.args[0], fx.Node)
    if target in MULS:
        return [Node(name, "linear", reads, op="scale", args=(value,))]
    if target in DIVS and first:
        return [Node(name, "linear", reads, op="scale", args=(1 / value,))]
    if target in ADDS or (target in SUBS and first):
        shift = value if target in ADDS else -value
        return [Node(name, "linear", reads, op="shift", args=(shift,))]
    return None


def _leaky(name: str, read: str, path: str, slope: float) -> list[Node] | str:
    if not 0 <= slope <= 1:
        return f"{path or name} is a LeakyReLU of slope {slope:g}; wanted one in [0, 1]."
    of: dict[str, Any] = {"path": path, "group": name}
    return [
        Node(f"{name}_relu", "gate", (read,), op="relu", **of),
        Node(f"{name}_live", "linear", (f"{name}_relu",), op="scale", args=(1 - slope,), **of),
        Node(f"{name}_leak", "linear", (read,), op="scale", args=(slope,), **of),
        Node(name, "add", (f"{name}_live", f"{name}_leak"), op="leaky_relu", **of),
    ]


def _maximum(name: str, y: str, z: str, *, path: str = "", group: str = "") -> list[Node]:
    """max(y, z) = y + relu(z - y)."""
    of: dict[str, Any] = {"path": path, "group": group}
    return [
        Node(f"{name}_minus", "linear", (y,), op="scale", args=(-1.0,), **of),
        Node(f"{name}_gap", "add", (z, f"{name}_minus"), op="sub", **of),
        Node(f"{name}_over", "gate", (f"{name}_gap",), op="relu", **of),
        Node(name, "add", (y, f"{name}_over"), op="maximum", **of),
    ]


def _pool(name: str, read: str, path: str, part: Any) -> list[Node] | str:
    """A maximum over a window: one selection for each place in it, then a tree of maxima."""
    n = 1 if isinstance(part, nn.MaxPool1d) else 2
    sizes = [
        v if isinstance(v, tuple) else (v,) * n
        for v in (part.kernel_size, part.stride, part.padding, part.dilation)
    ]
    if part.return_indices:
        return f"{path or name} is a {type(part).__name__} that returns indices."
    count = 1
    for k in sizes[0]:
        count *= k
    level = []
    nodes: list[Node] = []
    for i in range(count):
        args = (*sizes, bool(part.ceil_mode), i)
        nodes.append(Node(f"{name}_at{i}", "linear", (read,), path, "select", part, args, name))
        level.append(nodes[-1].name)
    depth = 0
    while len(level) > 1:
        above = []
        for i in range(0, len(level) - 1, 2):
            last = len(level) == 2
            top = name if last else f"{name}_max{depth}_{i // 2}"
            nodes += _maximum(top, level[i], level[i + 1], path=path, group=name)
            above.append(top)
        level, depth = above + level[len(level) - len(level) % 2 :], depth + 1
    if count == 1:
        nodes.append(Node(name, "linear", (nodes[-1].name,), path, "scale", None, (1.0,), name))
    return nodes


def _as_module(step: fx.Node, root: nn.Module) -> nn.Module | None:
    """A functional call with its weights as the module that does the same."""
    make = CALLS.get(step.target)
    if make is None or not step.args or not isinstance(step.args[0], fx.Node):
        return None
    values = [_constant(a, root) for a in step.args[1:]]
    named = {k: _constant(v, root) for k, v in step.kwargs.items()}
    if any(isinstance(v, fx.Node) for v in [*values, *named.values()]):
        return None
    return make(*values, **named)


def _constant(value: Any, root: nn.Module) -> Any:
    if isinstance(value, fx.Node) and value.op == "get_attr":
        owner, _, leaf = str(value.target).rpartition(".")
        return getattr(root.get_submodule(owner), leaf)
    return value


def _put(part: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The module with these very tensors as its weights."""
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            setattr(part, name, nn.Parameter(value.detach(), requires_grad=False))
    return part


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    rows, columns = weight.shape
    return _put(nn.Linear(columns, rows, bias is not None, device="meta"), weight, bias)


def _conv(kind: Any) -> Any:
    def make(
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> nn.Module:
        part = kind(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride,
            padding,
            dilation,
            groups,
            bias is not None,
            device="meta",
        )
        return _put(part, weight, bias)

    return make


def _norm(
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> nn.Module | None:
    if training or mean is None:
        return None
    part = nn.BatchNorm2d(len(mean), eps, momentum, affine=weight is not None)
    part.running_mean, part.running_var = mean.detach(), var.detach()
    return (part if weight is None else _put(part, weight, bias)).eval()


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module | None:
    return None if training else nn.Identity()


def _leaky_module(negative_slope: float = 0.01, inplace: bool = False) -> nn.Module:
    return nn.LeakyReLU(negative_slope)


def _max_pool(kind: Any) -> Any:
    def make(
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> nn.Module:
        return kind(
            kernel_size, stride or kernel_size, padding, dilation, return_indices, ceil_mode
        )

    return make


CALLS: dict[Any, Any] = {
    F.linear: _linear, F.conv1d: _conv(nn.Conv1d), F.conv2d: _conv(nn.Conv2d),
    torch.conv1d: _conv(nn.Conv1d), torch.conv2d: _conv(nn.Conv2d),
    F.batch_norm: _norm, F.dropout: _dropout, F.leaky_relu: _leaky_module,
    F.avg_pool1d: nn.AvgPool1d, F.avg_pool2d: nn.AvgPool2d,
    torch.avg_pool1d: nn.AvgPool1d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d, torch.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.max_pool1d: _max_pool(nn.MaxPool1d), F.max_pool2d: _max_pool(nn.MaxPool2d),
    torch.max_pool1d: _max_pool(nn.MaxPool1d), torch.max_pool2d: _max_pool(nn.MaxPool2d),
}  # fmt: skip
"""Function -> what makes the module that does the same from the arguments after the tensor."""
