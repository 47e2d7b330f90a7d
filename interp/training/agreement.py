"""Does a model trained again agree with the one that ships? By its bits, else by its card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.models.tensors import hash_files
from interp.training.checkpoints import CARD

TOLERANCE = 0.02
"""Largest difference of a headline number, relative to it where it is over 1, if the card does not
say another ``tolerance``."""

HEADLINES = ("accuracy", "inputs", "metrics", "loss", "dictionaries", "right")
"""Parts of a card that say what a model can do."""

LEFT_OUT = ("n", "step", "epoch", "dead", "logit_diff")
"""Numbers in those parts that are counts, or no measure of what it can do."""


@dataclass(frozen=True)
class Agreement:
    """One comparison.

    Args:
        same_bits: the weights are the same, bit by bit.
        differences: headline number -> (shipped, again), those over the tolerance.
        compared: how many headline numbers there are.
        largest: the largest difference.
        tolerance: what was allowed.
    """

    same_bits: bool
    differences: dict[str, tuple[float, float]]
    compared: int
    largest: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether they agree."""
        return self.same_bits or not self.differences

    def __str__(self) -> str:
        if self.same_bits:
            return "the same bits as what ships"
        if self.ok:
            return (
                f"other bits; {self.compared} numbers of the card agree within {self.tolerance:g} "
                f"(largest difference {self.largest:.2g})"
            )
        told = "; ".join(f"{k}: ships {a:g}, now {b:g}" for k, (a, b) in self.differences.items())
        return f"does not agree within {self.tolerance:g}: {told}"


def headlines(card: Mapping[str, Any]) -> dict[str, float]:
    """The headline numbers of a card by their path; of a list, its last entry."""
    return {
        name: value
        for part in HEADLINES
        if part in card
        for name, value in _numbers(part, card[part])
    }


def _numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if path.rpartition(" / ")[2] in LEFT_OUT or isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        yield path, float(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{path} / {key}", inner)
    elif isinstance(value, list) and value:
        yield from _numbers(path, value[-1])


def compare(shipped: Path, again: Path) -> Agreement | None:
    """The folder that ships against one trained again; None where nothing ships.

    Args:
        shipped: the folder in the package.
        again: the folder just written.
    """
    if not (shipped / CARD).is_file():
        return None
    before, after = (json.loads((p / CARD).read_text(encoding="utf-8")) for p in (shipped, again))
    hashes = [hash_files(sorted(p.rglob("*.safetensors"))) for p in (shipped, again)]
    tolerance = float(before.get("tolerance", TOLERANCE))
    ours, theirs = headlines(before), headlines(after)
    gaps = {
        name: abs(value - theirs.get(name, float("nan"))) / max(1.0, abs(value))
        for name, value in ours.items()
    }
    far = {n: (ours[n], theirs.get(n, float("nan"))) for n, g in gaps.items() if not g <= tolerance}
    return Agreement(
        hashes[0] == hashes[1], far, len(ours), max(gaps.values(), default=0), tolerance
    )
