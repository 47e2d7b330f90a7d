"""The recipe of ``zoo:digits-cnn-bn``; see ``digits_cnn.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.training.digits_cnn import made


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train (``steps`` counts epochs), measure, write the folder; returns the card."""
    return made("digits-cnn-bn", out, say, steps, seed)
