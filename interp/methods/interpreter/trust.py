"""Trust: the identities of a frozen network as lines of the panel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from interp.engine.linear import Frozen
from interp.terms import Check, Context

COMPLETE = {torch.float64: 1e-12, torch.float32: 1e-4}
ADJOINT = {torch.float64: 1e-12, torch.float32: 1e-4}
CERTIFIED = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass
class Ledger:
    """The worst of each identity over a run.

    Args:
        seed: of the vectors of the adjoint check.
    """

    seed: int
    worst: dict[str, float] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    note: str = ""

    def see(self, frozen: Frozen) -> None:
        """Measure completeness and adjointness of a frozen batch."""
        self.dtype = frozen.x.dtype
        size = frozen.value.abs().reshape(frozen.rows, -1).amax(1).clamp_min(1e-30)
        self.take("completeness", float((frozen.completeness() / size).max()))
        generator = torch.Generator().manual_seed(self.seed)
        self.take("adjoint", frozen.adjoint(generator))

    def take(self, name: str, value: float) -> None:
        """Keep the largest."""
        self.worst[name] = max(self.worst.get(name, 0.0), value)

    def pack(self) -> dict[str, np.ndarray]:
        """What is known so far, to be kept beside a piece of the work."""
        return {f"worst {name}": np.array(value) for name, value in self.worst.items()}

    def unpack(self, kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Take in what was packed; returns the rest."""
        for name, value in kept.items():
            if name.startswith("worst "):
                self.take(name.removeprefix("worst "), float(value))
        return {k: v for k, v in kept.items() if not k.startswith("worst ")}

    @property
    def complete(self) -> bool:
        """Whether votes and sources make up the output."""
        return self.worst.get("completeness", 0.0) <= COMPLETE[self.dtype]

    def tell(self, context: Context, forward_tolerance: float) -> None:
        """Write the lines."""
        context.check(Check(
            "frozen_forward", "frozen network less the network itself at x₀, relative",
            self.worst.get("forward", np.nan), forward_tolerance,
            note="Freezing must not change a value.",
        ))  # fmt: skip
        if "completeness" in self.worst:
            context.check(Check(
                "completeness", "|f(x₀) - F·x₀ - Σ r_s|, relative to the largest output",
                self.worst["completeness"], COMPLETE[self.dtype],
                note=self.note or "Each r_s is measured from its own source, so a unit that is "
                "not frozen, or a constant that was missed, shows here.",
            ))  # fmt: skip
        context.check(Check(
            "adjoint", "|⟨F u, v⟩ - ⟨u, Fᵀ v⟩| for random u, v, relative",
            self.worst.get("adjoint", np.nan), ADJOINT[self.dtype],
            note="Rows and columns are of one matrix.",
        ))  # fmt: skip
        if "certificate" in self.worst:
            context.check(Check(
                "certificate", "largest certificate of a singular value, relative to σ₁",
                self.worst["certificate"], CERTIFIED[self.dtype],
                note="A true singular value lies within it of each σ shown; that none larger was "
                "missed is not proved.",
            ))  # fmt: skip
