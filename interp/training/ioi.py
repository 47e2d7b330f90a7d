"""The recipe of ``zoo:ioi``: a GPT-2 of 4 layers × 8 heads on the whole grammar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.training import grammars
from interp.training.gpt2 import GPT2, Shape
from interp.training.language import Schedule

PLAN = grammars.Plan(
    name="ioi",
    title="indirect objects and four other grammars",
    question="Which heads find the name that was not repeated?",
    build=lambda vocab: GPT2(Shape(vocab, heads=8, drop=0.2)),
    schedule=Schedule(steps=4000),
    facts={"positions": "learned"},
    reading=(
        "From the last word, heads 0.1 and 0.2 look at both first names about equally and "
        "head 0.0 looks at the giver: as if both names were proposed and the giver taken "
        "back. No named head looks from the giver back to its first mention, so there is "
        "no duplicate-token head as in GPT-2 small. Inferred from attention; what is "
        "verified by ablation is which heads are enough and needed."
    ),
)


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train, measure, write the folder; returns the card."""
    return grammars.make(PLAN, out, say, steps, seed)
