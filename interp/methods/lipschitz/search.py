"""Branch and bound over gates: an unstable ReLU's derivative is 0 in one half and 1 in the other.

A row's L1 norm is convex in each single derivative (the Jacobian is multilinear), so its maximum
stands where all are 0 or 1, and splitting is exhaustive. Some patterns may belong to no input:
the search converges to the largest over all of them, an upper bound, unless ``tighten`` carries
what a fixed gate says about its input to the gates above, and drops what contradicts itself.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.engine.affine import Network, Part
from interp.methods.lipschitz.jacobians import JacobianBounds
from interp.methods.lipschitz.preactivations import Box, Range, gate_ranges, slope_ranges

BATCH = 8
"""Branches that are split together."""

Fixed = tuple[tuple[str, int, int], ...]
"""(gate, unit, derivative) of every gate that a branch has fixed."""

Branch = tuple[float, int, Fixed]
"""(bound with its sign turned, a running number, what is fixed): the heap's order."""


@dataclass
class Found:
    """How far a search came; a bound at every moment.

    Args:
        bound: no Jacobian in the box is larger (slack not yet added).
        lower: what sampling has shown to be reached.
        nodes: branches that were bounded.
        status: ``complete``, ``nodes`` or ``time`` (which budget ended it).
        path: (nodes, bound) whenever the bound fell.
    """

    bound: float
    lower: float
    nodes: int = 1
    status: str = "complete"
    path: list[tuple[int, float]] = field(default_factory=list)


class Search:
    """One row of one box.

    Args:
        network: the network.
        box: a single box.
        seed: the row, ``[1, 1, *output]``.
        ranges: what each gate reads in the box.
        pre: how the ranges are found again under ``tighten``.
        tighten: see above.
        memory: bytes.
    """

    def __init__(
        self,
        network: Network,
        box: Box,
        seed: Tensor,
        ranges: dict[str, Range],
        *,
        pre: str = "crown",
        tighten: bool = False,
        memory: int = 2**30,
    ) -> None:
        self.network, self.box, self.seed = network, box, seed
        self.pre, self.tighten, self.memory = pre, tighten, memory
        self.ranges = ranges
        self.slopes = slope_ranges(network, ranges)
        self.weights = {p.name: importance(network, p) for p in network.gates if p.gate == "relu"}

    def run(
        self,
        root: float,
        lower: float,
        *,
        nodes: int,
        seconds: float,
        tell: Callable[[Found], None] = lambda found: None,
    ) -> Found:
        """Search until it is complete or a budget is spent.

        Args:
            root: the row's bound before any branching.
            lower: a lower bound (sampled).
            nodes: branches that may be bounded.
            seconds: time that may pass.
            tell: told after every batch, and may raise to cancel.
        """
        found = Found(root, lower, path=[(1, root)])
        stop = time.monotonic() + seconds
        order = itertools.count()
        heap: list[Branch] = [(-root, next(order), ())]
        while heap and -heap[0][0] > lower * (1 + 1e-12) and self.split_at(heap[0][2]):
            room = (nodes - found.nodes) // 2
            if room < 1 or time.monotonic() > stop:
                found.status = "nodes" if room < 1 else "time"
                return found
            chosen = self._pop(heap, min(BATCH, room))
            children = [
                (-bound, (*fixed, (*where, d))) for bound, fixed, where in chosen for d in (0, 1)
            ]
            for (parent, child), value in zip(
                children, self.bounds([c for _, c in children]), strict=True
            ):
                if value is not None:
                    heapq.heappush(heap, (-min(value, parent), next(order), child))
            found.nodes += len(children)
            top = max(-heap[0][0], lower) if heap else lower
            if top < found.bound:
                found.bound = top
                found.path.append((found.nodes, top))
            tell(found)
        return found

    def _pop(self, heap: list[Branch], most: int) -> list[tuple[float, Fixed, tuple[str, int]]]:
        """The branches with the largest bounds and where each is split, up to a single pattern."""
        chosen: list[tuple[float, Fixed, tuple[str, int]]] = []
        while heap and len(chosen) < most:
            where = self.split_at(heap[0][2])
            if where is None:
                break
            bound, _, fixed = heapq.heappop(heap)
            chosen.append((bound, fixed, where))
        return chosen

    def split_at(self, fixed: Fixed) -> tuple[str, int] | None:
        """The open gate that carries most weight in and out, or None where all are fixed."""
        taken = {(gate, unit) for gate, unit, _ in fixed}
        best, where = -1.0, None
        for gate, weight in self.weights.items():
            low, high = (t[0].flatten() for t in self.slopes[gate])
            for unit in (high > low).nonzero()[:, 0].tolist():
                if (gate, unit) not in taken and float(weight[unit]) > best:
                    best, where = float(weight[unit]), (gate, unit)
        return where

    def bounds(self, branches: list[Fixed]) -> list[float | None]:
        """The bound of each branch, None where it contradicts itself."""
        n = len(branches)
        seed = self.seed.expand(1, *self.seed.shape[1:])
        possible = torch.ones(n, dtype=torch.bool, device=self.network.device)
        if self.tighten:
            slopes, possible = self._tightened(branches)
        else:
            slopes = {
                gate: (
                    low.expand(n, *low.shape[1:]).clone(),
                    high.expand(n, *high.shape[1:]).clone(),
                )
                for gate, (low, high) in self.slopes.items()
            }
        for i, fixed in enumerate(branches):
            for gate, unit, d in fixed:
                for end in slopes[gate]:
                    end[i].view(-1)[unit] = float(d)
        norms = JacobianBounds(self.network, slopes, seed, "lbp", self.memory).norm()[:, 0]
        return [float(v) if ok else None for v, ok in zip(norms, possible, strict=True)]

    def _tightened(self, branches: list[Fixed]) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
        n = len(branches)
        known = {}
        for gate, (low, high) in self.ranges.items():
            low, high = (t.expand(n, *t.shape[1:]).clone() for t in (low, high))
            for i, fixed in enumerate(branches):
                for name, unit, d in fixed:
                    if name == gate:
                        end = (low if d else high)[i].view(-1)
                        end[unit] = end[unit].clamp(min=0) if d else end[unit].clamp(max=0)
            known[gate] = (low, high)
        box = Box(*(t.expand(n, *t.shape[1:]) for t in (self.box.lower, self.box.upper)))
        ranges = gate_ranges(self.network, box, pre=self.pre, memory=self.memory, fixed=known)
        possible = torch.ones(n, dtype=torch.bool, device=self.network.device)
        for low, high in ranges.values():
            possible &= ~(low > high).flatten(1).any(1)
        ranges = {g: (torch.minimum(a, b), torch.maximum(a, b)) for g, (a, b) in ranges.items()}
        slopes = slope_ranges(self.network, ranges)
        return {g: (a.clone(), b.clone()) for g, (a, b) in slopes.items()}, possible


def importance(network: Network, gate: Part) -> Tensor:
    """Σ|weights in| · Σ|weights out| of each unit of a gate, flat."""
    ones = torch.ones(1, *gate.shape, dtype=torch.float64, device=network.device)
    source = network[gate.inputs[0]]
    into = ones
    if source.map is not None:
        into = source.map.absolute(torch.ones_like(ones).new_ones(1, *source.map.into))
    out = torch.zeros_like(ones)
    for name in network.readers[gate.name]:
        reader = network[name]
        if reader.map is None:
            out = out + ones
        else:
            out = out + reader.map.absolute_transpose(ones.new_ones(1, *reader.map.out))
    return (into * out).flatten()
