"""Hand-made dictionaries: folders with cfg.json and safetensors, and the same as plain tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from interp.models import write_tensors


def hand_made(
    folder: Path,
    width: int,
    *,
    n: int = 24,
    act: str = "relu",
    hook: str = "blocks.2.hook_resid_post",
    centred: bool = False,
    seed: int = 0,
    tensors: dict[str, Any] | None = None,
    **config: Any,
) -> dict[str, Any]:
    """Write a dictionary whose features fire often, and give its parts as plain tensors."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    book: dict[str, Any] = {
        "W_enc": random(width, n) / width**0.5,
        "b_enc": 0.3 * random(n),
        "W_dec": random(n, width) / n**0.5,
        "b_dec": 0.2 * random(width),
    }
    if act == "jumprelu":
        book["threshold"] = 0.5 * random(n).abs()
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "sae_weights.safetensors", {**book, **(tensors or {})})
    said = {
        "architecture": "standard" if act == "relu" else act,
        "d_in": width,
        "d_sae": n,
        "hook_name": hook,
        "apply_b_dec_to_input": centred,
        "normalize_activations": "none",
        **({"k": 5} if act == "topk" else {}),
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps(said), encoding="utf-8")
    return {**book, "act": act, "centred": centred, "k": 5}
