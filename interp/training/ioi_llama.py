"""The recipe of ``zoo:ioi-llama``: the grammar of ``zoo:ioi`` on the Llama architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.training import grammars
from interp.training.language import Schedule
from interp.training.llama import Llama, Shape

PLAN = grammars.Plan(
    name="ioi-llama",
    title="the same grammars, Llama architecture",
    question="Does an answer about zoo:ioi hold with rotary positions and grouped queries?",
    build=lambda vocab: Llama(Shape(vocab, drop=0.1)),
    schedule=Schedule(steps=3000),
    facts={"positions": "rotary", "norm": "RMSNorm", "mlp": "SwiGLU", "kv_heads": 2},
)


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train, measure, write the folder; returns the card."""
    return grammars.make(PLAN, out, say, steps, seed)
