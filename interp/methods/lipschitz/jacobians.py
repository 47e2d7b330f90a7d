"""Bounds on the Clarke Jacobian: linear bound propagation over the gradient's own graph.

g_n, the gradient at the value of part n, is Wᵀg behind a linear part and d ⊙ g behind a gate, d
the gate's derivative, a range. A·g_n is bounded from above by walking A from n to the output; at
each gate d·g is replaced by a line in g (shi2022efficiently). Legend: B boxes, J rows of outputs, R
rows of coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from interp.engine.affine import Network, Part
from interp.methods.lipschitz.preactivations import Range, identity

Variant = Literal["lbp", "recurjac", "interval"]


ZERO = torch.zeros(())


@dataclass(frozen=True)
class _Line:
    """α, β, p, q of one gate, ``[B, J, *shape]``; no slopes where numbers are taken throughout.

    ``straight`` instead: every derivative is one number ``[B, 1, 1, *shape]``.
    """

    rising: Tensor | None = None
    falling: Tensor | None = None
    over: Tensor = ZERO
    under: Tensor = ZERO
    straight: Tensor | None = None


@dataclass
class JacobianBounds:
    """Bounds on rows of the Jacobian over boxes.

    Args:
        network: the network.
        slopes: gate -> range of its derivative ``[box, *shape]``.
        seeds: rows, as weights of the outputs, ``[box or 1, J, *output]``.
        variant: ``lbp`` keeps lines through every gate; ``recurjac`` (zhang2019recurjac) takes
            numbers where a gradient's sign is open at a live gate; ``interval`` (weng2018towards)
            takes numbers at every gate.
        memory: bytes that coefficients may take.
    """

    network: Network
    slopes: Mapping[str, Range]
    seeds: Tensor
    variant: Variant = "lbp"
    memory: int = 2**30
    gradients: dict[str, Range] = field(default_factory=dict)
    _lines: dict[str, _Line] = field(default_factory=dict, repr=False)
    _entries: Range | None = None

    def __post_init__(self) -> None:
        self.boxes = next((len(low) for low, _ in self.slopes.values()), len(self.seeds))
        for part in reversed(self.network.gates):
            self.gradients[part.name] = self._range(part, self._needed(part))

    def entries(self) -> Range:
        """Lower and upper end of every entry of the Jacobian, ``[box, J, *input]``."""
        if self._entries is None:
            first = self.network[self.network.input]
            every = torch.arange(first.size, device=self.network.device)
            self._entries = self._range(first, every)
        return self._entries

    def norm(self) -> Tensor:
        """Upper bound of each row's L1 norm, ``[box, J]``.

        |J_i| ≤ s_i J_i + c_i on the entry's range, the chord of |·|; and Σ max(|l|, |u|).
        """
        low, high = self.entries()
        largest = torch.maximum(low.abs(), high.abs()).flatten(2).sum(-1)
        if self.variant != "lbp":
            return largest
        crosses = (low < 0) & (high > 0)
        width = torch.where(crosses, high - low, torch.ones_like(low))
        sign = torch.where(low >= 0, 1.0, -1.0).to(low.dtype)
        sign = torch.where((low == 0) & (high == 0), torch.zeros_like(low), sign)
        s = torch.where(crosses, (high + low) / width, sign)
        c = torch.where(crosses, high - s * high, torch.zeros_like(low))
        chord = self.upper(self.network.input, s[:, :, None])[..., 0] + c.flatten(2).sum(-1)
        return torch.minimum(largest, chord)

    def _needed(self, part: Part) -> Tensor:
        """Units of a gate whose gradient's range is asked for by what comes before it."""
        low, high = self.slopes[part.name]
        asked = high > low if self.variant == "lbp" else high > 0
        return asked.flatten(1).any(0).nonzero()[:, 0]

    def _range(self, part: Part, units: Tensor) -> Range:
        rows = self.seeds.shape[1]
        shape = (self.boxes, rows, part.size)
        low = torch.zeros(shape, dtype=torch.float64, device=units.device)
        high = torch.zeros_like(low)
        for chosen, eye in identity(part, units, self.boxes * rows, self.memory):
            high[..., chosen] = self.upper(part.name, eye[None, None])
            low[..., chosen] = -self.upper(part.name, -eye[None, None])
        whole = (self.boxes, rows, *part.shape)
        return low.reshape(whole), high.reshape(whole)

    def upper(self, name: str, rows: Tensor) -> Tensor:
        """Upper bound of rows·g at a part, ``[B, J, R]``; rows ``[B or 1, J or 1, R, *shape]``."""
        coefficients = {name: rows}
        total = torch.zeros(
            self.boxes, self.seeds.shape[1], rows.shape[2], dtype=rows.dtype, device=rows.device
        )
        for part in self.network:
            c = coefficients.pop(part.name, None)
            if c is None:
                continue
            if part.name == self.network.output:
                total = total + _dot(c, self.seeds)
            for reader in self.network.readers[part.name]:
                after, constant = self._through(self.network[reader], c)
                if constant is not None:
                    total = total + constant
                if after is not None:
                    known = coefficients.get(reader)
                    coefficients[reader] = after if known is None else known + after
        return total

    def _through(self, reader: Part, c: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if reader.kind == "add":
            return c, None
        if reader.kind == "linear":
            assert reader.map is not None
            out = reader.map.linear(c.flatten(0, 2))
            return out.reshape(*c.shape[:3], *reader.map.out), None
        line = self._line(reader)
        if line.straight is not None:
            return c * line.straight, None
        plus, minus = c.clamp(min=0), c.clamp(max=0)
        constant = _dot(plus, line.over) + _dot(minus, line.under)
        if line.rising is None or line.falling is None:
            return None, constant
        return plus * line.rising[:, :, None] + minus * line.falling[:, :, None], constant

    def _line(self, reader: Part) -> _Line:
        """What stands for d·g at a gate: c·d·g ≤ (c⁺α + c⁻β)·g + c⁺p + c⁻q, unit by unit.

        With Δ = d₊ - d₋: c⁺Δ relu(g) and |c⁻|Δ relu(-g) lie under their chords on g's range
        (α = d₋ + Δs, β = d₋ + Δt, p = -q = Δκ); where numbers are taken, α = β = 0 and p, q are
        the ends of d·g.
        """
        if reader.name not in self._lines:
            self._lines[reader.name] = self._made(reader)
        return self._lines[reader.name]

    def _made(self, reader: Part) -> _Line:
        d_low, d_high = (t[:, None] for t in self.slopes[reader.name])
        if self.variant == "lbp" and not bool((d_high > d_low).any()):
            return _Line(straight=d_low[:, :, None])
        g_low, g_high = self.gradients[reader.name]
        top = torch.where(g_high > 0, d_high, d_low) * g_high
        bottom = torch.where(g_low < 0, d_high, d_low) * g_low
        if self.variant == "interval":
            return _Line(over=top, under=bottom)
        delta = d_high - d_low
        crosses = (g_low < 0) & (g_high > 0)
        width = torch.where(crosses, g_high - g_low, torch.ones_like(g_low))
        zero = torch.zeros_like(g_low)
        s = torch.where(crosses, g_high / width, (g_low >= 0).to(g_low.dtype))
        t = torch.where(crosses, -g_low / width, (g_high <= 0).to(g_low.dtype))
        kappa = delta * torch.where(crosses, -g_low * g_high / width, zero)
        line = _Line(d_low + delta * s, d_low + delta * t, kappa, -kappa)
        if self.variant == "lbp":
            return line
        assert line.rising is not None and line.falling is not None
        numbers = crosses & (d_high > 0)
        return _Line(
            torch.where(numbers, zero, line.rising), torch.where(numbers, zero, line.falling),
            torch.where(numbers, top, line.over), torch.where(numbers, bottom, line.under),
        )  # fmt: skip


def _dot(c: Tensor, weight: Tensor) -> Tensor:
    """Σ over units of c·weight: c ``[B or 1, J or 1, R, *]``, weight ``[B, J, *]`` -> [B, J, R].

    Coefficients that all boxes share are multiplied once, as a matrix.
    """
    c, weight = c.flatten(3), weight.flatten(2)
    if c.shape[:2] == (1, 1):
        return weight @ c[0, 0].T
    return (c @ weight[..., None])[..., 0]
