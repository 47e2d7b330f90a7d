"""A network as linear, add and gate nodes, for methods that bound or decompose it exactly."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional as F

NodeKind = Literal["input", "linear", "add", "gate"]

LINEAR = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.Identity, nn.Dropout, nn.Unflatten,
)
"""Modules that are affine maps in eval mode."""

GATES: dict[Any, str] = {
    nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid",
    torch.relu: "relu", F.relu: "relu", "relu": "relu",
    torch.tanh: "tanh", "tanh": "tanh", torch.sigmoid: "sigmoid", "sigmoid": "sigmoid",
}
"""What is applied to each number by itself, by module class, function or method."""

ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
SHAPES = (torch.flatten, "flatten", "view", "reshape", "contiguous")


@dataclass(frozen=True)
class Node:
    """One node.

    Args:
        name: an identifier, unique in the graph.
        kind: ``input``, ``linear`` (an affine map), ``add`` or ``gate``.
        inputs: names of the nodes it reads.
        path: path of its module, empty where it is a function.
        op: for a gate its function's name; for a function its name.
        module: the module, or None.
        args: what a shape function was called with besides its tensor.
    """

    name: str
    kind: NodeKind
    inputs: tuple[str, ...] = ()
    path: str = ""
    op: str = ""
    module: nn.Module | None = None
    args: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Graph:
    """Nodes in the order of evaluation, and the name of the one whose value is the output."""

    nodes: tuple[Node, ...]
    output: str

    def __iter__(self) -> Any:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


def graph_of(module: nn.Module) -> Graph | str:
    """The graph of a network in eval mode, or one sentence that says why there is none."""
    try:
        traced = fx.Tracer().trace(module)
    except Exception as error:  # the module's own code runs on stand-ins and may do anything
        why = str(error).strip().split("\n")[0][:160]
        return f"its forward pass cannot be followed symbolically ({why})."
    nodes: list[Node] = []
    for step in traced.nodes:
        if step.op == "output":
            result = step.args[0]
            if not isinstance(result, fx.Node):
                return "it returns several values, not one tensor."
            return Graph(tuple(nodes), result.name)
        node = _node(step, module)
        if isinstance(node, str):
            return node
        nodes.append(node)
    return "it returns nothing."


def _node(step: fx.Node, root: nn.Module) -> Node | str:
    reads = tuple(a.name for a in step.all_input_nodes)
    if step.op == "placeholder":
        return Node(step.name, "input")
    if step.op == "call_module":
        part = root.get_submodule(str(step.target))
        if isinstance(part, LINEAR):
            return Node(step.name, "linear", reads, str(step.target), module=part)
        if type(part) in GATES:
            return Node(
                step.name, "gate", reads, str(step.target), GATES[type(part)], module=part
            )
        return f"{step.target} is a {type(part).__name__}, neither linear nor a sum nor a gate."
    target = step.target
    label = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if target in ADDS and len(reads) == 2:
        return Node(step.name, "add", reads, op=label)
    if target in GATES and len(reads) == 1:
        return Node(step.name, "gate", reads, op=GATES[target])
    if target in SHAPES and len(reads) == 1:
        return Node(step.name, "linear", reads, op=label, args=tuple(step.args[1:]))
    return f"it uses {label}, which is neither linear nor a sum nor a gate."
