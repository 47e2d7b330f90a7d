"""A network as linear, add and gate nodes, for methods that bound or decompose it exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import fx, nn

NodeKind = Literal["input", "linear", "add", "gate"]


@dataclass(frozen=True)
class Node:
    """One node.

    Args:
        name: an identifier, unique in the graph.
        kind: ``input``, ``linear`` (an affine map), ``add`` or ``gate``.
        inputs: names of the nodes it reads.
        path: path of its module, empty where it is a function.
        op: for a gate its function's name; for a function its name.
        module: the module, or None; functional calls with weights are given as modules.
        args: what a function was called with besides its tensor.
        group: name of the node that ends the rewriting it is part of (a leaky ReLU or a maximum
            is written as gates and sums), or empty.
    """

    name: str
    kind: NodeKind
    inputs: tuple[str, ...] = ()
    path: str = ""
    op: str = ""
    module: nn.Module | None = None
    args: tuple[Any, ...] = ()
    group: str = ""


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
    from interp.models.rewriting import nodes_of

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
            return Graph(_reached(nodes, result.name), result.name)
        if step.op == "get_attr":
            continue
        made = nodes_of(step, module)
        if isinstance(made, str):
            return made
        nodes += made
    return "it returns nothing."


def _reached(nodes: list[Node], output: str) -> tuple[Node, ...]:
    """The nodes that the output reads, and every input."""
    wanted = {output}
    for node in reversed(nodes):
        if node.name in wanted:
            wanted |= set(node.inputs)
    return tuple(n for n in nodes if n.name in wanted or n.kind == "input")
