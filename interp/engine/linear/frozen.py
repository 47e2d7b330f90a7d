"""Frozen: a network as the matrix F(x₀) and the remainder r(x₀), by products alone.

``f̂(x; x₀) = F(x₀)·x + r(x₀)`` with ``f̂(x₀; x₀) = f(x₀)`` and ``r = Σ_s r_s`` by source
(michelini2019tour). F·u, Fᵀ·v and r_s come from one graph; F is never formed unless asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from interp.engine.linear.sources import Source
from interp.terms import UsageError

ROWS = 128
"""Rows of F pulled back in one go, at most."""


@dataclass(eq=False)
class Frozen:
    """One batch of inputs and what the network, frozen at each of them, does.

    Args:
        x: the inputs ``[batch, *in]``, a leaf.
        y: the outputs ``[batch, *out]``, with their graph.
        sources: additive constants in the order of the network.
        constants: for sources that are parameters, what is multiplied with their gradient.
        memory: bytes that rows of F may take at a time.
        complaints: what stood in the way of a linear network: (path, function).
    """

    x: Tensor
    y: Tensor
    sources: Sequence[Source]
    constants: Sequence[Tensor | None] = ()
    memory: int = 2**30
    complaints: Sequence[tuple[str, str]] = ()
    _leaves: list[Tensor] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if not self.y.requires_grad:
            raise UsageError(
                "The output does not depend on the input once decisions are taken (a softmax?).",
                remedy="Choose an output_site before it, as the logits.",
            )
        self.constants = self.constants or [None] * len(self.sources)
        self._leaves = [s.scale for s in self.sources]

    @property
    def rows(self) -> int:
        """Inputs in the batch."""
        return len(self.x)

    @property
    def inputs(self) -> int:
        """Numbers in one input."""
        return math.prod(self.x.shape[1:])

    @property
    def outputs(self) -> int:
        """Numbers in one output."""
        return math.prod(self.y.shape[1:])

    @property
    def value(self) -> Tensor:
        """f(x₀), ``[batch, *out]``."""
        return self.y.detach()

    def pull(self, v: Tensor) -> Tensor:
        """Fᵀ·v for ``v [batch, *out]``: ``[batch, *in]``."""
        found = torch.autograd.grad(self.y, self.x, v, retain_graph=True)[0]
        return found.detach()

    def pulls(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Fᵀ·v and every ``v·r_s`` for many v at once.

        Args:
            v: ``[many, batch, *out]``.

        Returns:
            ``[many, batch, *in]`` and ``[many, batch, source]``.
        """
        wanted = [self.x, *self._leaves]
        back, shares = [], []
        for part in v.split(self._at_a_time()):
            one = len(part) == 1
            found = torch.autograd.grad(
                self.y, wanted, part[0] if one else part, retain_graph=True, allow_unused=True,
                is_grads_batched=not one,
            )  # fmt: skip
            found = [f if f is None or not one else f[None] for f in found]
            back.append(found[0].detach())
            shares.append(self._shares(found[1:], len(part)))
        return torch.cat(back), torch.cat(shares)

    def _shares(self, found: Sequence[Tensor | None], many: int) -> Tensor:
        shape = (many, self.rows)
        columns = []
        for grad, constant in zip(found, self.constants, strict=True):
            if grad is None:
                columns.append(self.x.new_zeros(shape))
            elif constant is None:
                columns.append(grad.detach())
            else:
                share = (grad * constant).reshape(many, -1).sum(-1, keepdim=True)
                columns.append(share.detach().expand(shape))
        return torch.stack(columns, -1) if columns else self.x.new_zeros(*shape, 0)

    def _at_a_time(self) -> int:
        each = self.x.element_size() * 40 * max(self.x.numel(), self.y.numel())
        return int(max(1, min(ROWS, 0.25 * self.memory // each)))

    @cached_property
    def _back(self) -> tuple[Tensor, list[Tensor | None]]:
        """Fᵀv and every ∂(v·f)/∂s as functions of v."""
        with torch.enable_grad():
            self._v = torch.zeros_like(self.y).requires_grad_()
            found = torch.autograd.grad(
                self.y, [self.x, *self._leaves], self._v, create_graph=True, retain_graph=True,
                allow_unused=True,
            )  # fmt: skip
        return found[0], list(found[1:])

    def push(self, u: Tensor) -> Tensor:
        """F·u for ``u [batch, *in]``: ``[batch, *out]``, by the vjp of the vjp."""
        back, _ = self._back
        return torch.autograd.grad(back, self._v, u, retain_graph=True)[0].detach()

    def remainders(self) -> Tensor:
        """Σ_s r_s as an output, ``[batch, *out]``, each from its own source."""
        back = self._back[1]
        total = torch.zeros_like(self.value)
        for grad, constant in zip(back, self.constants, strict=True):
            if grad is None or not grad.requires_grad:
                continue
            weight = torch.ones_like(grad) if constant is None else constant.to(grad)
            total = total + torch.autograd.grad(grad, self._v, weight, retain_graph=True)[0]
        return total.detach()

    def one_hots(self, chosen: Sequence[int] | Tensor) -> Tensor:
        """Unit outputs ``[many, batch, *out]``; ``chosen`` counts entries of a flattened output.

        ``[many]`` for all inputs alike, or ``[many, batch]``.
        """
        index = torch.as_tensor(chosen, device=self.y.device)
        index = index[:, None].expand(-1, self.rows) if index.dim() == 1 else index
        out = self.y.new_zeros(len(index), self.rows, self.outputs)
        out.scatter_(2, index[..., None], 1.0)
        return out.reshape(len(index), *self.y.shape)

    def matrix(self) -> Tensor:
        """F, ``[batch, outputs, inputs]``, row by row."""
        found = []
        for part in torch.arange(self.outputs).split(self._at_a_time()):
            found.append(self.pulls(self.one_hots(part))[0].flatten(2))
        return torch.cat(found).transpose(0, 1)

    def columns(self, chosen: Sequence[int]) -> Tensor:
        """Impulse responses F·e_j, ``[many, batch, *out]``."""
        found = []
        for j in chosen:
            u = torch.zeros_like(self.x).detach().reshape(self.rows, -1)
            u[:, int(j)] = 1.0
            found.append(self.push(u.reshape(self.x.shape)))
        return torch.stack(found)

    # -- identities -------------------------------------------------------------------------------

    def linear_part(self) -> Tensor:
        """F·x₀, ``[batch, *out]``."""
        return self.push(self.x.detach())

    def completeness(self) -> Tensor:
        """max over outputs of ``|f(x₀) - F·x₀ - Σ_s r_s|``, ``[batch]``."""
        gap = self.value - self.linear_part() - self.remainders()
        return gap.abs().reshape(self.rows, -1).amax(1)

    def row_gap(self, generator: torch.Generator) -> Tensor:
        """|v·f - (Fᵀv)·x₀ - Σ_s v·r_s| for a random v, each input by itself, ``[batch]``.

        Unlike ``completeness`` it fails where sources of one input are counted for another.
        """
        v = torch.randn(self.y.shape, generator=generator, dtype=torch.float64).to(self.value)
        back, shares = self.pulls(v[None])
        votes = (back[0] * self.x.detach()).reshape(self.rows, -1).sum(1)
        whole = (v * self.value).reshape(self.rows, -1).sum(1)
        return (whole - votes - shares[0].sum(1)).abs()

    def adjoint(self, generator: torch.Generator) -> float:
        """|⟨F u, v⟩ - ⟨u, Fᵀ v⟩| over ‖F u‖ ‖v‖ for random u, v; the largest of the batch."""

        def draw(like: Tensor) -> Tensor:
            made = torch.randn(like.shape, generator=generator, dtype=torch.float64)
            return made.to(like)

        u, v = draw(self.x.detach()), draw(self.value)
        forward, backward = self.push(u), self.pull(v)
        a = (forward * v).reshape(self.rows, -1).sum(1)
        b = (u * backward).reshape(self.rows, -1).sum(1)
        size = forward.reshape(self.rows, -1).norm(dim=1) * v.reshape(self.rows, -1).norm(dim=1)
        return float(((a - b).abs() / size.clamp_min(1e-300)).max())


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size``."""
    for start in range(0, count, max(1, size)):
        yield slice(start, min(count, start + size))
