"""A trained model -> an ordinary checkpoint folder: weights, config, tokenizer, card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.models.tensors import write_tensors

WEIGHTS = "model.safetensors"
CARD = "card.json"


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """JSON with sorted keys left as given, one line end at the end."""
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Any],
    config: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
) -> int:
    """Write weights, ``config.json`` and tokenizer files; returns the bytes of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_tensors(folder / WEIGHTS, tensors)
    write_json(folder / "config.json", config)
    for name, data in files.items():
        write_json(folder / name, data)
    return path.stat().st_size
