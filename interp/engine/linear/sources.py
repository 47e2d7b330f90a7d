"""Sources: the additive constants of a frozen network, each with a number that scales it.

A frozen network f(x, s) is homogeneous of degree 1 jointly in its input x and in its additive
constants c, so ``f = F·x + Σ_s r_s`` with ``r_s`` the derivative of f along that constant. Each is
written ``c·(1 + t)`` with t = 0: the value does not change by a bit and ``r_s = ∂f/∂t``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Source:
    """One place where constants enter.

    Args:
        name: what it is and where, as ``conv1 bias``.
        kind: ``bias``, ``mean``, ``offset`` (an activation's f(0)), ``constant`` or ``position``.
        scale: t, zeros ``[batch]``.
    """

    name: str
    kind: str
    scale: Tensor


@dataclass
class Book:
    """The sources of one forward pass, in the order in which they were met.

    Args:
        rows: inputs in the batch.
        like: a tensor of the dtype and device.
    """

    rows: int
    like: Tensor
    sources: list[Source] = field(default_factory=list)
    mixed: bool = False
    _made_by: dict[int, tuple[Tensor, int]] = field(default_factory=dict, repr=False)

    def open(self, name: str, kind: str) -> int:
        """A new source; its number."""
        scale = torch.zeros(self.rows, dtype=self.like.dtype, device=self.like.device)
        taken = {s.name for s in self.sources}
        named, k = name, 1
        while named in taken:
            k += 1
            named = f"{name} ({k})"
        self.sources.append(Source(named, kind, scale.requires_grad_()))
        return len(self.sources) - 1

    def term(self, number: int, constant: Tensor, like: Tensor) -> Tensor:
        """``c·t``, shaped so that it can be added to ``like``: row i of the batch has its own t.

        A batch that stands elsewhere than in front is not told apart; ``mixed`` says so.
        """
        scale = self.sources[number].scale
        if self.rows == 1:
            return constant * scale.reshape(())
        first = like.shape[0] if like.dim() else 0
        if first == 0 or first % self.rows:
            self.mixed = True
            return constant * scale.sum()
        wide = scale.repeat_interleave(first // self.rows) if first != self.rows else scale
        return constant * wide.reshape(-1, *(1,) * (like.dim() - 1))

    def added(self, out: Tensor, constant: Tensor, name: str, kind: str) -> Tensor:
        """``out + c·t``: the same value, and the source is known."""
        number = self.open(name, kind)
        made = out + self.term(number, constant, out)
        self.remember(made, number)
        return made

    def remember(self, made: Tensor, number: int) -> None:
        """Which source a tensor came out of last, so that a norm behind it can join it."""
        self._made_by[id(made)] = (made, number)

    def maker(self, x: Tensor) -> int | None:
        """The source that made this very tensor."""
        found = self._made_by.get(id(x))
        return found[1] if found is not None and found[0] is x else None

    def rename(self, number: int, name: str) -> None:
        """Call a source otherwise (where another joined it)."""
        old = self.sources[number]
        self.sources[number] = Source(name, old.kind, old.scale)
