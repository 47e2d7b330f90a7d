"""What every gate may read while the input stays in a box: interval and CROWN bounds.

CROWN (zhang2018efficient): A·value(n) is bounded by walking A back to the input; each gate on the
way is replaced by a line above where its coefficient is positive and a line below where it is
negative. Legend: B boxes, R rows of coefficients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.engine.affine import GATES, SLOPES, Network, Part, rows_that_fit

Range = tuple[Tensor, Tensor]
"""Lower and upper ends, ``[box, *shape]``."""


@dataclass(frozen=True)
class Box:
    """Inputs between two corners, ``[box, *input]`` each."""

    lower: Tensor
    upper: Tensor

    def __len__(self) -> int:
        return len(self.lower)

    def select(self, rows: slice) -> Box:
        """Some of the boxes."""
        return Box(self.lower[rows], self.upper[rows])


def box_around(x: Tensor, radius: float, domain: tuple[float, float] | None) -> Box:
    """All inputs within a distance (L∞) of each x, inside the domain where there is one."""
    low, high = x - radius, x + radius
    if domain is not None:
        low, high = low.clamp(min=domain[0]), high.clamp(max=domain[1])
    return Box(low, high)


def gate_ranges(
    network: Network,
    box: Box,
    *,
    pre: str = "crown",
    memory: int = 2**30,
    fixed: Mapping[str, Range] | None = None,
) -> dict[str, Range]:
    """The range of what each gate reads.

    Args:
        network: whose gates.
        box: where the input is.
        pre: ``crown`` (intersected with intervals) or ``ibp`` (intervals alone).
        memory: bytes that coefficients may take.
        fixed: gate -> a range that is known besides, as in a branch of a search.

    Returns:
        gate -> lower and upper end ``[box, *shape]``; the lower may exceed the upper where
        ``fixed`` contradicts it.
    """
    ranges: dict[str, Range] = {}
    values: dict[str, Range] = {}
    for part in network:
        if part.kind == "input":
            values[part.name] = (box.lower, box.upper)
        elif part.kind == "linear":
            values[part.name] = _interval(part, values[part.inputs[0]])
        elif part.kind == "add":
            (a, b), (c, d) = (values[n] for n in part.inputs)
            values[part.name] = (a + c, b + d)
        else:
            low, high = values[part.inputs[0]]
            if pre == "crown":
                low, high = _tighter(network, part, (low, high), ranges, box, memory)
            if fixed is not None and part.name in fixed:
                low = torch.maximum(low, fixed[part.name][0])
                high = torch.minimum(high, fixed[part.name][1])
            ranges[part.name] = (low, high)
            values[part.name] = (GATES[part.gate](low), GATES[part.gate](torch.maximum(low, high)))
    return ranges


def _interval(part: Part, value: Range) -> Range:
    low, high = value
    assert part.map is not None
    middle, radius = part.map((low + high) / 2), part.map.absolute((high - low) / 2)
    return middle - radius, middle + radius


def _tighter(
    network: Network, part: Part, found: Range, ranges: Mapping[str, Range], box: Box, memory: int
) -> Range:
    """CROWN's range where it matters: every unit of a smooth gate, a ReLU that may go either way.

    What stands before the first gate is linear, and there the interval is exact already.
    """
    name = part.inputs[0]
    if not ranges or not _behind_a_gate(network, name):
        return found
    low, high = (t.clone() for t in found)
    open_units = torch.ones_like(low, dtype=torch.bool)
    if part.gate == "relu":
        open_units = (low <= 0) & (high >= 0)
    units = open_units.flatten(1).any(0).nonzero()[:, 0]
    flat_low, flat_high = low.flatten(1), high.flatten(1)
    for chosen, rows in identity(network[name], units, len(box), memory):
        up = walk_back(network, name, rows[None], ranges, box)
        down = -walk_back(network, name, -rows[None], ranges, box)
        flat_high[:, chosen] = torch.minimum(flat_high[:, chosen], up)
        flat_low[:, chosen] = torch.maximum(flat_low[:, chosen], down)
    return flat_low.reshape(low.shape), flat_high.reshape(high.shape)


def _behind_a_gate(network: Network, name: str) -> bool:
    wanted = {name}
    for part in reversed(list(network)):
        if part.name in wanted:
            if part.kind == "gate":
                return True
            wanted |= set(part.inputs)
    return False


def identity(
    part: Part, units: Tensor, copies: int, memory: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of the identity ``[R, *shape]`` for these units, as many at a time as memory holds.

    Args:
        part: whose units.
        units: their numbers, flat.
        copies: how often a row is carried (boxes, or boxes times rows of the output).
        memory: bytes.
    """
    width = 8 * part.size * max(1, copies)
    step = rows_that_fit(memory, width)
    for start in range(0, len(units), step):
        chosen = units[start : start + step]
        rows = torch.zeros(len(chosen), part.size, dtype=torch.float64, device=units.device)
        rows[torch.arange(len(chosen), device=units.device), chosen] = 1.0
        yield chosen, rows.reshape(len(chosen), *part.shape)


def walk_back(
    network: Network, name: str, rows: Tensor, ranges: Mapping[str, Range], box: Box
) -> Tensor:
    """An upper bound of rows·value(name) over each box, ``[box, R]``.

    Args:
        network: the network.
        name: the part whose value is bounded.
        rows: coefficients ``[box or 1, R, *shape of the part]``.
        ranges: the ranges of all gates before it.
        box: where the input is.
    """
    coefficients = {name: rows}
    total = torch.zeros(1, rows.shape[1], dtype=rows.dtype, device=rows.device)
    for part in reversed(list(network)):
        c = coefficients.pop(part.name, None)
        if c is None:
            continue
        if part.kind == "input":
            low, high = box.lower[:, None], box.upper[:, None]
            total = total + (c.clamp(min=0) * high + c.clamp(max=0) * low).flatten(2).sum(-1)
            continue
        if part.kind == "gate":
            c, constant = _relaxed(part.gate, c, ranges[part.name])
            total = total + constant
        elif part.kind == "linear":
            assert part.map is not None
            total = total + (c * part.map.bias).flatten(2).sum(-1)
            c = part.map.transpose(c.flatten(0, 1)).reshape(*c.shape[:2], *part.map.into)
        for read in part.inputs:
            coefficients[read] = coefficients[read] + c if read in coefficients else c
    return total.expand(len(box), -1)


def _relaxed(gate: str, c: Tensor, found: Range) -> tuple[Tensor, Tensor]:
    """Coefficients before a gate, and the constant: lines above for c > 0, below for c < 0."""
    low, high = (t[:, None] for t in found)
    positive, negative = c.clamp(min=0), c.clamp(max=0)
    if gate == "relu":
        crosses = (low < 0) & (high > 0)
        width = torch.where(crosses, high - low, torch.ones_like(low))
        above = torch.where(crosses, high / width, (low >= 0).to(c.dtype))
        below = torch.where(crosses, (high > -low).to(c.dtype), (low >= 0).to(c.dtype))
        offset = torch.where(crosses, -low * above, torch.zeros_like(low))
        constant = (positive * offset).flatten(2).sum(-1)
        return positive * above + negative * below, constant
    value, slope = GATES[gate], SLOPES[gate]
    k = torch.minimum(slope(low), slope(high))
    constant = positive * (value(high) - k * high) + negative * (value(low) - k * low)
    return c * k, constant.flatten(2).sum(-1)


def slope_ranges(network: Network, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The range of each gate's derivative (Clarke: a ReLU that may read 0 has all of [0, 1])."""
    found = {}
    for part in network.gates:
        low, high = ranges[part.name]
        if part.gate == "relu":
            found[part.name] = ((low > 0).to(low.dtype), (high >= 0).to(low.dtype))
            continue
        slope = SLOPES[part.gate]
        ends = slope(low), slope(high)
        peak = slope(torch.zeros_like(low))
        top = torch.where((low <= 0) & (high >= 0), peak, torch.maximum(*ends))
        found[part.name] = (torch.minimum(*ends), top)
    return found


def unstable(slopes: Mapping[str, Range]) -> Tensor:
    """How many gates' derivatives are not one number, ``[box]``."""
    counts = [(high > low).flatten(1).sum(1) for low, high in slopes.values()]
    assert counts, "a network without gates has no unstable ones"
    return torch.stack(counts).sum(0)
