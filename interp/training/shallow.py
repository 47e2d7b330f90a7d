"""The recipe of ``zoo:shallow``; see ``depths.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.training import depths


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train, measure, write the folder; returns the card."""
    return depths.make("shallow", out, say, steps, seed)
