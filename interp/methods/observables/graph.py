"""The graph of paths: nodes in the order they write, prefixes of paths, and how many there are.

embed -1, heads of layer l 2l, its MLP 2l + 1 (2l where both read the same residual), logits 2L. A
node reads what every node of a smaller order wrote. A head moves from position t to any s ≤ t, all
others stay.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from interp.terms import ModelShape, Site, UsageError

MLP = -1
"""What stands for a head in a node that is an MLP."""


class Node(NamedTuple):
    """A head or an MLP.

    Args:
        layer: its layer.
        head: its head, or ``MLP``.
    """

    layer: int
    head: int

    @property
    def name(self) -> str:
        """``L3H1`` or ``MLP3``."""
        return f"MLP{self.layer}" if self.head == MLP else f"L{self.layer}H{self.head}"

    def order(self, parallel: bool) -> int:
        """Its place among those that write."""
        return 2 * self.layer + int(self.head == MLP and not parallel)

    def site(self, parallel: bool) -> Site:
        """The residual that it reads."""
        kind = "resid_mid" if self.head == MLP and not parallel else "resid_pre"
        return Site(kind, layer=self.layer)


def read_nodes(text: str, shape: ModelShape) -> tuple[Node, ...]:
    """Nodes from ``L9H6, MLP5``, latest first.

    Raises:
        UsageError: a name that is no node, a node that is not there, or a wrong order.
    """
    nodes = []
    for word in text.replace(",", " ").replace("<", " ").split():
        match = re.fullmatch(r"L(\d+)H(\d+)|MLP(\d+)", word)
        if match is None:
            raise UsageError(
                f"{word!r} names no node.", remedy="Write e.g. L9H6 for a head, MLP5 for an MLP."
            )
        node = Node(int(match[3]), MLP) if match[3] else Node(int(match[1]), int(match[2]))
        if node.layer >= shape.n_layers or node.head >= shape.n_heads:
            raise UsageError(
                f"{word} was given; the model has {shape.n_layers} layers of {shape.n_heads} "
                "heads, counted from 0."
            )
        nodes.append(node)
    orders = [n.order(shape.parallel) for n in nodes]
    if any(b >= a for a, b in zip(orders, orders[1:], strict=False)):
        raise UsageError(
            f"{text!r} runs the wrong way: each node must write before the one in front of it.",
            remedy="Write the node next to the logits first.",
        )
    return tuple(nodes)


@dataclass(frozen=True, eq=False)
class Prefix:
    """A path from the logits back to a node, or to the embedding.

    Args:
        steps: its nodes, latest first, each with the position at which it reads.
        order: of its last node.
        position: at which that node reads.
        y: what it reads there ``[prompt, d_model]``.
        value: y times what stands there ``[prompt]``.
        ends: it ends at the embedding.
    """

    steps: tuple[tuple[Node, int], ...]
    order: int
    position: int
    y: Tensor
    value: np.ndarray
    ends: bool = False

    @property
    def name(self) -> str:
        """``L3H0@9 < MLP2@9 < embed@9``."""
        parts = [f"{node.name}@{position}" for node, position in self.steps]
        return " < ".join([*parts, f"embed@{self.position}"] if self.ends else parts)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its nodes, latest first."""
        return tuple(node for node, _ in self.steps)


def count_paths(shape: ModelShape, length: int) -> int:
    """Paths from the logits at the last position to the embedding, as a whole number."""
    read = [1] * length
    for _ in range(shape.n_layers):
        moved = [shape.n_heads * sum(read[: t + 1]) for t in range(length)]
        middle = [a + b for a, b in zip(read, moved, strict=True)]
        fed = read if shape.parallel else middle
        read = [a + b for a, b in zip(middle, fed, strict=True)]
    return read[-1]
