"""The recipe of ``zoo:digits-autoencoder``; see ``digits_denoise.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.training.digits_denoise import made


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train (``steps`` counts epochs), measure, write the folder; returns the card."""
    return made("digits-autoencoder", out, say, steps, seed)
