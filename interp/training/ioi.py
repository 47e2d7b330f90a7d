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
    build=lambda vocab: GPT2(Shape(vocab, heads=8, drop=0.1)),
    schedule=Schedule(steps=3000),
    facts={"positions": "learned"},
    reading=(
        "From the last word, head 0.6 looks at the giver, and heads 2.2, 2.4 and 2.5 look there "
        "and partly at the receiver; from the giver, head 2.2 looks at the word after its first "
        "mention, as an induction head does. Head 3.1 looks at the receiver and not at the "
        "giver's second mention, as a name mover does (Wang et al. 2023). Inferred from "
        "attention; what is verified by ablation is which heads are enough and needed."
    ),
)


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train, measure, write the folder; returns the card."""
    return grammars.make(PLAN, out, say, steps, seed)
