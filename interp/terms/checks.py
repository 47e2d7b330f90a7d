"""Check: one line of the trust panel."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """A value held against its tolerance.

    Args:
        name: an identifier, as ``identity_patch``.
        title: a phrase a person reads.
        value: what was measured; NaN where it could not be.
        tolerance: the bound; None for a figure that is only stated (a noise floor).
        at_least: the value must be no smaller than the tolerance (else no larger).
        note: what it means, or what to do when it fails.
    """

    name: str
    title: str
    value: float
    tolerance: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value keeps the tolerance; a NaN never passes a bound."""
        if self.tolerance is None:
            return True
        if math.isnan(self.value):
            return False
        return self.value >= self.tolerance if self.at_least else self.value <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; NaN becomes None."""
        out = asdict(self)
        out["value"] = None if math.isnan(self.value) else float(self.value)
        out["passed"] = self.passed
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Check:
        """The inverse of ``to_json``."""
        data = {k: v for k, v in data.items() if k != "passed"}
        if data.get("value") is None:
            data["value"] = math.nan
        return cls(**data)
