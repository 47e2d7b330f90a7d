"""The recipe of ``zoo:deep``; see ``depths.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.training import depths


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train, measure, write the folder; returns the card."""
    return depths.make("deep", out, say, steps, seed)
